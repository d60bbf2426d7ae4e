"""Device functions are linked into kernels, not compiled; and compiled where Numba cannot link."""

import ast
import textwrap

import children
import llvmlite.binding as llvm
import numpy as np
import pytest
import toy_kernels as toy

from fastattn._numba.compiler import compile, linking

# What linking needs of Numba and nothing else does: a class at import, a method when it is used.
LACKING = {
    "class": "import numba.core.typed_passes; del numba.core.typed_passes.NativeLowering",
    "method": "import numba.core.compiler; del numba.core.compiler._LowerResult._replace",
}
# Runs the toy kernel in a child; prints how its device function was made and what it gave.
REPORT = """
import toy_kernels as toy
call = toy.Call(3, 1000).run(1e-9, 1)
call.assert_done()
(made,) = toy.busy.overloads.values()
print([type(made.library).__name__, call.value.tobytes().hex()])
"""


def report(before=""):
    return ast.literal_eval(children.run(f"{before}\n{REPORT}", FASTATTN_CACHE="0"))


def test_device_functions_are_linked():
    """Otherwise a Numba that cannot link would only be slow, without a word."""
    assert linking._refusal() is None
    assert report()[0] == "_LinkedLibrary"


@pytest.mark.parametrize("lacking", LACKING)
def test_a_numba_that_cannot_link_compiles(lacking):
    library, value = report(LACKING[lacking])
    assert library == "JITCodeLibrary"
    assert value == toy.Call(3, 1000).run(1e-9, 1).value.tobytes().hex()
    assert np.frombuffer(bytes.fromhex(value)).any()


@pytest.mark.parametrize("arguments", [(3,), (3.0,), (True,)], ids=str)
def test_python_cannot_call_device_functions(arguments):
    with pytest.raises(TypeError):
        toy.busy(*arguments)


def test_code_to_compile_ahead_is_linked():
    """What Numba made machine code of must not be optimised again: see `_numba.objects`."""
    code, name = linking.linked_code(compile.device(toy.count.function), compile.ENTRY_SIGNATURE)
    module = llvm.parse_assembly(code)
    defined = [function.name for function in module.functions if not function.is_declaration]
    assert name in defined
    assert any("busy" in other for other in defined)


def test_a_numba_that_cannot_link_compiles_nothing_ahead():
    code = """
    import toy_kernels as toy
    from fastattn._numba.compiler import compile, linking
    try:
        linking.linked_code(compile.device(toy.count.function), compile.ENTRY_SIGNATURE)
    except RuntimeError as error:
        print(error)
    """
    told = children.run(f"{LACKING['method']}\n{textwrap.dedent(code)}", FASTATTN_CACHE="0")
    assert "this Numba cannot link device functions" in told
