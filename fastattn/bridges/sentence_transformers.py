"""`encode` of Sentence Transformers without padding: the same embeddings, sooner.

    import fastattn

    vectors = fastattn.bridges.sentence_transformers.encode(model, texts)

The texts of a batch lie end to end, and batches are cut by tokens: none waits for the longest text
of its batch, and no text is sorted. Pooling, normalisation and whatever else follows the
transformer are the model's own modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastattn.bridges.extras import needed

needed("sentence_transformers", "sentence-transformers")

import torch  # noqa: E402

from fastattn.bridges.transformers.packing import BATCH_TOKENS, pack  # noqa: E402
from fastattn.bridges.transformers.settings import inferring  # noqa: E402

__all__ = ["encode"]

# So many texts become tokens at a time, which bounds what their padding takes meanwhile.
_TEXTS = 1024
_EXPECTED = {"input_ids", "attention_mask", "token_type_ids", "modality", "prompt_length"}


def encode(
    model: Any,
    texts: str | Sequence[str],
    *,
    prompt: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    invariant: bool = False,
) -> np.ndarray:
    """Embed texts, as ``model.encode(texts)`` does, without padding.

    Parameters
    ----------
    model : sentence_transformers.SentenceTransformer
        On the CPU, with a transformer that `fastattn.bridges.transformers.pack` can run, in front.
    texts : str or list of str
        What to embed.
    prompt : str, optional
        What to put before each text. None: the model's default prompt, if it has one.
    batch_tokens : int
        Tokens that run at once; a longer text runs alone.
    invariant : bool
        No bit of an embedding depends on the texts beside it, on `batch_tokens`, or on the number
        of threads: linear layers too run by fastattn.

    Returns
    -------
    embeddings : ndarray, (texts, features); of one str (features,)
        In the dtype of the model; float32 for bfloat16.

    Examples
    --------
    With Sentence Transformers installed::

        model = SentenceTransformer("all-MiniLM-L6-v2", device="cpu")
        vectors = fastattn.bridges.sentence_transformers.encode(model, texts, invariant=True)
    """
    if isinstance(texts, str):
        found: np.ndarray = encode(
            model, [texts], prompt=prompt, batch_tokens=batch_tokens, invariant=invariant
        )[0]
        return found
    texts = list(texts)
    first, *others = model
    transformer = getattr(first, "auto_model", None)
    if transformer is None:
        raise ValueError(
            f"the first module is {type(first).__name__}, and no transformer: use `model.encode`"
        )
    if prompt is None and model.default_prompt_name is not None:
        prompt = model.prompts.get(model.default_prompt_name)
    packed = pack(transformer, invariant=invariant, batch_tokens=batch_tokens)
    pooled: list[Any] = []
    with torch.inference_mode(), inferring(model), packed.ready():
        for start in range(0, len(texts), _TEXTS):
            tokens, told = _tokens(model, texts[start : start + _TEXTS], prompt)
            for states in packed.batches(tokens):
                pooled += [_pool(others, state, told) for state in states]
        if not pooled:
            return np.zeros((0, model.get_sentence_embedding_dimension() or 0), np.float32)
        vectors = torch.cat([features["sentence_embedding"] for features in pooled])
        for module in others[pooled[0]["modules_done"] :]:
            vectors = module({"sentence_embedding": vectors})["sentence_embedding"]
    if model.truncate_dim is not None:
        vectors = vectors[:, : model.truncate_dim]
    array: np.ndarray = (vectors.float() if vectors.dtype is torch.bfloat16 else vectors).numpy()
    return array


def _tokens(
    model: Any, texts: list[str], prompt: str | None
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Return the token ids of each text, and what pooling is told of the prompt."""
    features = model.preprocess(texts, prompt=prompt)
    unknown = sorted(features.keys() - _EXPECTED)
    types = features.get("token_type_ids")
    if unknown or (types is not None and bool(types.any())):
        raise ValueError(
            f"this model makes more of a text than tokens ({unknown or 'types of tokens'}): use "
            "`model.encode`"
        )
    seen = features["attention_mask"].numpy().astype(bool)
    ids = features["input_ids"].numpy()
    told = {name: features[name] for name in ("prompt_length",) if name in features}
    return [row[own] for row, own in zip(ids, seen, strict=True)], told


def _pool(modules: list[Any], state: torch.Tensor, told: dict[str, Any]) -> dict[str, Any]:
    """Run the modules behind the transformer on one text, up to the one that makes a vector."""
    features = {
        "token_embeddings": state[None],
        "attention_mask": torch.ones((1, len(state)), dtype=torch.int64),
        **told,
    }
    for count, module in enumerate(modules, 1):
        features = module(features)
        if "sentence_embedding" in features:
            return {**features, "modules_done": count}
    raise ValueError("no module of this model makes one vector of a text: use `model.encode`")
