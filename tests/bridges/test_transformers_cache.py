"""Generating with `FastattnCache`: the tokens of eager attention on Transformers' own cache."""

import numpy as np
import pytest

families = pytest.importorskip("families")
torch = families.torch

from families import by, draw_tokens, padding  # noqa: E402
from transformers import EncoderDecoderCache  # noqa: E402

import fastattn  # noqa: E402
from fastattn.bridges.transformers.cache import FastattnCache, FastattnLayer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def registered():
    fastattn.bridges.transformers.register()


def generate(model, tokens, **given):
    return model.generate(tokens, do_sample=False, **given)


@pytest.mark.parametrize(("beams", "side"), [(1, "none"), (1, "left"), (3, "left")])
@pytest.mark.parametrize("name", families.DECODERS)
def test_the_same_tokens(name, beams, side, seed):
    """On Transformers' own cache, and on ours."""
    model, tokens = families.decoder(name), draw_tokens(seed, 3, 17)
    given = {"attention_mask": padding(side), "max_new_tokens": 12, "num_beams": beams}
    expected = by(model, "eager", lambda m: generate(m, tokens, **given))
    for cache in (None, FastattnCache(model.config)):
        own = {} if cache is None else {"past_key_values": cache}
        actual = by(model, "fastattn", lambda m, own=own: generate(m, tokens, **given, **own))
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["whisper", "t5", "bart"])
def test_two_sequences(name, beams, seed):
    """A decoder that attends to an encoder's states, which are cached as well."""
    model = getattr(families, name)()
    torch.manual_seed(seed)
    source = torch.randn(2, 8, 100) if name == "whisper" else draw_tokens(seed, 3, 17)
    given = {"max_new_tokens": 10, "num_beams": beams}
    if name != "whisper":
        given["attention_mask"] = padding("right")
    expected = by(model, "eager", lambda m: generate(m, source, **given))
    cache = EncoderDecoderCache(FastattnCache(), FastattnCache())
    actual = by(model, "fastattn", lambda m: generate(m, source, **given, past_key_values=cache))
    assert torch.equal(actual, expected)


def test_a_cache_of_fixed_size(seed):
    model, tokens = families.decoder("Llama"), draw_tokens(seed, 2, 10)
    expected = by(model, "eager", lambda m: generate(m, tokens, max_new_tokens=8))
    actual = by(
        model,
        "fastattn",
        lambda m: generate(m, tokens, max_new_tokens=8, cache_implementation="static"),
    )
    assert torch.equal(actual, expected)


def test_other_attention_functions_read_it(seed):
    model, tokens = families.decoder("Gemma2"), draw_tokens(seed, 2, 10)
    expected = by(model, "eager", lambda m: generate(m, tokens, max_new_tokens=8))
    cache = FastattnCache()
    actual = by(
        model, "eager", lambda m: generate(m, tokens, max_new_tokens=8, past_key_values=cache)
    )
    assert torch.equal(actual, expected)


def test_drafts_are_taken_back(seed):
    """Tokens guessed from the text before, most of them rejected."""
    model = families.decoder("Llama")
    tokens = draw_tokens(seed, 1, 6).repeat(1, 3)
    expected = by(model, "eager", lambda m: generate(m, tokens, max_new_tokens=12))
    cache = FastattnCache(model.config)
    given = {"max_new_tokens": 12, "prompt_lookup_num_tokens": 3, "past_key_values": cache}
    actual = by(model, "fastattn", lambda m: generate(m, tokens, **given))
    assert torch.equal(actual, expected)


def test_storage_of_another_type(seed):
    model, tokens = families.decoder("Llama"), draw_tokens(seed, 2, 10)
    exact, small = FastattnCache(model.config), FastattnCache(model.config, dtype="int8")

    def run(cache):
        return by(model, "fastattn", lambda m: m(tokens, past_key_values=cache).logits)

    expected, actual = run(exact), run(small)
    assert (actual - expected).abs().max() <= 0.05 * expected.abs().max()
    assert small.nbytes < exact.nbytes / 2
    for dtype in (torch.bfloat16, torch.float16):
        half = families.decoder("Llama").to(dtype)
        for storage in ("int8", "float32", None):
            cache = FastattnCache(half.config, dtype=storage)
            found = by(half, "fastattn", lambda m, c=cache: m(tokens, past_key_values=c).logits)
            assert found.dtype is dtype
            assert (found - expected).abs().max() <= 0.1 * expected.abs().max()


def test_windows_give_back_what_no_token_sees(seed):
    """Steps behind a long prompt: the same as without a window in the cache, in less memory."""
    model, tokens = families.decoder("Mistral"), draw_tokens(seed, 1, 700)
    kept, whole = FastattnCache(model.config), FastattnCache()
    for first, stop in ((0, 650), (650, 651), (651, 670), *((n, n + 1) for n in range(670, 690))):
        results = [
            by(
                model,
                "fastattn",
                lambda m, c=cache, f=first, s=stop: m(tokens[:, f:s], past_key_values=c).logits,
            )
            for cache in (kept, whole)
        ]
        assert torch.equal(*results)
    assert kept.nbytes < whole.nbytes / 3
    assert kept.get_seq_length() == 690


def test_sequences_are_chosen_and_repeated(seed):
    model, tokens = families.decoder("Llama"), draw_tokens(seed, 3, 9)
    cache = FastattnCache(model.config)
    by(model, "fastattn", lambda m: m(tokens[:, :6], past_key_values=cache))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 5, 2]))  # sequences 0, 2 and 1
    cache.crop(-1)
    rest = tokens[[0, 2, 1], 5:]
    actual = by(model, "fastattn", lambda m: m(rest, past_key_values=cache).logits)
    expected = by(model, "fastattn", lambda m: m(tokens[[0, 2, 1]]).logits[:, 5:])
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes) == (0, 0)


def test_nothing_that_is_there_is_copied(seed, monkeypatch):
    model, tokens = families.decoder("Gemma2"), draw_tokens(seed, 2, 20)

    def copied(self):
        raise AssertionError("all keys were copied")

    monkeypatch.setattr(fastattn.KVCache, "dense", copied)
    cache = FastattnCache(model.config)
    given = {"max_new_tokens": 5, "past_key_values": cache, "num_beams": 2}
    by(model, "fastattn", lambda m: generate(m, tokens, **given))
    assert np.all(cache.layers[0].stored.lengths == 24)


def test_what_cannot_be_cropped_changes_nothing(seed):
    """A layer with a window gave back what would be seen again."""
    torch.manual_seed(seed)
    layer = FastattnLayer(window=100)
    for _ in range(600):
        layer.update(*torch.randn(2, 1, 2, 1, 8))
    with pytest.raises(ValueError, match="given back"):
        layer.crop(-550)
    assert layer.length == layer.get_seq_length() == layer.stored.lengths[0] == 600
    layer.crop(-10)
    assert layer.length == layer.stored.lengths[0] == layer.keys.shape[-2] == 590
