"""Models of many families by attn_implementation="fastattn", against "eager"."""

import inspect

import numpy as np
import pytest
import tolerances

families = pytest.importorskip("families")
torch = families.torch

from families import by, draw_tokens, padding  # noqa: E402

import fastattn  # noqa: E402
from fastattn.bridges.transformers.deferred import Deferred  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
SIDES = ("none", "right", "left", "holes")


@pytest.fixture(autouse=True)
def registered():
    fastattn.bridges.transformers.register()


def near(actual, expected, seen=None):
    difference = (actual - expected).abs()
    if seen is not None:
        difference = difference[seen.bool()]
    assert difference.max() <= tolerances.HIDDEN_STATES * expected.abs().max()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", families.ENCODERS)
def test_encoders(name, side, seed):
    model, mask = families.encoder(name), padding(side)
    given = {"input_ids": draw_tokens(seed, 3, 17)}
    if side != "none":
        given["attention_mask"] = mask

    def run(model):
        return model(**given).last_hidden_state

    near(by(model, "fastattn", run), by(model, "eager", run), mask)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", families.DECODERS)
def test_decoders(name, side, seed):
    model, mask = families.decoder(name), padding(side)
    given = {"input_ids": draw_tokens(seed, 3, 17), "output_hidden_states": True}
    if side != "none":
        given["attention_mask"] = mask

    def run(model):
        return model(**given).hidden_states[-1]

    near(by(model, "fastattn", run), by(model, "eager", run), mask)


def test_vision_transformers(seed):
    sizes = {name: families.NUMBERS[name] for name in list(families.NUMBERS)[:4]}
    model = families.make("ViTModel", "ViTConfig", **sizes, image_size=32, patch_size=8)
    images = torch.randn(2, 3, 32, 32)

    def run(model):
        return model(images).last_hidden_state

    near(by(model, "fastattn", run), by(model, "eager", run))


def test_images_and_texts(seed):
    sizes = {name: families.NUMBERS[name] for name in list(families.NUMBERS)[:4]}
    model = families.make(
        "CLIPModel",
        "CLIPConfig",
        text_config={**sizes, "vocab_size": 99, "eos_token_id": 98, "max_position_embeddings": 20},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    given = {
        "input_ids": draw_tokens(seed, 3, 17),
        "attention_mask": padding("right"),
        "pixel_values": torch.randn(2, 3, 32, 32),
    }

    def run(model):
        found = model(**given)
        return torch.cat([found.text_embeds, found.image_embeds])

    near(by(model, "fastattn", run), by(model, "eager", run))


def test_speech(seed):
    model, sound = families.whisper(), torch.randn(2, 8, 100)
    tokens = draw_tokens(seed, 2, 9)

    def run(model):
        return model(sound, decoder_input_ids=tokens).logits

    near(by(model, "fastattn", run), by(model, "eager", run))


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_translators(name, side, seed):
    """Biases by relative position (T5), and attention to another sequence."""
    model, mask = getattr(families, name)(), padding(side)
    tokens = draw_tokens(seed, 3, 17)
    given = {"input_ids": tokens, "attention_mask": mask, "decoder_input_ids": tokens[:, :5]}

    def run(model):
        return model(**given).logits

    near(by(model, "fastattn", run), by(model, "eager", run))


def test_weights_come_where_they_are_asked_for(seed):
    model, tokens = families.encoder("Bert"), draw_tokens(seed, 2, 9)

    def run(model):
        return model(tokens, output_attentions=True).attentions[1]

    near(by(model, "fastattn", run), by(model, "eager", run))


def test_biases_by_position_are_not_packed(seed):
    attention = fastattn.bridges.transformers.attention
    token = attention.row.set(attention.Row(np.array([0, 3, 5])))
    heads = torch.ones(1, 2, 5, 8)
    try:
        with pytest.raises(ValueError, match="biases by position"):
            attention.attend(None, heads, heads, heads, None, position_bias=torch.ones(1, 2, 5, 5))
    finally:
        attention.row.reset(token)


def test_bfloat16(seed):
    model, tokens = families.decoder("Llama").to(torch.bfloat16), draw_tokens(seed, 2, 9)

    def run(model):
        return model(tokens).logits.float()

    actual, expected = by(model, "fastattn", run), by(model, "eager", run)
    assert (actual - expected).abs().max() <= 2**-5 * expected.abs().max()


def test_what_cannot_be_is_refused(seed):
    model, tokens = families.encoder("Bert"), draw_tokens(seed, 2, 9)
    model.set_attn_implementation("fastattn")
    with pytest.raises(RuntimeError, match="gradient"):
        model(tokens)
    model.train()
    with torch.no_grad(), pytest.raises(ValueError, match=r"model\.eval"):
        model(tokens)


def test_relative_biases_are_described(seed, monkeypatch):
    """From a model's second call on no bias of queries times keys is written out; same bits."""
    model = families.t5()
    given = {"input_ids": draw_tokens(seed, 3, 40), "decoder_input_ids": draw_tokens(seed, 3, 7)}
    made = []
    monkeypatch.setattr(Deferred, "made", lambda self, of=Deferred.made: made.append(1) or of(self))

    def run(model):
        return model(**given).logits

    kind = type(model.encoder.block[0].layer[0].SelfAttention)
    monkeypatch.setattr(kind, "compute_bias", inspect.unwrap(kind.compute_bias))
    written_out = by(model, "fastattn", run)
    assert hasattr(kind.compute_bias, "__wrapped__")
    described = by(model, "fastattn", run)
    assert torch.equal(written_out, described)
    near(described, by(model, "eager", run))
    assert not made  # other ways to attend write them out as before
