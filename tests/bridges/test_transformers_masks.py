"""Masks travel as descriptions, and are made in full only where they are something else."""

import numpy as np
import pytest

families = pytest.importorskip("families")
torch = families.torch

from families import by, draw_tokens, padding  # noqa: E402
from transformers import masking_utils  # noqa: E402

import fastattn  # noqa: E402
from fastattn.bridges.transformers.deferred import Deferred  # noqa: E402
from fastattn.bridges.transformers.masks import mask_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def registered():
    fastattn.bridges.transformers.register()


@pytest.fixture
def made(monkeypatch):
    """The masks that are made in full."""
    seen, make = [], masking_utils.sdpa_mask

    def noted(**given):
        seen.append(given)
        return make(**given)

    monkeypatch.setattr(masking_utils, "sdpa_mask", noted)
    return seen


def packed(ids):
    return masking_utils.packed_sequence_mask_function(torch.tensor(ids))


LENGTH = 9
POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0], [*range(9)]])
DOCUMENTS = [[0, 0, 0, 1, 1, 1, 1, 1, 2], [0] * 9]
FUNCTIONS = {
    "causal": masking_utils.causal_mask_function,
    "both ways": masking_utils.bidirectional_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(3),
    "window both ways": masking_utils.sliding_window_bidirectional_mask_function(2),
    "chunks": masking_utils.chunked_causal_mask_function(4, torch.tensor([0, 3])),
    "documents": masking_utils.and_masks(
        masking_utils.remap_positions_for_packed_sequence(
            masking_utils.sliding_window_causal_mask_function(3), POSITIONS
        ),
        packed(DOCUMENTS),
    ),
    "documents in another order": masking_utils.and_masks(
        packed(DOCUMENTS),
        masking_utils.remap_positions_for_packed_sequence(
            masking_utils.sliding_window_causal_mask_function(3), POSITIONS
        ),
    ),
    "chunks of documents": masking_utils.and_masks(
        masking_utils.remap_positions_for_packed_sequence(
            masking_utils.chunked_causal_mask_function(2, torch.tensor([0, 0])), POSITIONS
        ),
        packed(DOCUMENTS),
    ),
}


def shown(options, queries, keys):
    """The mask that options of `fastattn.attention` say, (2, queries, keys), by its weights."""
    operands = [np.zeros((2, 1, n, 1)) for n in (queries, keys, keys)]
    weights = fastattn.attention(*operands, **options, return_weights=True)[1]
    return weights[:, 0] > 0


@pytest.mark.parametrize("side", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("place", [(0, 0), (5, 0), (5, 2)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_description_shows_what_the_mask_shows(name, place, side, made):
    """Queries at some place of the keys, which begin at another."""
    start, first = place
    if "documents" in name and place != (0, 0):
        pytest.skip("documents are packed without a cache")
    queries = LENGTH - start
    mask = None if side == "none" else padding(side, 3, LENGTH)[[0, 2]].bool()
    sizes = {"batch_size": 2, "q_length": queries, "kv_length": LENGTH - first}
    found = mask_of(
        **sizes,
        q_offset=start,
        kv_offset=first,
        mask_function=FUNCTIONS[name],
        attention_mask=mask,
        allow_is_causal_skip=True,
    )
    assert isinstance(found, Deferred)
    assert not made
    expected = found.made().numpy()[:, 0]
    assert made
    for lengths_as_ids in (False, True):
        options = found.meaning.options(lengths_as_ids)
        assert "mask" not in options
        np.testing.assert_array_equal(shown(options, queries, LENGTH - first), expected)


def test_other_functions_are_made_in_full(made):
    def every_third(batch, head, query, key):
        return (query - key) % 3 == 0

    for function in (
        every_third,
        masking_utils.and_masks(masking_utils.causal_mask_function, every_third),
        masking_utils.or_masks(masking_utils.causal_mask_function, packed(DOCUMENTS)),
    ):
        found = mask_of(2, LENGTH, LENGTH, mask_function=function)
        assert type(found) is torch.Tensor
        assert found.shape == (2, 1, LENGTH, LENGTH)
        assert found.dtype is torch.bool


@pytest.mark.parametrize("name", ["Bert", "ModernBert"])
def test_no_model_of_text_makes_a_mask(name, made, seed):
    model = families.encoder(name)
    for side in ("right", "left"):
        by(model, "fastattn", lambda m, s=side: m(draw_tokens(seed, 3, 17), padding(s)))
    assert not made


@pytest.mark.parametrize("name", families.DECODERS)
def test_no_decoder_makes_a_mask(name, made, seed):
    model = families.decoder(name)
    for side in ("right", "left"):
        by(
            model,
            "fastattn",
            lambda m, s=side: m(draw_tokens(seed, 3, 17), attention_mask=padding(s)),
        )
    assert not made


def test_packed_documents_by_their_positions(made, seed):
    """Positions that begin anew: each document as alone, to the bit."""
    model = families.decoder("Mistral").model
    tokens = draw_tokens(seed, 1, 20)
    positions = torch.tensor([[*range(9), *range(4), *range(7)]])

    def run(model):
        return model(tokens, position_ids=positions, use_cache=False).last_hidden_state

    actual, expected = by(model, "fastattn", run), by(model, "eager", run)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert not any(given["mask_function"] is not None for given in made[1:])


def test_a_deferred_tensor_is_a_tensor_to_whoever_computes(made):
    found = mask_of(2, LENGTH, LENGTH)
    assert (found.shape, found.dtype, found.dim(), found.size(-1)) == (
        (2, 1, LENGTH, LENGTH),
        torch.bool,
        4,
        LENGTH,
    )
    assert not made
    expected = torch.ones(LENGTH, LENGTH).tril().bool().expand(2, 1, -1, -1)
    assert torch.equal(found, expected)
    assert torch.equal(found[..., :4], expected[..., :4])
    assert torch.equal(torch.where(found, 1, 0), expected.long())
    assert type(found & expected) is torch.Tensor
