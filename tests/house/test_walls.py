"""The walls between the rooms, read from the syntax trees, and what the face shows outside."""

import ast
import inspect
import re
import sys

import pytest
from conftest import EXACT
from imports import PACKAGE, fresh, imports_of, module_of
from places import ROOT

import fastattn

FILES = sorted(PACKAGE.rglob("*.py"))

FACE = {
    "allocation",
    "attention",
    "attention_allocation",
    "varlen",
    "cache",
    "state",
    "similarity",
    "linear",
    "normalize",
    "fusion",
    "multihead",
    "parameters",
    "projections",
    "shared_allocation",
    "units",
}
# What each room may import of fastattn. The face hands over to a backend by name, at run time.
MAY_IMPORT = {
    "face": {"face", "_core"},
    "_core": {"_core"},
    "_engine": {"_engine", "_core"},
    "_numba": {"_numba", "_engine", "_core"},
    "_cython": {"_cython", "_engine", "_core"},
    "reference": {"reference"},
    "batch": {"batch", "public"},
    "plot": {"plot", "batch", "public"},
    "bridges": {"bridges", "public"},
    "examples": {"examples", "batch", "plot", "public", "reference"},
    "arguments": {"batch"},
    "cli": {"cli", "arguments", "batch", "examples", "plot", "public", "start"},
    "__main__": {"cli"},
    "public": {"face", "_core", "start"},
    "start": set(),
}
# One file of the bridges says whose threads serve, which is nobody else's business.
ALSO = {"fastattn.bridges.torch.threads": "fastattn._core.threads"}
# Inside the kernels' room: what each of theirs may import beside itself.
BELOW = {
    "compiler": set(),
    "machine": {"compiler"},
    "operands": {"compiler", "machine"},
    "steps": {"compiler", "machine", "operands"},
    "stages": {"compiler", "machine", "operands", "steps"},
    "budgets": {"compiler", "machine", "operands"},
}
# Files that write machine instructions.
VECTORS = {
    "bfloat16",
    "elementary",
    "emit",
    "flags",
    "memory",
    "native",
    "objects",
    "simd",
    "storage",
    "tile",
    "tile_small",
}


def room_of(module):
    """Name the room of a module of fastattn; `public` is the package itself and its names."""
    parts = module.split(".")
    if len(parts) == 1:
        return "public"
    return "face" if parts[1] in FACE else parts[1]


def test_every_room_is_known():
    rooms = {room_of(module_of(path)) for path in FILES}
    assert rooms <= set(MAY_IMPORT), f"say in MAY_IMPORT and README: {rooms - set(MAY_IMPORT)}"
    assert {"face", "_core", "_engine", "_numba", "reference", "batch"} <= rooms, (
        "the walls were not read"
    )


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_one_way(path):
    room = room_of(module_of(path))
    for name in imports_of(path):
        top = name.split(".")[0]
        if top == "fastattn" and not name.startswith(ALSO.get(module_of(path), "nothing")):
            assert room_of(name) in MAY_IMPORT[room], f"{module_of(path)} imports {name}"
        if top == "numba":
            assert room == "_numba", f"{module_of(path)} imports {name}"
        if top == "llvmlite":
            assert room == "_numba", f"{module_of(path)} imports {name}"
            assert path.stem in VECTORS, f"{module_of(path)} imports {name}"
        if room == "reference":
            standard = top in sys.stdlib_module_names
            assert standard or top in ("numpy", "fastattn"), f"{module_of(path)} imports {name}"


