"""Texts end to end through an encoder, without padding."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Never
from weakref import WeakSet

import numpy as np
import torch

from fastattn.bridges.transformers.attention import NAME, Row, register, row
from fastattn.bridges.transformers.settings import attending, inferring

__all__ = ["BATCH_TOKENS", "Packed", "cut", "pack"]

BATCH_TOKENS = 4096
# Models whose texts were seen not to change each other.
_probed: WeakSet[Any] = WeakSet()
_PROBE = (3, 4)  # tokens of each text
_SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask", "unk")
# How far states may be from those of a text alone, in parts of the largest: roundings of a deep
# model. A token too many changes them more, and a wrong position much more.
_ROUNDINGS = {torch.float16: 1e-2, torch.bfloat16: 6e-2}
_OTHER_ROUNDINGS = 5e-5


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
            _refuse(base, "it takes no position_ids")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}")
        register()
        self.model, self.invariant, self.batch_tokens = base, invariant, batch_tokens
        self._first = _first_position(base)
        # A decoder would fill a cache that nobody asks for.
        caches = getattr(base.config, "use_cache", False) and _takes(base, "use_cache")
        self._without_cache = {"use_cache": False} if caches else {}
        if base not in _probed:
            self._probe()
            _probed.add(base)

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
        packed = Row(ends)
        before = row.set(packed)
        try:
            states = self._states(np.concatenate(tokens), torch.from_numpy(positions)[None])
        finally:
            row.reset(before)
        if not packed.attended:
            _refuse(self.model, "it attends by a function of its own")
        return states.split(lengths)

    def _states(self, tokens: np.ndarray, positions: torch.Tensor | None) -> torch.Tensor:
        output = self.model(
            input_ids=torch.from_numpy(tokens)[None],
            position_ids=positions,
            attention_mask=None,
            **self._without_cache,
        )
        return output.last_hidden_state[0]

    def _probe(self) -> None:
        """Refuse a model whose texts change each other, or lie at other positions than alone."""
        config = self.model.config.get_text_config()
        special = {getattr(config, f"{name}_token_id", None) for name in _SPECIAL}
        usual = [x for x in range(min(config.vocab_size, 1000)) if x not in special] or [0]
        drawn = np.random.default_rng(0).choice(usual, sum(_PROBE), len(usual) < sum(_PROBE))
        texts = np.split(drawn.astype(np.int64), np.cumsum(_PROBE)[:-1])
        with self._attending():
            together = self._run(texts)
            alone = [self._states(text, None) for text in texts]
        allowed = _ROUNDINGS.get(self.model.dtype, _OTHER_ROUNDINGS)
        for ours, theirs in zip(together, alone, strict=True):
            if not (ours - theirs).abs().max() <= allowed * theirs.abs().max():
                _refuse(self.model, "its texts change each other, or lie at positions of its own")

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Attend by fastattn, without dropout or gradients; then as before."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._attending())
            if self.invariant:
                from fastattn.bridges.torch import batch_invariant

                stack.enter_context(batch_invariant())
            yield

    @contextlib.contextmanager
    def _attending(self) -> Iterator[None]:
        # Not `torch.inference_mode`: what is trained on states saves them.
        with inferring(self.model), attending(self.model, NAME), torch.no_grad():
            if self.model.config._attn_implementation != NAME:
                _refuse(self.model, "it cannot be told by which function to attend")
            yield


def pack(model: Any, *, invariant: bool = False, batch_tokens: int = BATCH_TOKENS) -> Packed:
    """Run an encoder over texts end to end: nothing is computed for padding, there being none.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        An encoder like BERT, RoBERTa, DistilBERT or ModernBERT, or a decoder without its cache: one
        that takes `position_ids` and attends by the interface of Transformers. Its weights are
        used as they are, and its settings left as they were. Two short texts tell whether it can
        be run so: a model whose tokens change each other beside attention is refused.
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


def _refuse(model: Any, why: str) -> Never:
    raise ValueError(
        f"texts of {type(model).__name__} cannot lie end to end, as {why}: pad them, as "
        "`model.encode(texts)` of Sentence Transformers does"
    )


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
