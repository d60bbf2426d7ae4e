"""Arrays of other libraries: taken where they lie, or refused with what to write instead.

No other library is imported: its arrays are known by the protocols they follow (``__array__``,
DLPack) and the methods they have.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

__all__ = ["bfloat16", "explain_objects", "explain_refusal", "take"]

# From dlpack.h: device types whose memory the CPU reads, and the code of bfloat16.
_READABLE = (1, 3, 11, 13)
_UINT, _BFLOAT = 1, 4
_NAME = b"dltensor"


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


def take(name: str, x: Any) -> np.ndarray | None:
    """Look at the memory of an array on the CPU that speaks DLPack; None where that does not work.

    bfloat16, which NumPy refuses, passes as integers of its size and is viewed as what it is.
    """
    try:
        if x.__dlpack_device__()[0] not in _READABLE:
            return None
        capsule = x.__dlpack__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        tensor = _Tensor.from_address(get(capsule, _NAME))
        nowhere = tensor.data is None
        half = (tensor.code, tensor.bits, tensor.lanes) == (_BFLOAT, 16, 1)
        if half:
            if bfloat16() is None:
                raise _NoBfloat16
            tensor.code = _UINT  # of this export alone: every call of __dlpack__ makes its own
        array = np.from_dlpack(_Export(capsule))
    except _NoBfloat16:
        raise TypeError(
            f"{name} holds bfloat16, which NumPy learns from ml_dtypes: `pip install ml_dtypes`"
            + _code(", or pass `{}.float()`, which is float32", name, x, "float")
        ) from None
    except Exception:
        # Foreign types raise whatever they like here.
        return None
    if nowhere and array.size:
        return None  # memory of NumPy's own, with anything in it
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
    device = str(getattr(x, "device", ""))
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
        + _code(": pass `{}.float()`", name, x, "float")
    )


def can_be_taken(x: Any) -> bool:
    """Tell whether DLPack would show what `x` means: it knows nothing of a sign kept apart."""
    return hasattr(x, "__dlpack__") and not (hasattr(x, "is_neg") and x.is_neg())


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
