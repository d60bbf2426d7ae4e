"""What counts as an array here: acceptance of array-likes, the compute dtype, views, `out`.

Nothing in this room copies an ndarray. Byte order, alignment and strides go to the backend as
they are, because packing reads any storage anyway.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastattn._core import foreign, names
from fastattn._core.environment import default_environment

__all__ = [
    "FLOAT32",
    "FLOAT64",
    "LINE",
    "MOST_DIMS",
    "Layout",
    "as_array",
    "as_numbers",
    "broadcast_arrays",
    "broadcast_shapes",
    "check_dims",
    "check_out",
    "check_size",
    "computed",
    "deliver",
    "dtypes",
    "finite_number",
    "flag",
    "given_dtype",
    "is_bool",
    "is_direct",
    "is_half",
    "new_array",
    "on_lines",
    "per_head",
    "result_array",
    "spread",
    "view",
]

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
LINE = 64  # bytes of a line of the cache
_FLOAT32_NUMBER, _FLOAT64_NUMBER = FLOAT32.num, FLOAT64.num

Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape, strides in bytes


def as_array(name: str, x: Any) -> np.ndarray:
    """Return `x` as a plain ndarray without copying arrays, or say what to do instead."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array of shape {x.shape}, whose mask would not be seen: "
            f"pass `{name}.filled(0)` or `{name}.data`, and say with an option of the call what is "
            "to be left out"
        )
    if hasattr(x, "__dask_graph__") or hasattr(x, "dask"):
        raise TypeError(
            f"{name} is a lazy Dask collection: pass `{name}.compute()`, or compute block by block "
            "(one call per block of queries)"
        )
    if hasattr(x, "tocsr") and not isinstance(x, np.ndarray):
        raise TypeError(
            f"{name} is a sparse matrix of shape {getattr(x, 'shape', '?')}: pass "
            f"`{name}.toarray()`"
        )
    if foreign.is_only_exported(x):
        return foreign.take(name, x)
    try:
        array = np.asarray(x)
    except Exception as error:
        # Foreign types raise whatever they like here (torch: RuntimeError for tensors in a graph).
        return foreign.take(name, x, error)
    if array.dtype.kind == "O" and not isinstance(x, np.ndarray):
        names.refuse_missing(**{name: x})
        reason = foreign.explain_objects(name, x)
        if reason is not None:
            raise TypeError(reason)
    return array


def is_half(dtype: np.dtype) -> bool:
    """Tell whether a dtype is float16 or ml_dtypes' bfloat16, which NumPy itself does not know."""
    return dtype.itemsize == 2 and (dtype.kind == "f" or dtype.name == "bfloat16")


