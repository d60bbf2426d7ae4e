"""What surrounds a call changes no bit of it: the caller's `np.errstate`, and the float environment
that another library has set on the thread."""

import ctypes
import platform
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial

import calls
import numpy as np
import pytest

import fastattn
from fastattn import reference
from fastattn._core import kept
from fastattn._core.environment import default_environment

FLUSH_TO_ZERO, DENORMALS_ARE_ZERO, ROUND_UP = 0x8000, 0x0040, 0x4000
_CONTROL_WORD = 28  # where the C library of x86-64 keeps that of SSE in what `fegetenv` fills

HAS_MXCSR = platform.machine().lower() in ("x86_64", "amd64") and sys.platform == "linux"
needs_mxcsr = pytest.mark.skipif(
    not HAS_MXCSR, reason="the control word of SSE arithmetic, and where the C library keeps it"
)

# Callables of the package that compute nothing.
NOT_CALLED = {
    "AllocationResult",
    "SharedAllocation",
    "set_threads",
    "share_threads",
    "show_config",
    "threads",
    "use_backend",
    "warmup",
}


def control_word() -> int:
    saved = ctypes.create_string_buffer(64)
    ctypes.CDLL("libm.so.6").fegetenv(saved)
    return struct.unpack_from("<I", saved, _CONTROL_WORD)[0] & 0xFFC0  # without what was met


@contextmanager
def another_environment(bits: int) -> Iterator[None]:
    """Let this thread compute as another library may have set it."""
    library, saved = ctypes.CDLL("libm.so.6"), ctypes.create_string_buffer(64)
    library.fegetenv(saved)
    other = ctypes.create_string_buffer(saved.raw)
    word = struct.unpack_from("<I", saved, _CONTROL_WORD)[0]
    struct.pack_into("<I", other, _CONTROL_WORD, word | bits)
    library.fesetenv(other)
    try:
        yield
    finally:
        library.fesetenv(saved)


@contextmanager
def surrounded(bits: int) -> Iterator[None]:
    """NumPy told to raise whatever it can, on a thread in another environment."""
    with np.errstate(all="raise"), another_environment(bits) if HAS_MXCSR else nullcontext():
        yield


def compare(dtype: str, kind: str, seed: int, bits: int) -> None:
    """Do every call as it is, and planned anew where others have set the environment."""
    for name, call in calls.every_call(dtype, kind, seed):
        calls.forget()
        expected = calls.results(call)
        calls.forget()
        with surrounded(bits):
            found = calls.results(call)
        calls.assert_same(found, expected, name)


@pytest.mark.parametrize("kind", calls.KINDS)
@pytest.mark.parametrize("dtype", calls.DTYPES)
def test_neither_flushing_to_zero_nor_raising_changes_a_call(exact_backend, dtype, kind, seed):
    compare(dtype, kind, seed, FLUSH_TO_ZERO | DENORMALS_ARE_ZERO)


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "tiny"), ("float64", "small")])
def test_nor_a_call_that_the_reference_does(dtype, kind, seed):
    with fastattn.use_backend("reference"):
        compare(dtype, kind, seed, FLUSH_TO_ZERO | DENORMALS_ARE_ZERO)


@needs_mxcsr
def test_another_rounding_changes_no_bit(exact_backend, seed):
    compare("float32", "plain", seed, ROUND_UP)


@pytest.mark.parametrize("kind", calls.KINDS)
def test_the_reference_itself_and_pictures_raise_nothing(kind, seed):
    """Their own `np.errstate` says so."""
    pytest.importorskip("matplotlib")
    from fastattn.plot import AllocationDisplay

    rng = np.random.default_rng(seed)
    amounts = abs(calls.numbers(rng, (3, 6), "float32", kind)).astype(np.float64)
    scores = calls.numbers(rng, (4, 6), "float64", kind)
    with np.errstate(all="raise"):
        reference.allocate_shared(amounts, [3.0, 1e-310, 0.0], [1e-310, 1e300, 0, 1, 2, np.inf])
        reference.attention(scores, scores, scores, sinks=1e-300, similarity="cosine")
        reference.attention(scores, scores, scores, softcap=1e-40, similarity="euclidean")
        reference.merge_states(scores[None], scores[None, :, 0])
        for function in (reference.softmax, reference.log_softmax, reference.logsumexp):
            function(scores)
        AllocationDisplay.from_allocation(amounts[0])


