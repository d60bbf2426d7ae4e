"""What a model's mask says, read from the functions that Transformers makes it of.

A model asks for a mask by a function of two positions, composed of the library's own: causal, a
window, chunks, packed documents; and by a padding mask, one bool per token. Each of these is a few
numbers, or one per token, and they say everything: no array of queries times keys is made. Where a
function is somebody else's, the mask is made in full, as for "sdpa".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import masking_utils

from fastattn.bridges.transformers.deferred import Deferred

__all__ = ["Visibility", "mask_of"]

Ids = tuple[np.ndarray, np.ndarray]  # of queries and keys, (batch or 1, length)


@dataclass
class Visibility:
    """Who sees whom, in few words.

    `offset` is the position of query row 0 on the key axis. A key is visible where it is within
    its sequence's length, causal and window allow it, and each pair of ids is equal. `documents`
    tells that the positions of a packed row begin anew with each of its texts.
    """

    queries: int
    keys: int
    offset: int
    causal: bool = False
    left: int | None = None
    right: int | None = None
    lengths: np.ndarray | None = None
    ids: list[Ids] = field(default_factory=list)
    documents: bool = False

    def options(self, lengths_as_ids: bool = False) -> dict[str, Any]:
        """Spell it as options of `fastattn.attention`."""
        found: dict[str, Any] = {"causal": self.causal}
        if self.left is not None or self.right is not None:
            found["window"] = self.left, self.right
        if self.causal or "window" in found:
            found["query_offset"] = self.offset
        ids = list(self.ids)
        if self.lengths is not None and not lengths_as_ids:
            found["key_lengths"] = self.lengths[:, None]
        elif self.lengths is not None:
            ids.append(_ids_of_keys(np.arange(self.keys) < self.lengths[:, None], self.queries))
        if ids:
            query, key = _combined(ids)
            found["query_segments"], found["key_segments"] = query[:, None], key[:, None]
        return found


def _ids_of_keys(seen: np.ndarray, queries: int) -> Ids:
    return np.ones((1, queries), np.int64), seen.astype(np.int64)


def _combined(pairs: list[Ids]) -> Ids:
    """Give tuples of ids a number each, so that they are equal where all of them are."""
    query, key = pairs[0]
    for more_query, more_key in pairs[1:]:
        low = min(more_query.min(initial=0), more_key.min(initial=0))
        count = max(more_query.max(initial=0), more_key.max(initial=0)) - low + 1
        query, key = query * count + (more_query - low), key * count + (more_key - low)
    return query, key


def mask_of(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **others: Any,
) -> torch.Tensor | None:
    """Make the mask of a model, by description if it can be described."""
    sizes = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length}
    places = {"q_offset": q_offset, "kv_offset": kv_offset}

    def dense() -> torch.Tensor | None:
        return masking_utils.sdpa_mask(
            **sizes,
            **places,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=False,
            use_vmap=use_vmap,
            device=device,
        )

    if use_vmap:
        return dense()
    start = int(q_offset)
    found = Visibility(q_length, kv_length, start - kv_offset)
    positions = np.arange(q_length) + start, np.arange(kv_length) + kv_offset
    if not _read(mask_function, found, (positions[0][None], positions[1][None])):
        return dense()
    padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        _read_padding(padding, found, kv_offset)
    shape = batch_size, 1, q_length, kv_length
    return Deferred.of(found, shape, torch.bool, dense)


def _read_padding(padding: torch.Tensor, found: Visibility, first: int) -> None:
    """Add a padding mask, (batch, keys) and more: a length each, or ids where it is not so."""
    seen = padding.detach().cpu().numpy()[:, first : first + found.keys].astype(bool)
    if seen.all():
        return
    lengths = seen.sum(axis=1)
    if ((np.arange(found.keys) < lengths[:, None]) == seen).all():
        found.lengths = lengths
    else:
        found.ids.append(_ids_of_keys(seen, found.queries))


def _read(function: Callable[..., Any], found: Visibility, positions: Ids) -> bool:
    """Add what a mask function says; False if that is more than can be told."""
    if getattr(function, "__module__", None) != masking_utils.__name__:
        return False
    maker = function.__qualname__.split(".")[0]
    held = {
        name: cell.cell_contents
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        )
    }
    if maker == "causal_mask_function":
        found.causal = True
    elif maker == "bidirectional_mask_function":
        pass
    elif maker == "and_masks":
        # Documents first, wherever they stand: within them positions begin anew.
        parts = sorted(held["mask_functions"], key=lambda one: not _tells_documents(one))
        return all(_read(one, found, positions) for one in parts)
    elif maker == "sliding_window_overlay":
        found.left = _least(found.left, held["sliding_window"] - 1)
    elif maker == "sliding_window_bidirectional_overlay":
        found.left = _least(found.left, held["sliding_window"])
        found.right = _least(found.right, held["sliding_window"])
    elif maker == "chunked_overlay":
        padding = np.asarray(held["left_padding"].cpu())[:, None]
        query, key = ((x - padding) // held["chunk_size"] for x in positions)
        found.ids.append((query, key))
    elif maker == "packed_sequence_mask_function":
        ids = held["packed_sequence_mask"].cpu().numpy().astype(np.int64)
        found.ids.append((ids, ids))
        found.documents = True
    elif maker == "remap_positions_for_packed_sequence":
        own = held["position_ids"].cpu().numpy()
        return found.documents and _read(held["mask_function"], found, (own, own))
    else:
        return False
    return True


def _tells_documents(function: Callable[..., Any]) -> bool:
    name: str = getattr(function, "__qualname__", "")
    return name.startswith("packed_sequence_mask_function.")


def _least(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)
