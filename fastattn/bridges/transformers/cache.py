"""Keys and values of a generating model in `fastattn.KVCache`: nothing that is there is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs

import fastattn
from fastattn.bridges.torch.tensors import array_of
from fastattn.bridges.transformers.deferred import Deferred

__all__ = ["FastattnCache", "FastattnLayer"]


class FastattnLayer(CacheLayerMixin):
    """Keys and values of one layer; all sequences are equally long.

    Parameters
    ----------
    window : int, optional
        Tokens that a query sees, its own among them; what is older is given back.
    dtype : optional
        How they are stored, as for `fastattn.KVCache`. None: as the model computes.
    """

    is_croppable = True
    is_compileable = False

    def __init__(self, window: int | None = None, dtype: Any = None) -> None:
        super().__init__()
        self.keys: Deferred | None
        self.values: Deferred | None
        self.window, self.storage = window, dtype
        self.is_sliding = window is not None
        self.stored: fastattn.KVCache | None = None
        self.length = 0

    def __repr__(self) -> str:
        return f"FastattnLayer({self.stored})"

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Begin, now that sizes and dtype are known."""
        batch, heads, _, features = key_states.shape
        self.stored = fastattn.KVCache(
            batch,
            heads,
            features,
            dtype=array_of(key_states[:0]).dtype if self.storage is None else self.storage,
            value_dim=value_states.shape[-1],
            window=None if self.window is None else (self.window - 1, None),
        )
        self.float_type, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new keys and values, and return all of them by name."""
        if self.stored is None:
            self.lazy_initialization(key_states, value_states)
        assert self.stored is not None
        self.stored.append(array_of(key_states), array_of(value_states))
        self.length += key_states.shape[-2]
        self._name()
        return self.keys, self.values

    def _name(self) -> None:
        """Name what is stored by tensors, which models pass on to their attention function."""
        stored = self.stored
        assert stored is not None

        def made(part: int) -> torch.Tensor:
            array = stored.dense()[part]
            if array.dtype.name == "bfloat16":
                array = array.astype(np.float32)
            return torch.from_numpy(array).to(self.float_type)

        def name(part: int, features: int) -> Deferred:
            shape = (*stored.batch_shape, stored.heads, self.length, features)
            return Deferred.of(stored, shape, self.float_type, lambda: made(part))

        self.keys, self.values = name(0, stored.head_dim), name(1, stored.value_dim)

    def get_seq_length(self) -> int:
        """Return how many tokens there are."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys there will be, and the position of the first; positions stay."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is no end."""
        return -1

    def offload(self) -> None:
        """Stay where it is."""

    prefetch = offload

    def reset(self) -> None:
        """Begin again."""
        self.stored, self.keys, self.values = None, None, None
        self.length, self.is_initialized = 0, False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, as many as the number is below 0."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of tokens, not {tokens_to_remove}")
        if self.stored is not None and tokens_to_remove:
            length = max(self.length + tokens_to_remove, 0)
            self.stored.truncate(length)  # refuses where what it needs was given back
            self.length = length
            self._name()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let each sequence go on from another; none is copied."""
        self._select(beam_idx.cpu().numpy())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let so many sequences go on from each."""
        if self.stored is not None:
            self._select(np.repeat(np.arange(self.stored.batch_shape[0]), repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with chosen sequences alone."""
        if self.stored is not None:
            self._select(np.arange(self.stored.batch_shape[0])[np.asarray(indices)])

    def _select(self, chosen: np.ndarray) -> None:
        if self.stored is not None:
            self.stored.select(chosen)
            self._name()


class FastattnCache(Cache):
    """A Transformers cache whose layers are `fastattn.KVCache`, for attention by "fastattn".

    New tokens are appended without copying what is there, beams share what they have in common,
    layers with a sliding window give back what no token to come sees. Other attention functions
    can read it, by copies.

    Parameters
    ----------
    config : transformers.PreTrainedConfig, optional
        Of the model, which says which layers have a window. None: no layer has.
    dtype : optional
        How keys and values are stored, as for `fastattn.KVCache`: "float16" or "int8" take a half
        or a quarter of the memory. None: as the model computes.
    """

    def __init__(self, config: Any = None, *, dtype: Any = None) -> None:
        if config is None:
            super().__init__(layer_class_to_replicate=lambda: FastattnLayer(None, dtype))
            return
        types, arguments = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        unknown = sorted({t for t in types if not t.endswith("attention") or "linear" in t})
        if unknown:
            raise ValueError(f"layers of the kinds {unknown} keep no keys and values")
        windows = [given.get("sliding_window") for given in arguments]
        super().__init__(layers=[FastattnLayer(window, dtype) for window in windows])

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.stored.nbytes for layer in self.layers if layer.stored is not None)
