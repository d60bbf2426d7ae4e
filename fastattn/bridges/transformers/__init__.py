"""Hugging Face Transformers on fastattn: one word in a model's configuration.

    import fastattn

    fastattn.bridges.transformers.register()
    model = AutoModel.from_pretrained(name, attn_implementation="fastattn")
    with torch.inference_mode():
        model(**tokens)
        cache = fastattn.bridges.transformers.FastattnCache(model.config)
        model.generate(**tokens, past_key_values=cache)

Causal, sliding and chunked attention, padding and packed documents reach the kernels as what they
are; a mask of queries times keys is made only where a model's own is none of these. Inference only:
call under `torch.no_grad` or `torch.inference_mode`.

masks.py        what a model's mask says, read from the functions that Transformers makes it of
deferred.py     tensors that are described, and made only where somebody computes with them
attention.py    the attention function            cache.py     keys and values in a `KVCache`
packing.py      texts end to end, without padding    biases.py     by relative position (T5)
settings.py     of a model while it runs, and then as before
"""

from fastattn.bridges.extras import needed

needed("transformers", "transformers")

from fastattn.bridges.transformers.attention import register  # noqa: E402
from fastattn.bridges.transformers.cache import FastattnCache  # noqa: E402
from fastattn.bridges.transformers.packing import Packed, pack  # noqa: E402

__all__ = ["FastattnCache", "Packed", "pack", "register"]
