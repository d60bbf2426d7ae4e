"""Texts end to end through an encoder: each as alone."""

import threading

import numpy as np
import pytest
import tolerances

families = pytest.importorskip("families")
torch = families.torch

from families import by  # noqa: E402

import fastattn  # noqa: E402
from fastattn.bridges.transformers import pack  # noqa: E402
from fastattn.bridges.transformers.packing import cut  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTHS = (1, 1, 9, 17, 3, 0, 30, 2)


@pytest.fixture
def texts(seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 90, length).tolist() for length in LENGTHS]


def model_of(name):
    if name in families.ENCODERS:
        return families.encoder(name)
    return families.decoder(name).model


@pytest.mark.parametrize("name", [*families.ENCODERS, "Mistral", "Llama"])
def test_states_are_those_of_each_text_alone(name, texts):
    model = model_of(name)
    found = pack(model, batch_tokens=20)(texts)
    assert model.config._attn_implementation == "eager"
    for text, states in zip(texts, found, strict=True):
        assert states.shape == (len(text), 32)
        if text:
            expected = by(model, "eager", lambda m, t=text: m(torch.tensor([t])).last_hidden_state)
            difference = (states - expected[0]).abs().max()
            assert difference <= tolerances.HIDDEN_STATES * expected.abs().max()


@pytest.mark.parametrize("name", ["Bert", "ModernBert", "Mistral"])
def test_no_bit_depends_on_the_batch(name, texts):
    model = model_of(name)
    alone = [pack(model, invariant=True)([text])[0] for text in texts]
    order = np.random.default_rng(0).permutation(len(texts))
    for batch_tokens in (1, 20, 50, 1000):
        packed = pack(model, invariant=True, batch_tokens=batch_tokens)
        for ours, theirs in zip(packed(texts), alone, strict=True):
            assert torch.equal(ours, theirs)
        for number, ours in zip(order, packed([texts[n] for n in order]), strict=True):
            assert torch.equal(ours, alone[number])


def test_the_model_is_left_as_it_was(texts):
    model = families.encoder("Bert").train()
    model.set_attn_implementation("sdpa")
    packed = pack(model)
    packed(texts)
    with pytest.raises(ValueError, match="text 1 "):
        packed([[3, 4], [[5]]])
    with pytest.raises(IndexError):
        packed([[3, 4], [5000]])
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert fastattn.bridges.transformers.attention.row.get() is None


def test_what_cannot_be_packed_is_refused(texts):
    with pytest.raises(ValueError, match="no position_ids"):
        pack(families.t5().encoder)(texts)
    with pytest.raises(ValueError, match="is not packed"):
        pack(families.decoder("Llama4").model)(texts)
    with pytest.raises(ValueError, match="batch_tokens"):
        pack(families.encoder("Bert"), batch_tokens=0)


@pytest.mark.parametrize("name", families.UNPACKED)
def test_a_model_whose_texts_would_change_each_other_is_refused(name):
    model = families.encoder(name).train()
    for _ in range(2):  # what was seen once is not taken for a pass
        with pytest.raises(ValueError, match=f"{name}Model cannot lie end to end"):
            pack(model)
    assert model.training
    assert model.config._attn_implementation == "eager"


def test_a_model_that_attends_by_a_function_of_its_own_is_refused(texts, monkeypatch):
    """It says that it attends here, and never does: neither at first nor later."""
    from transformers.models.bert import modeling_bert as bert

    model = families.encoder("Bert")
    packed = pack(model)
    found = bert.ALL_ATTENTION_FUNCTIONS
    monkeypatch.setattr(found, "get_interface", lambda *_: bert.eager_attention_forward)
    with pytest.raises(ValueError, match="a function of its own"):
        packed(texts)
    with pytest.raises(ValueError, match="a function of its own"):
        pack(families.encoder("Bert"))


def test_threads_share_a_model(texts):
    """Four are ready at a time, and each runs when the one before has left."""
    model = families.encoder("Bert")
    model.set_attn_implementation("sdpa")
    model.train().encoder.eval()
    packed = pack(model)
    expected = packed(texts)
    all_ready = threading.Barrier(4, timeout=60)
    has_left = [threading.Event() for _ in range(5)]
    has_left[0].set()
    found = {}

    def work(number):
        with packed.ready():
            all_ready.wait()
            has_left[number].wait(60)
            found[number] = [state for states in packed.batches(texts) for state in states]
        has_left[number + 1].set()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert all(map(torch.equal, found[number], expected))
    assert model.training
    assert not model.encoder.training
    assert model.config._attn_implementation == "sdpa"


def test_a_head_is_trained_on_states(texts):
    states = pack(families.encoder("Bert"))(texts)[LENGTHS.index(1)]
    head = torch.nn.Linear(32, 2)
    head(states).sum().backward()
    assert torch.equal(head.weight.grad, torch.cat([states, states]))


@pytest.mark.parametrize(
    ("lengths", "counts"),
    [((), []), ((5,), [1]), ((5, 5, 1), [2, 1]), ((0, 11, 0, 3), [1, 1, 2]), ((0, 0), [2])],
)
def test_batches_are_cut_by_tokens(lengths, counts):
    assert list(cut(lengths, 10)) == counts
