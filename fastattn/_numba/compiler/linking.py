"""Compile device functions to be linked, nothing else.

Numba makes machine code of every function it compiles, and optimises each together with all that
it calls: what lies at the bottom of five levels of calls is optimised five times. Kernels are
entered through one function only. Here a device function ends as LLVM code, waiting to be linked;
the entry's module is optimised once, as a whole. That halves the time of compiling: attention in
float32 took 16.8 s from import to first result, and takes 9.

The means are Numba's own: a compiler pipeline (`pipeline_class`) whose lowering leaves the library
unfinished. It leans on names that Numba does not promise to keep, so before the first device
function of a process is compiled, a small one is tried. Where that fails all of them take the usual
pipeline, which is slower to compile and gives the same results.
"""

import functools
import logging

import numba
from numba.core import codegen, compiler, typed_passes
from numba.core.compiler_machinery import register_pass

__all__ = ["DeviceCompiler", "linked_code"]

_logger = logging.getLogger("fastattn.compile")


class _LinkedLibrary(codegen.JITCodeLibrary):
    """The code of a function and of those it calls, never optimised or made executable."""

    def finalize(self):
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LinkedLowering(typed_passes.NativeLowering):
    """Lower into a library that is only ever linked."""

    _name = "linked_lowering"

    def run_pass(self, state):
        name = state.func_id.func_qualname
        state.library = _LinkedLibrary(state.targetctx.codegen(), name)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered = state["cr"]
        # What Numba knows the function by: a builtin, no two the same. Should anybody call the
        # function from Python, Numba passes it the tuple of arguments, which this one refuses.
        key = functools.partial(int).__setstate__
        state.targetctx.insert_user_function(key, lowered.fndesc, [state.library])
        state["cr"] = lowered._replace(cfunc=key)
        return True


class _LinkedCompiler(compiler.CompilerBase):
    """Numba's pipeline for compiled functions, with the lowering above."""

    def define_pipelines(self):
        usual = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
        linked = compiler.PassManager("linked")
        for step, description in usual.passes:
            lowering = step is typed_passes.NativeLowering
            linked.add_pass(_LinkedLowering if lowering else step, description)
        linked.finalize()
        return [linked]


@functools.cache
def _refusal():
    """Why this Numba cannot link device functions, or None; found out by trying, 50 ms once."""
    bare = functools.partial(numba.njit, no_cpython_wrapper=True, no_cfunc_wrapper=True)
    inner = bare(lambda x: x + 1, pipeline_class=_LinkedCompiler)
    outer = bare(lambda x: inner(x), pipeline_class=_LinkedCompiler)
    try:
        bare(lambda x: outer(x)).compile("int64(int64)")
    except Exception as error:  # whatever a Numba of another shape raises
        _logger.info("device functions are compiled, not linked: %r", error)
        return repr(error)
    return None


class DeviceCompiler(compiler.Compiler):
    """The pipeline of device functions: linked if this Numba can, as usual if not."""

    def define_pipelines(self):
        if _refusal() is None:
            return _LinkedCompiler.define_pipelines(self)
        return super().define_pipelines()


def linked_code(function, signature):
    """Compile a device function for a signature; return its LLVM code, with all that it calls,
    optimised function by function only, and its name in there.

    Raises
    ------
    RuntimeError
        If this Numba cannot link device functions.
    """
    function.compile(signature)
    (result,) = function.overloads.values()
    if not isinstance(result.library, _LinkedLibrary):
        raise RuntimeError(f"this Numba cannot link device functions: {_refusal()}")
    return str(result.library._get_module_for_linking()), result.fndesc.mangled_name
