"""Arrays of other libraries: taken where they lie, or refused with what to write instead.

No other library is imported: its arrays are known by the protocols they follow (``__array__``,
DLPack) and the methods they have.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

__all__ = ["bfloat16", "explain_objects", "explain_refusal", "is_only_exported", "take"]

# From dlpack.h: device types whose memory the CPU reads, others that have a name, the code of
# bfloat16, and where in each kind of capsule the tensor is described.
_READABLE = (1, 3, 11, 13)
_DEVICES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI"}
_UINT, _BFLOAT = 1, 4
_VERSION = (1, 0)
_VERSIONED = b"dltensor_versioned"
_TENSOR_AT = {b"dltensor": 0, _VERSIONED: 32}


class _Tensor(ctypes.Structure):
    """The first fields of DLPack's DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
    )


class _Export:
    """A capsule on its way to NumPy."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **options: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def bfloat16() -> Any:
    """Return ml_dtypes' bfloat16 if it is installed, else None."""
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return None
    return bfloat16


def is_only_exported(x: Any) -> bool:
    """Tell an array that NumPy knows by DLPack alone, as which it would be one object to it."""
    return hasattr(x, "__dlpack__") and not hasattr(x, "__array__")


def take(name: str, x: Any, error: Exception | None = None) -> np.ndarray:
    """Look at the memory of an array on the CPU that speaks DLPack, or say what to pass instead.

    bfloat16, which NumPy refuses, passes as integers of its size and is viewed as what it is.
    `error` is what NumPy said of `x`.
    """
    try:
        return _taken(x)
    except _NoBfloat16:
        raise TypeError(
            f"{name} holds bfloat16, which NumPy learns from ml_dtypes: `pip install ml_dtypes`"
            + _code(", or pass `{}.float()`, which is float32", name, x, "float")
        ) from None
    except Exception as found:
        # Foreign types raise whatever they like here.
        raise TypeError(explain_refusal(name, x, error or found)) from (error or found)


def _taken(x: Any) -> np.ndarray:
    if hasattr(x, "is_neg") and x.is_neg():
        raise BufferError("DLPack knows nothing of a sign kept apart")
    if x.__dlpack_device__()[0] not in _READABLE:
        raise BufferError("its memory is not that of the CPU")
    try:
        capsule = x.__dlpack__(max_version=_VERSION)  # which knows of arrays that are read-only
    except TypeError:
        capsule = x.__dlpack__()
    get_name, get = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    kind = get_name(capsule)
    place = get(capsule, kind)
    if kind == _VERSIONED and ctypes.c_uint32.from_address(place).value != _VERSION[0]:
        raise BufferError("it is exported by another version of DLPack than 1")
    tensor = _Tensor.from_address(place + _TENSOR_AT[kind])
    nowhere = tensor.data is None
    half = (tensor.code, tensor.bits, tensor.lanes) == (_BFLOAT, 16, 1)
    if half:
        if bfloat16() is None:
            raise _NoBfloat16
        tensor.code = _UINT  # of this export alone: every call of __dlpack__ makes its own
    array = np.from_dlpack(_Export(capsule))
    if nowhere and array.size:  # memory of NumPy's own then, with anything in it
        raise BufferError("it has no memory")
    return array.view(bfloat16()) if half else array


class _NoBfloat16(Exception):
    """bfloat16 without ml_dtypes."""


def _code(text: str, name: str, x: Any, method: str) -> str:
    return text.format(name) if hasattr(x, method) else ""


def explain_refusal(name: str, x: Any, error: Exception) -> str:
    """Say what to write instead of an array that NumPy does not take, and that `take` does not."""
    what = f"{name} of type {type(x).__module__}.{type(x).__qualname__}"
    if not hasattr(x, "__dlpack__"):
        return f"{what} does not convert to a NumPy array ({error}): pass rows of equal length"
    if getattr(x, "is_nested", False) is True:
        return (
            f"{what} is nested: attention_varlen takes such sequences end to end, with their "
            f"offsets: `{name}.values()` and `{name}.offsets()` of the layout torch.jagged"
        )
    if getattr(x, "requires_grad", False) is True:
        return (
            f"{what} requires a gradient, and none is computed here: pass `{name}.detach()`, which "
            "shares its memory"
        )
    if not _strided(x):
        return f"{what} is sparse: pass `{name}.to_dense()`"
    device = str(getattr(x, "device", "")) or _device(x)
    if device == "meta":
        return f"{what} has no memory behind it, only a shape {tuple(x.shape)}"
    if device and "cpu" not in device.lower():
        way = next((way for way in ("cpu", "get") if hasattr(x, way)), "")
        return f"{what} is on the device {device}, and fastattn computes on the CPU: " + (
            f"pass `{name}.{way}()`" if way else "copy it there first"
        )
    for method, bit in (("resolve_conj", "is_conj"), ("resolve_neg", "is_neg")):
        if hasattr(x, bit) and getattr(x, bit)():
            return f"{what} stands for numbers that are not in memory: pass `{name}.{method}()`"
    if getattr(x, "is_quantized", False) is True:
        return f"{what} is quantized: pass `{name}.dequantize()`"
    return (
        f"{what} and dtype {getattr(x, 'dtype', '?')} does not convert to a NumPy array ({error})"
        + (
            f": pass `{name}.float()`"
            if hasattr(x, "float")
            else ": pass a copy of it in float32 or float64, in the memory of the CPU"
        )
    )


def _device(x: Any) -> str:
    """Name the device that DLPack tells of, unless it is the CPU."""
    try:
        number = int(x.__dlpack_device__()[0])
    except Exception:
        return ""
    return "" if number in _READABLE else _DEVICES.get(number, f"number {number} of DLPack")


def _strided(x: Any) -> bool:
    layout = str(getattr(x, "layout", ""))
    return "sparse" not in layout and "mkldnn" not in layout


def explain_objects(name: str, x: Any) -> str | None:
    """Say what to pass instead of an object of which NumPy would make an array of objects."""
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    if kind.startswith("pyarrow"):
        column = name
        if hasattr(x, "combine_chunks"):
            column = f"{name}.combine_chunks()"
        if "list" in str(getattr(x, "type", "")).lower():
            if "fixed_size" in str(x.type):
                return (
                    f"{name} is an Arrow column of {x.type}: pass "
                    f"`np.asarray({column}.flatten()).reshape(len({name}), -1)`"
                )
            return (
                f"{name} is an Arrow column of {x.type}, lists of any lengths: what they hold is "
                f"`{column}.values`, and attention_varlen takes where each begins, "
                f"`{column}.offsets`, as its splits"
            )
        return None
    if callable(x) and not hasattr(x, "__array__"):
        return (
            f"{name} is a function ({getattr(x, '__qualname__', kind)}), and an array is needed: "
            "call it first, and pass what it returns"
        )
    return None
