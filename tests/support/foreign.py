"""Arrays of other libraries, as much of them as fastattn looks at."""

import ctypes
import json
import os
import struct
import tempfile
from typing import Any

import numpy as np

from fastattn._core import foreign


class Exported:
    """An array on the CPU that speaks DLPack and nothing else."""

    def __init__(self, memory: np.ndarray, device: int = 1) -> None:
        self.memory, self._device = memory, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device, 0

    def __dlpack__(self, **options: Any) -> Any:
        return self.memory.__dlpack__(**options)

    def __len__(self) -> int:
        return len(self.memory)

    def __getitem__(self, at: Any) -> Any:
        raise AssertionError("it was read number by number")


class ExportedBefore(Exported):
    """The same of a library that knows the first form of DLPack only."""

    def __dlpack__(self, stream: Any = None) -> Any:
        return self.memory.__dlpack__()


def described(capsule: Any) -> Any:
    """Find what a capsule says of its tensor, in either form of DLPack."""
    name, get = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    kind = name(capsule)
    at = {b"dltensor": 0, b"dltensor_versioned": 32}[kind]
    return foreign._Tensor.from_address(get(capsule, kind) + at)


class Float8(Exported):
    """Numbers that NumPy has no type for."""

    def __dlpack__(self, **options: Any) -> Any:
        capsule = super().__dlpack__(**options)
        described(capsule).code = 10
        return capsule


class Tensor:
    """As much of a torch tensor as refusals look at; its methods give what torch's would."""

    __module__ = "torch"

    def __init__(self, error: type[Exception] = TypeError, **attributes: Any) -> None:
        self._error = error
        self.__dict__.update(attributes)
        for method in attributes.pop("methods", ()):
            setattr(self, method, lambda: np.ones((3, 4)))

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise self._error("no NumPy array of that")

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("not exported")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Brain16(Exported):
    """A bfloat16 tensor on the CPU: NumPy refuses it, and DLPack shows its memory."""

    def __init__(self, numbers: Any = None) -> None:
        numbers = np.ones((3, 4)) if numbers is None else numbers
        bits = np.asarray(numbers, np.float32).view(np.uint32) >> 16
        super().__init__(bits.astype(np.uint16))

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("Got unsupported ScalarType BFloat16")

    def __dlpack__(self, **options: Any) -> Any:
        capsule = super().__dlpack__(**options)
        described(capsule).code = 4
        return capsule

    def float(self) -> Any:
        return (self.memory.astype(np.uint32) << 16).view(np.float32)


class Nowhere(Brain16):
    """A tensor whose memory is no memory, as that of an empty one is in other libraries."""

    def __dlpack__(self, **options: Any) -> Any:
        capsule = super().__dlpack__(**options)
        described(capsule).data = None
        return capsule


class MultiheadAttention:
    """As much of PyTorch's module as is looked at, while it trains."""

    __module__ = "torch.nn.modules.activation"
    num_heads, add_zero_attn, batch_first = 2, False, True
    training, dropout = True, 0.1
    _forward_hooks: dict[int, Any] = {}  # noqa: RUF012
    _forward_pre_hooks: dict[int, Any] = {}  # noqa: RUF012
    q_proj_weight = k_proj_weight = v_proj_weight = in_proj_bias = bias_k = bias_v = None
    in_proj_weight = np.ones((12, 4))
    out_proj = type("Linear", (), {"weight": np.ones((4, 4)), "bias": None})()

    def forward(self, query: Any) -> Any:
        raise AssertionError("it was run")

    def eval(self) -> Any:
        self.training = False
        return self


class Lists:
    """An Arrow column of lists."""

    __module__ = "pyarrow.lib"

    def __init__(self, kind: str) -> None:
        self.type = kind
        self.values, self.offsets = np.ones(3), np.array([0, 1, 3])

    def __len__(self) -> int:
        return 2

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        lists = np.empty(2, object)
        lists[:] = [[1.0], [2.0, 3.0]]
        return lists

    def flatten(self) -> Any:
        return np.ones(6)


class Lazy:
    def __dask_graph__(self) -> dict[str, Any]:
        return {}

    def compute(self) -> Any:
        return np.ones((3, 4))


class Sparse:
    shape = (3, 4)

    def tocsr(self) -> Any:
        return self

    def toarray(self) -> Any:
        return np.ones((3, 4))


class Series(list):
    """As much of a pandas Series as matters."""

    def to_frame(self) -> Any:
        return np.array(self)[:, None]


def safetensors(kind: str, size: int) -> Any:
    """Write a file of weights of one dtype, and return where."""
    shapes = {"in_proj_weight": (12, 4), "out_proj.weight": (4, 4)}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + shape[0] * shape[1] * size
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    place, path = tempfile.mkstemp(suffix=".safetensors")
    with os.fdopen(place, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + bytes(end))
    return path
