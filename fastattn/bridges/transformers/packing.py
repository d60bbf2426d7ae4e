"""Texts end to end through an encoder, without padding."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fastattn.bridges.transformers.attention import NAME, register, splits

__all__ = ["BATCH_TOKENS", "Packed", "cut", "pack"]

BATCH_TOKENS = 4096


def cut(lengths: Sequence[int], batch_tokens: int) -> Iterator[int]:
    """Count the texts of each batch of at most so many tokens; a longer text is one alone."""
    count = tokens = 0
    for length in lengths:
        if count and tokens + length > batch_tokens:
            yield count
            count = tokens = 0
        count, tokens = count + 1, tokens + length
    if count:
        yield count


class Packed:
    """An encoder that runs texts end to end; made by `pack`."""

    def __init__(self, model: Any, *, invariant: bool = False, batch_tokens: int = BATCH_TOKENS):
        base = getattr(model, "base_model", model)
        if not _takes(base, "position_ids"):
            raise ValueError(
                f"{type(base).__name__} takes no position_ids, so that its texts cannot lie end to "
                "end: pad them"
            )
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}")
        register()
        self.model, self.invariant, self.batch_tokens = base, invariant, batch_tokens
        self._first = _first_position(base)
        # A decoder would fill a cache that nobody asks for.
        caches = getattr(base.config, "use_cache", False) and _takes(base, "use_cache")
        self._without_cache = {"use_cache": False} if caches else {}

    def __repr__(self) -> str:
        return f"<Packed {type(self.model).__name__}, {self.batch_tokens} tokens a batch>"

    def __call__(self, texts: Sequence[Any]) -> list[torch.Tensor]:
        """Compute the last hidden states of texts.

        Parameters
        ----------
        texts : list of lists of int
            Token ids of each text, without padding; texts without tokens are fine.

        Returns
        -------
        states : list of Tensor, (tokens, features)
            One for each text, views of those of their batch.
        """
        with self.ready():
            return [state for states in self.batches(texts) for state in states]

    def batches(self, texts: Sequence[Any]) -> Iterator[Sequence[torch.Tensor]]:
        """Yield the states of one batch after the other; within `ready`."""
        tokens = [_tokens_of(number, text) for number, text in enumerate(texts)]
        first = 0
        for count in cut([len(x) for x in tokens], self.batch_tokens):
            yield self._run(tokens[first : first + count])
            first += count

    def _run(self, tokens: list[np.ndarray]) -> Sequence[torch.Tensor]:
        lengths = [len(x) for x in tokens]
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if ends[-1] == 0:
            width = self.model.config.hidden_size
            return [torch.zeros((0, width), dtype=self.model.dtype) for _ in tokens]
        positions = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths) + self._first
        packed = splits.set(ends)
        try:
            output = self.model(
                input_ids=torch.from_numpy(np.concatenate(tokens))[None],
                position_ids=torch.from_numpy(positions)[None],
                attention_mask=None,
                **self._without_cache,
            )
        finally:
            splits.reset(packed)
        return output.last_hidden_state[0].split(lengths)

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Attend by fastattn, without dropout or gradients; then as before."""
        model = self.model
        training, before = model.training, model.config._attn_implementation
        try:
            model.eval()
            model.set_attn_implementation(NAME)
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.inference_mode())
                if self.invariant:
                    from fastattn.bridges.torch import batch_invariant

                    stack.enter_context(batch_invariant())
                yield
        finally:
            model.set_attn_implementation(before)
            model.train(training)


def pack(model: Any, *, invariant: bool = False, batch_tokens: int = BATCH_TOKENS) -> Packed:
    """Run an encoder over texts end to end: nothing is computed for padding, there being none.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        An encoder like BERT, RoBERTa, DistilBERT or ModernBERT, or a decoder without its cache: one
        that takes `position_ids` and attends by the interface of Transformers. Its weights are
        used as they are, and its settings left as they were.
    invariant : bool
        Linear layers too run by fastattn, on weights packed once: then no bit of a text's states
        depends on the texts beside it, on `batch_tokens` or on the number of threads.
    batch_tokens : int
        Tokens that run at once; a longer text runs alone.

    Returns
    -------
    packed : Packed
        ``packed(texts)`` gives the last hidden states of each text.

    Examples
    --------
    With Transformers installed::

        packed = fastattn.bridges.transformers.pack(model)
        states = packed(tokenizer(texts)["input_ids"])
        vectors = torch.stack([state.mean(0) for state in states])
    """
    return Packed(model, invariant=invariant, batch_tokens=batch_tokens)


def _tokens_of(number: int, text: Any) -> np.ndarray:
    tokens = np.asarray(text)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise ValueError(
            f"text {number} is an array of shape {tokens.shape}, dtype {tokens.dtype}: a list of "
            "token ids for each text is needed, as `tokenizer(texts)['input_ids']` gives"
        )
    return tokens.astype(np.int64)


def _takes(model: Any, name: str) -> bool:
    """Tell whether a model's forward has an argument, by name or among others."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or (name == "use_cache" and "kwargs" in parameters)


def _first_position(model: Any) -> int:
    """Return the position of a text's first token: RoBERTa's kin count from behind padding."""
    embeddings = getattr(model, "embeddings", None)
    counted = hasattr(embeddings, "create_position_ids_from_input_ids")
    return int(embeddings.padding_idx) + 1 if counted else 0  # type: ignore[union-attr]