def check_dtype(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    """Raise TypeError unless `dtype` is one the kernels read; return whether it is a float."""
    kind = dtype.kind
    if dtype.num in (_FLOAT32_NUMBER, _FLOAT64_NUMBER) or is_half(dtype):
        return True
    if kind in "biu":
        return False
    what = f"{name} of shape {shape} has dtype {dtype}"
    if kind == "c":
        raise TypeError(
            f"{what}; complex numbers have no order to attend by: pass `np.real({name})`"
        )
    if kind == "f" and dtype.itemsize > 8:
        raise TypeError(f"{what}; extended precision is not computed: `{name}.astype(np.float64)`")
    if kind == "O":
        raise TypeError(
            f"{what}, which holds Python objects (ragged rows, None, or mixed columns?): "
            f"`np.asarray({name}).astype(np.float64)` where every one of them is a number; lists "
            "of different lengths are laid end to end, for attention_varlen"
        )
    if dtype.names:
        raise TypeError(f'{what}; numbers are needed: pass one field, `{name}["{dtype.names[0]}"]`')
    if dtype.type is np.void:
        raise TypeError(
            f"{what}, raw bytes: "
            + (
                f"if they are bfloat16, which NumPy saves so, `{name}.view(ml_dtypes.bfloat16)`"
                if dtype.itemsize == 2
                else "view them as the type that they are"
            )
        )
    raise TypeError(
        f"{what}; numbers are needed: `np.asarray({name}).astype(np.float64)`, if that has a "
        "meaning"
    )


def dtypes(*named: tuple[str, np.dtype, tuple[int, ...]]) -> tuple[np.dtype, np.dtype]:
    """Choose the dtypes to compute in and to return; each operand is (name, dtype, shape).

    Floats promote as `np.result_type` says, float16 with bfloat16 to float32; integers and bools
    give float64. Halves are computed in float32.
    """
    result: np.dtype | None = None
    for name, dtype, shape in named:
        if not check_dtype(name, dtype, shape) or dtype.num == _FLOAT64_NUMBER:
            dtype = FLOAT64
        if result is None or dtype.num == _FLOAT64_NUMBER:
            result = dtype
        elif result.num != dtype.num and result.num != _FLOAT64_NUMBER:
            result = FLOAT32
    if result is None or result.num == _FLOAT32_NUMBER:
        return FLOAT32, FLOAT32
    if result.num == _FLOAT64_NUMBER:
        return FLOAT64, FLOAT64
    return FLOAT32, result.newbyteorder("=")


def computed(dtype: np.dtype) -> np.dtype:
    """Return the dtype in which a result of `dtype` is computed."""
    return FLOAT64 if dtype.num == _FLOAT64_NUMBER else FLOAT32


def as_numbers(name: str, x: Any) -> np.ndarray:
    """Accept an array of numbers that an option is, and no bools: those are what options switch."""
    array = as_array(name, x)
    check_dtype(name, array.dtype, array.shape)
    if given_dtype(x, array) == np.bool_:
        raise TypeError(
            f"{name} of shape {array.shape} has dtype bool, and numbers are meant: True for 1 and "
            f"False for 0 is `np.asarray({name}, np.float64)`"
        )
    return array


def per_head(
    name: str, x: Any, batch: tuple[int, ...], dtype: np.dtype, lowest_hides: bool = False
) -> np.ndarray:
    """Return one number per head, or broadcast to the batch dims, as a checked copy in `dtype`.

    -inf is accepted where `lowest_hides`.
    """
    array = as_numbers(name, x)
    shape = array.shape
    if not batch and shape == (1,):
        array = array.reshape(())
    padded = (1,) * (len(batch) - array.ndim) + array.shape
    if array.ndim > len(batch) or any(
        n not in (1, size) for n, size in zip(padded, batch, strict=True)
    ):
        raise ValueError(
            f"{name} of shape {shape} does not broadcast to the batch dims {batch}, heads last: "
            + (f"one number per head has shape ({batch[-1]},)" if batch else "pass one number")
        )
    with default_environment():
        numbers = np.array(array, dtype=dtype, order="C")
    wrong = ~np.isfinite(numbers)
    if lowest_hides:
        wrong &= numbers != -np.inf
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        held = f"{name} of shape {shape} holds {array[at]}" + (f" at {at}" if at else "")
        if np.isfinite(array[at]):
            most = float(np.finfo(dtype).max)
            raise ValueError(
                f"{held}, beyond the range of {dtype} (up to {most:.2g}), in which these operands "
                f"are computed: `np.clip({name}, {-most:.2g}, {most:.2g})`, or pass query, key "
                "and value in float64"
            )
        raise ValueError(
            f"{held}: every entry must be finite" + (" or -inf" if lowest_hides else "")
        )
    return numbers


def view(array: np.ndarray, layout: Layout, writeable: bool = False) -> np.ndarray:
    """Look at `array`'s memory with another shape and strides; read-only unless asked otherwise.

    Read-only always: numba types a writeable and a read-only array apart, and would compile twice.
    """
    shape, strides = layout
    # 1 µs instead of the 4 µs of as_strided, which a small call makes up to six times.
    seen = None
    if array.flags.c_contiguous:
        seen = np.ndarray(shape, array.dtype, array, 0, strides)
    elif array.shape == shape and array.strides == strides:
        seen = array.view(np.ndarray)
    if seen is not None:
        if not writeable:
            seen.flags.writeable = False
        return seen
    return np.lib.stride_tricks.as_strided(array, shape, strides, writeable=writeable)


def _may_overlap_itself(array: np.ndarray) -> bool:
    """Conservatively: True unless sorting the strides proves every element its own place."""
    extent = array.itemsize
    for stride, size in sorted(
        (abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True)
    ):
        if size > 1:
            if stride < extent:
                return True
            extent = stride * (size - 1) + extent
    return False


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return `out` as a plain ndarray of this shape and dtype (either byte order), or raise."""
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(
            f"out must be a plain NumPy array of shape {shape} and dtype {dtype}, "
            f"not {type(out).__module__}.{type(out).__qualname__}: `np.empty({shape}, np.{dtype})`"
        )
    if out.shape != shape:
        raise ValueError(
            f"out has shape {out.shape}, the result has {shape}: `np.empty({shape}, np.{dtype})`"
        )
    if out.dtype.newbyteorder("=") != dtype:
        raise TypeError(
            f"out has dtype {out.dtype}, the result of shape {shape} has {dtype}: "
            f"`np.empty({shape}, np.{dtype})`"
        )
    if not out.flags.writeable:
        raise ValueError(
            f"out of shape {shape} is read-only: pass a writeable array, or no out and use the "
            "returned array"
        )
    return np.asarray(out)


def is_direct(out: np.ndarray, dtype: np.dtype, inputs: Iterable[np.ndarray | None]) -> bool:
    """Tell whether a kernel may write straight into `out`; if not, compute aside and copy."""
    return (
        out.dtype == dtype
        and out.flags.aligned
        and (out.flags.c_contiguous or not _may_overlap_itself(out))
        and not any(np.may_share_memory(out, x) for x in inputs if x is not None)
    )


def result_array(
    out: Any, shape: tuple[int, ...], dtype: np.dtype, inputs: Iterable[np.ndarray | None]
) -> np.ndarray:
    """Return `out` where a kernel may write into it, otherwise a new C-contiguous array."""
    if out is not None:
        checked = check_out(out, shape, dtype)
        if is_direct(checked, dtype, inputs):
            return checked
    return new_array(shape, dtype)


def new_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array to be filled."""
    check_size(shape, dtype)
    return np.empty(shape, dtype)


def on_lines(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array to be filled that begins where a line of the cache does."""
    memory = np.empty(math.prod(shape) * dtype.itemsize + LINE, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % LINE)


def check_size(shape: tuple[int, ...], dtype: np.dtype, what: str = "the result") -> None:
    """Raise ValueError for an array that no address space holds."""
    # NumPy makes no array of such sizes even where another size is 0.
    size = math.prod(n or 1 for n in shape) * dtype.itemsize
    if size > sys.maxsize:
        raise ValueError(
            f"{what} would have shape {shape} and dtype {dtype}, {size:.2g} bytes, more than "
            "there are addresses: compute it in parts, some rows at a time"
        )


def deliver(result: np.ndarray, out: Any) -> Any:
    """Return the caller's `out`, filled from `result` if it was computed aside; else `result`."""
    if out is None:
        return result
    if not np.may_share_memory(out, result):
        np.copyto(out, result)
    return out


def is_bool(x: Any) -> bool:
    """Tell a bool, or an array of such, from a number: it is equal to one."""
    return isinstance(x, bool) or str(getattr(x, "dtype", "")) in ("bool", "torch.bool")


def given_dtype(x: Any, array: np.ndarray) -> np.dtype:
    """Return the dtype of the array that `x` became: bool for lists with a bool among numbers."""
    kinds = set(map(type, x)) if isinstance(x, (list, tuple)) else set()
    nested = kinds & {list, tuple} and any(given_dtype(y, array) == np.bool_ for y in x)
    return np.dtype(bool) if nested or kinds & {bool, np.bool_} else array.dtype


def finite_number(name: str, x: Any, hint: str) -> float:
    """Return the real number `x` as a float; `hint` is the end of the error's sentence."""
    if type(x) is not float:
        if is_bool(x) or isinstance(x, (str, bytes, complex)) or np.ndim(x) != 0:
            raise TypeError(f"{name} must be a finite number, not {x!r}; {hint}")
        try:
            x = float(x)
        except OverflowError as error:
            raise ValueError(
                f"{name} must be a finite number, not an integer beyond float64; {hint}"
            ) from error
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be a finite number, not {x!r}; {hint}") from error
    if x - x != 0.0:
        raise ValueError(f"{name} must be a finite number, not {x!r}; {hint}")
    return x  # type: ignore[no-any-return]


def flag(name: str, x: Any) -> bool:
    """Return `x` as a bool if it is one."""
    if isinstance(x, (bool, np.bool_)):
        return bool(x)
    raise TypeError(f"{name} must be True or False, not {x!r}")


# What views in canonical layout have beside the batch leaves room for so many.
MOST_DIMS = 62


def check_dims(*dims: int, most: int = MOST_DIMS) -> None:
    """Raise ValueError for more dims than NumPy's views can have with those that are added."""
    if max(dims) > most:
        raise ValueError(
            f"an operand has {max(dims)} dims, and at most {most} can be computed: join batch dims "
            "with reshape"
        )


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Broadcast shapes as `np.broadcast_shapes` does, which knows 32 dims only."""
    longest = max(map(len, shapes))
    padded = [(1,) * (longest - len(shape)) + shape for shape in shapes]
    found = []
    for sizes in zip(*padded, strict=True):
        wanted = {size for size in sizes if size != 1}
        if len(wanted) > 1:
            raise ValueError("shapes do not broadcast")
        found.append(wanted.pop() if wanted else 1)
    return tuple(found)


def broadcast_arrays(*arrays: np.ndarray) -> list[np.ndarray]:
    """Broadcast arrays as `np.broadcast_arrays` does, which knows 32 dims only; read-only views."""
    shape = broadcast_shapes(*(x.shape for x in arrays))
    return [np.broadcast_to(x, shape) for x in arrays]


def spread(shown: str, *operands: np.ndarray) -> tuple[np.ndarray, ...]:
    """Broadcast all dims but the last two; returns read-only views. `shown` tells the shapes."""
    check_dims(*(x.ndim for x in operands))
    try:
        batch = broadcast_shapes(*(x.shape[:-2] for x in operands))
    except ValueError:
        raise ValueError(
            f"batch dims do not broadcast: {shown}; all dims before the last two must be equal, 1 "
            "or missing"
        ) from None
    return tuple(np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in operands)