def kernel_room_of(module):
    """Name the room of a module of the kernels; None: it stands above them all."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["fastattn", "_numba"] and len(parts) > 3 else None


KERNELS = [path for path in FILES if kernel_room_of(module_of(path))]


@pytest.mark.parametrize("path", KERNELS, ids=module_of)
def test_kernel_rooms_stand_on_those_below(path):
    room = kernel_room_of(module_of(path))
    for name in imports_of(path):
        if name.startswith("fastattn._numba."):
            below = kernel_room_of(name)
            assert below in {room, *BELOW[room]}, f"{module_of(path)} imports {name}"


def test_no_step_knows_a_variant():
    """Steps ask what a record knows; files that name a variant are imported by stages alone."""
    steps = [path for path in KERNELS if kernel_room_of(module_of(path)) == "steps"]
    own = {module_of(path) for path in steps if "import VariantSteps" in path.read_text("utf-8")}
    assert own == {"fastattn._numba.steps.floats", "fastattn._numba.steps.bfloat16_pairs"}
    for path in KERNELS:
        known = own & set(imports_of(path))
        assert not known or kernel_room_of(module_of(path)) == "stages", f"{path} imports {known}"


def test_every_variant_has_a_kernel():
    from fastattn._engine.variants import KERNEL, VARIANTS
    from fastattn._numba.operands.variant import VariantSteps
    from fastattn._numba.stages import attention

    kernels = {one.name: one for one in vars(attention).values() if isinstance(one, VariantSteps)}
    assert kernels.keys() == {one.name for one in VARIANTS}
    for name, variant in kernels.items():
        assert getattr(attention, f"{KERNEL}_{name}").features == variant.features


def test_every_kernel_stands_in_a_room():
    assert {kernel_room_of(module_of(path)) for path in KERNELS} == set(BELOW)
    above = {path.stem for path in (PACKAGE / "_numba").glob("*.py")}
    assert above == {"__init__", "backend", "entry_points", "objects"}


def test_the_reader_of_imports_sees_them(tmp_path):
    """The walls hold nothing if imports go unseen: every spelling, in functions too."""
    path = PACKAGE / "_numba" / "machine" / "fake.py"
    source = "\n".join(
        (
            "import numba.core, os",
            "from fastattn import reference, attention",
            "from fastattn.reference.backend import name",
            "from . import simd",
            "from .tile import x",
            "from ...reference import tiled",
            "def late():\n    import llvmlite",
        )
    )

    class Fake:
        name = "fake.py"

        def read_text(self, encoding):
            return source

        def relative_to(self, other):
            return path.relative_to(other)

    assert sorted(imports_of(Fake())) == [
        "fastattn",
        "fastattn._numba.machine.simd",
        "fastattn._numba.machine.tile",
        "fastattn.reference",
        "fastattn.reference.backend",
        "fastattn.reference.tiled",
        "llvmlite",
        "numba.core",
        "os",
    ]


HEAVY = (
    "{'numba', 'llvmlite', 'scipy', 'sklearn', 'tqdm', 'matplotlib', 'torch', 'fastattn.batch', "
    "'fastattn.bridges', 'fastattn.reference'}"
)


def test_import_loads_no_compiler():
    code = f"import sys, fastattn; print(sorted({HEAVY} & set(sys.modules)))"
    assert fresh(code) == "[]"


# Modules of Python that take a millisecond or more to import, and that NumPy does without.
SLOW = ["difflib", "pathlib", "shlex", "signal", "urllib.parse"]


def test_a_first_call_imports_what_it_needs():
    code = (
        f"import sys, numpy; [sys.modules.pop(name, None) for name in {SLOW}];"
        "import fastattn; {}; print(sorted(name for name in sys.modules if name in {}))"
    )
    assert fresh(code.format("None", SLOW)) == "[]"
    call = "fastattn.attention([1.0], [[1.0]], [[1.0]], backend='cython')"
    others = [f"fastattn._engine.{name}" for name in ("normalize", "ragged", "shared", "stages")]
    if "cython" in EXACT:
        assert fresh(code.format(call, SLOW)) == "[]"
        assert fresh(code.format(call, others)) == "[]"


def test_a_call_on_the_reference_loads_no_compiler():
    code = (
        "import sys, fastattn; fastattn.attention([1.0], [[1.0]], [[1.0]], backend='reference');"
        "print('numba' in sys.modules)"
    )
    assert fresh(code) == "False"


def test_submodules_do_not_hide_functions():
    """The files attention.py and similarity.py have the names of the functions inside them."""
    code = (
        "import fastattn, fastattn.attention, fastattn.similarity, fastattn.cli, fastattn.batch;"
        "print(callable(fastattn.attention), callable(fastattn.similarity))"
    )
    assert fresh(code) == "True True"


PUBLIC = [name for name in fastattn.__all__ if callable(getattr(fastattn, name))]


def test_public_names():
    shown = {
        name
        for name, thing in vars(fastattn).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    }
    assert shown == set(fastattn.__all__) - {"__version__"}
    assert fastattn.__all__ == sorted(fastattn.__all__)
    assert set(fastattn.__all__) == {
        "AllocationResult",
        "KVCache",
        "MultiHeadAttention",
        "PackedWeight",
        "SharedAllocation",
        "State",
        "__version__",
        "allocate",
        "allocate_shared",
        "attention",
        "attention_allocation",
        "attention_state",
        "attention_varlen",
        "explain",
        "fuse",
        "linear",
        "log_softmax",
        "logsumexp",
        "merge_states",
        "numerics_version",
        "pack_linear",
        "set_threads",
        "share_threads",
        "show_config",
        "similarity",
        "softmax",
        "threads",
        "use_backend",
        "warmup",
    }
    assert re.fullmatch(r"\d+\.\d+\.\d+", fastattn.__version__)
    assert isinstance(fastattn.numerics_version, int)


MEMBERS = [
    *((name, getattr(fastattn, name)) for name in PUBLIC),
    ("State.merge", fastattn.State.merge),
    ("State.finish", fastattn.State.finish),
]


@pytest.mark.parametrize(("name", "thing"), MEMBERS)
def test_docstrings_have_their_sections(name, thing):
    text = inspect.getdoc(thing)
    parameters = [
        parameter
        for parameter in inspect.signature(thing).parameters
        if parameter != "self" and not inspect.isclass(thing)
    ]
    summary = text.splitlines()[0]
    assert len(summary) <= 100
    assert "numba" not in summary.lower()
    sections = re.findall(r"^([A-Z][A-Za-z ]+)\n-{3,}$", text, re.M)
    order = ["Parameters", "Attributes", "Returns", "Raises", "See Also", "Notes", "References"]
    order.append("Examples")
    assert [section for section in order if section in sections] == sections
    if "." not in name:
        assert "Examples" in sections
    if parameters:
        assert "Parameters" in sections
        block = text.split("Parameters\n---")[1].split("\n\n")[0]
        heads = re.findall(r"^(\w[\w, ]*?)(?: :|$)", block, re.M)
        documented = [one for head in heads for one in re.split(r",\s*", head)]
        assert documented, block
        assert set(documented) == set(parameters), set(documented) ^ set(parameters)
        assert "Raises" in sections or name == "State.finish"
    returns = inspect.signature(thing).return_annotation if not inspect.isclass(thing) else None
    assert ("Returns" in sections) == (returns not in (None, "None", "Iterator[None]"))


@pytest.mark.parametrize(("name", "thing"), MEMBERS)
def test_everything_public_is_typed(name, thing):
    thing = thing.__init__ if inspect.isclass(thing) else thing
    signature = inspect.signature(thing)
    for parameter in signature.parameters.values():
        assert parameter.name == "self" or parameter.annotation is not parameter.empty, name
    assert signature.return_annotation is not signature.empty


def test_types_are_shipped():
    shipped = (ROOT / "pyproject.toml").read_text("utf-8")
    for name in ("py.typed", "__init__.pyi"):
        assert (PACKAGE / name).is_file()
        assert f'"{name}"' in shipped


def test_attention_and_explain_take_the_same_arguments():
    one, other = (inspect.signature(f).parameters for f in (fastattn.attention, fastattn.explain))
    assert dict(one) == dict(other)


NUMPY_BROADCASTS = ("broadcast_shapes", "broadcast_arrays")


def numpy_broadcasts_in(source):
    """Uses of what NumPy limits to 32 dims, while its arrays have 64."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in NUMPY_BROADCASTS:
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == "numpy":
            yield from (alias.name for alias in node.names if alias.name in NUMPY_BROADCASTS)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_more_dims_than_numpy_has_are_forbidden(path):
    found = list(numpy_broadcasts_in(path.read_text(encoding="utf-8")))
    assert not found, f"{module_of(path)} uses NumPy's {found}: see _core.arrays"


def test_the_reader_of_broadcasts_sees_them():
    assert list(numpy_broadcasts_in("import numpy as np\nnp.broadcast_shapes((1,), (2,))"))
    assert list(numpy_broadcasts_in("def f(): from numpy import broadcast_arrays as b"))
    assert not list(numpy_broadcasts_in("from .arrays import broadcast_shapes\nbroadcast_shapes()"))


def test_operations_and_kernels_are_one_table():
    from fastattn._engine.operations import OPERATIONS, entry_names
    from fastattn._engine.variants import KERNEL, VARIANTS
    from fastattn._numba.entry_points import ENTRIES
    from fastattn._numba.machine.emit import has
    from fastattn._numba.stages import attention
    from fastattn.reference import backend as reference

    named = {name for operation in OPERATIONS for name in entry_names(operation)}
    kernels = {f"{KERNEL}_{one.name}" for one in VARIANTS}
    absent = {name for name in kernels if not has(getattr(attention, name).features)}
    assert named - absent == set(ENTRIES)
    for operation in OPERATIONS:
        assert callable(getattr(reference, operation.name)), operation.name
        assert operation.function.__module__ == f"fastattn._engine.{operation.file}"