@needs_mxcsr
@pytest.mark.parametrize("bits", [FLUSH_TO_ZERO, DENORMALS_ARE_ZERO, ROUND_UP])
def test_an_environment_is_given_back(bits):
    """Each bit is noticed alone, and is there again afterwards, also after an error."""
    tiny = np.array([2.0**-1030, 1.0])
    before = control_word()
    with another_environment(bits):
        with suppress(ZeroDivisionError), default_environment():
            within, kept, rounded = control_word(), tiny / 2, 1.0 / np.array(3.0)
            raise ZeroDivisionError
        after = control_word()
    assert within == before
    assert after == before | bits
    assert kept[0] == 2.0**-1031
    assert rounded == 1.0 / 3.0


def test_every_public_function_is_among_the_calls(seed):
    called = " ".join(name for name, _ in calls.every_call("float32", "plain", seed))
    public = {name for name in fastattn.__all__ if callable(getattr(fastattn, name))}
    missing = {name for name in public - NOT_CALLED if name not in called.replace(",", "").split()}
    assert not missing


# Where subnormals count as zeros, Python takes them for equal, and their hashes are.
SUBNORMALS = (2.0**-1040, 0.0, 3 * 2.0**-1040, -(2.0**-1040), 2.0**-1074)


def of_subnormals(option):
    """Calls to which such a number makes a difference, or would if it were another one."""
    rng = np.random.default_rng(0)
    query, key = 2.0**500 * rng.uniform(1, 2, (2, 4, 3)), 2.0**539 * rng.uniform(1, 2, (2, 5, 3))
    value = rng.standard_normal((2, 5, 3))
    scores = 2.0**1020 * rng.uniform(1, 2, (4, 5))
    attend = partial(fastattn.attention, query, key, value, return_lse=True)
    yield "attention", lambda x: attend(**{option: x})
    if option == "scale":
        packed = query[0], key[0], value[0], [0, 4], [0, 5]
        yield "per head", lambda x: attend(scale=[x, -x])
        yield "similarity", lambda x: fastattn.similarity(query, key, metric="dot", scale=x)
        yield "softmax", lambda x: fastattn.softmax(scores, scale=x)
        yield "logsumexp", lambda x: fastattn.logsumexp(scores, scale=x)
        yield "varlen", lambda x: fastattn.attention_varlen(*packed, scale=x, return_lse=True)


@needs_mxcsr
@pytest.mark.parametrize("memo", ["dict", "own"])
@pytest.mark.parametrize("option", ["scale", "softcap"])
def test_numbers_that_count_as_zeros_are_told_apart(exact_backend, option, memo, monkeypatch):
    if memo == "dict":  # as where nothing is compiled
        monkeypatch.setattr(kept, "calls", kept.DictCalls())
        monkeypatch.setattr(kept, "find", kept.calls.find)
    numbers = SUBNORMALS if option == "scale" else [x for x in SUBNORMALS if x > 0]
    for name, call in of_subnormals(option):
        calls.forget()
        expected = [calls.results(partial(call, x)) for x in numbers]
        if option == "scale":
            assert len({one[-1].tobytes() for one in expected}) > 1
        calls.forget()
        with another_environment(FLUSH_TO_ZERO | DENORMALS_ARE_ZERO):
            found = [calls.results(partial(call, x)) for x in numbers]
        for x, one, other in zip(numbers, found, expected, strict=True):
            calls.assert_same(one, other, f"{name} {x!r}")
