"""Modules of PyTorch, and attention of models by the names of its weights."""

import itertools

import numpy as np
import pytest
from test_multihead import close, torch_module

from fastattn import MultiHeadAttention

EMBED, HEADS = 16, 4
RNG = np.random.default_rng(11)


def draw(*shape):
    return RNG.standard_normal(shape) * 0.3


# How models name query, key, value and output, where their module stands, and what is beside it.
FAMILIES = {
    "BERT": (
        "bert.encoder.layer.3.attention.",
        ("self.query", "self.key", "self.value", "output.dense"),
        ("output.LayerNorm.weight", "output.LayerNorm.bias"),
    ),
    "ViT": (
        "vit.encoder.layer.0.attention.",
        ("attention.query", "attention.key", "attention.value", "output.dense"),
        (),
    ),
    "DistilBERT": (
        "distilbert.transformer.layer.0.attention.",
        ("q_lin", "k_lin", "v_lin", "out_lin"),
        (),
    ),
    "CLIP": (
        "text_model.encoder.layers.0.self_attn.",
        ("q_proj", "k_proj", "v_proj", "out_proj"),
        (),
    ),
    "Llama": (
        "model.layers.0.self_attn.",
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        ("rotary_emb.inv_freq",),
    ),
}


def weights_of(family, key_heads=HEADS, head_dim=EMBED // HEADS, biases=True):
    """A state by a family's names, its prefix, and the same by what each is."""
    prefix, maps, beside = FAMILIES[family]
    rows = [HEADS * head_dim, key_heads * head_dim, key_heads * head_dim, EMBED]
    columns = [EMBED, EMBED, EMBED, HEADS * head_dim]
    state, parts = {name: draw(3) for name in beside}, {}
    named = zip(("query", "key", "value", "output"), maps, rows, columns, strict=True)
    for part, name, n, width in named:
        state[f"{name}.weight"] = parts[f"{part}_weight"] = draw(n, width)
        if biases:
            state[f"{name}.bias"] = parts[f"{part}_bias"] = draw(n)
    return {prefix + name: x for name, x in state.items()}, prefix, parts


def turned(x):
    """Llama's rotary embedding."""
    real, imaginary = np.split(x, 2, axis=-1)
    speeds = 10000.0 ** -np.linspace(0, 1, real.shape[-1], endpoint=False)
    angles = np.arange(x.shape[-2])[:, None] * speeds
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([real * cos - imaginary * sin, imaginary * cos + real * sin], axis=-1)


def both_turned(query, key):
    return turned(query), turned(key)


def written_out(x, parts, key_heads, rotate):
    """The module's formula, in plain NumPy."""

    def mapped(part, rows):
        return rows @ parts[f"{part}_weight"].T + parts.get(f"{part}_bias", 0.0)

    heads = []
    for part, count in (("query", HEADS), ("key", key_heads), ("value", key_heads)):
        split = mapped(part, x).reshape(*x.shape[:-1], count, -1).swapaxes(-2, -3)
        heads.append(np.repeat(split, HEADS // count, axis=-3))
    query, key, value = heads
    if rotate:
        query, key = turned(query), turned(key)
    scores = query @ key.swapaxes(-1, -2) / query.shape[-1] ** 0.5
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    joined = (scores / scores.sum(axis=-1, keepdims=True) @ value).swapaxes(-2, -3)
    return mapped("output", joined.reshape(*x.shape[:-1], -1))


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize(("key_heads", "head_dim"), [(4, 4), (2, 4), (1, 6)])
@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_models_are_understood(family, key_heads, head_dim, biases, tmp_path):
    state, prefix, parts = weights_of(family, key_heads, head_dim, biases)
    call = {"rotate": both_turned} if family == "Llama" else {}
    module = MultiHeadAttention.from_state_dict(state | {"lm_head": draw(3)}, HEADS, prefix=prefix)
    assert (module.num_heads, module.num_kv_heads, module.head_dim) == (HEADS, key_heads, head_dim)
    x = draw(3, 7, EMBED)
    output = module(x, **call)
    close(output, written_out(x, parts, key_heads, bool(call)))
    # The same weights by another way give the same bits.
    given = MultiHeadAttention.from_arrays(HEADS, **parts)
    assert np.array_equal(given(x, **call), output)
    again = MultiHeadAttention.from_state_dict(module.state_dict(), HEADS)
    assert np.array_equal(again(x, **call), output)
    for one in range(3):
        assert np.array_equal(module(x[one], **call), output[one])
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    numpy.save_file(state | {"lm_head": draw(3)}, path)
    read = MultiHeadAttention.from_safetensors(path, HEADS, prefix=prefix)
    assert np.array_equal(read(x, **call), output)
    assert read.state_dict().keys() == module.state_dict().keys()


def test_states_have_pytorchs_names_where_it_has_such_a_module():
    def names(family, **sizes):
        state, prefix, _ = weights_of(family, **sizes)
        module = MultiHeadAttention.from_state_dict(state, HEADS, prefix=prefix)
        return set(module.state_dict()), {key.removeprefix(prefix) for key in state}

    theirs = {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"}
    assert names("BERT")[0] == theirs
    found, given = names("CLIP", key_heads=2)
    assert found == given
    found, given = names("Llama")
    assert found | {"rotary_emb.inv_freq"} == given
    assert (
        repr(MultiHeadAttention.from_arrays(HEADS, **weights_of("BERT", 2, 6)[2]))
        == "<MultiHeadAttention 16, 4 heads of 6, 2 of keys, float64>"
    )


def test_a_rotation_is_asked_for_and_looked_at():
    state, prefix, _ = weights_of("Llama", 2, biases=False)
    module = MultiHeadAttention.from_state_dict(state, HEADS, prefix=prefix)
    x = draw(7, EMBED)
    for again in (module, MultiHeadAttention.from_state_dict(module.state_dict(), HEADS)):
        with pytest.raises(ValueError, match="rotary embeddings, which are no part of them"):
            again(x)
    with pytest.raises(ValueError, match=r"made \(2, 7, 3\) of \(2, 7, 4\)"):
        module(x, rotate=lambda query, key: (query, key[..., :3]))
    for wrong in (lambda query, key: query, lambda query, key: (query, key, key)):
        with pytest.raises(TypeError, match="rotate must return query and key"):
            module(x, rotate=wrong)
    seen = []
    module(x.astype(np.float32), rotate=lambda *heads: seen.append(heads) or heads)
    assert [one.shape for one in seen[0]] == [(4, 7, 4), (2, 7, 4)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"o_proj.weight": None},
            "'m.o_proj.weight' of shape ('embed_dim', 'num_heads * head_dim') is",
        ),
        (
            {"k_proj.weight": None},
            "'m.k_proj.weight' of shape ('rows', 'kdim') is missing (embed_dim",
        ),
        (
            {"v_proj.weight": draw(4, 16)},
            "'m.v_proj.weight' has shape (4, 16), expected (8, 'vdim')",
        ),
        ({"k_proj.bias": draw(4)}, "'m.k_proj.bias' has shape (4,), expected (8,)"),
        ({"q_norm.weight": draw(4)}, "'m.q_norm.weight' of shape (4,) is no parameter"),
        ({"x.self.query.weight": draw(4)}, "prefixes of modules here: 'm.', 'm.x.'"),
    ],
)
def test_what_does_not_fit_is_named_as_the_model_names_it(changes, words):
    state, prefix, _ = weights_of("Llama", 2, biases=False)
    state = {name.removeprefix(prefix): x for name, x in state.items()} | changes
    state = {f"m.{name}": x for name, x in state.items() if x is not None}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        MultiHeadAttention.from_state_dict(state, HEADS, prefix="m.")
    assert words in str(caught.value)


# --- against the models themselves ---------------------------------------------------------------


def model_of(name, transformers):
    """A layer's attention of a model, and what it makes of rows."""
    small = {"hidden_size": EMBED, "num_attention_heads": HEADS, "attn_implementation": "eager"}
    if name == "BERT":
        from transformers.models.bert.modeling_bert import BertAttention

        layer = BertAttention(transformers.BertConfig(**small))
        return layer, lambda x: layer.output.dense(layer.self(x)[0])
    if name == "CLIP":
        from transformers.models.clip.modeling_clip import CLIPAttention

        layer = CLIPAttention(transformers.CLIPTextConfig(**small))
        return layer, lambda x: layer(x)[0]
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    config = transformers.LlamaConfig(**small, num_key_value_heads=2)
    layer, rotary = LlamaAttention(config, 0), LlamaRotaryEmbedding(config)

    def run(x):
        import torch

        places = torch.arange(x.shape[1])[None]
        hidden = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        return layer(x, rotary(x, places), hidden[None, None])[0]

    return layer, run


@pytest.mark.parametrize("name", ["BERT", "CLIP", "Llama"])
def test_equal_to_the_models(name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    layer, run = model_of(name, transformers)
    layer.eval()
    module = MultiHeadAttention.from_state_dict(layer.state_dict(), HEADS)
    x = torch.randn(2, 9, EMBED)
    with torch.inference_mode():
        expected = run(x).numpy()
    call = {"rotate": both_turned, "causal": True} if name == "Llama" else {}
    close(module(x.numpy(), **call), expected)


# --- from_module ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 5}])
def test_from_module_takes_every_option(sizes, batch_first):
    torch = pytest.importorskip("torch")
    for bias, kv, zero in itertools.product((True, False), repeat=3):
        options = {"bias": bias, "add_bias_kv": kv, "add_zero_attn": zero, "dropout": 0.5}
        theirs = torch_module(torch, **options, **sizes)
        theirs.batch_first = batch_first
        ours = MultiHeadAttention.from_module(theirs)
        arrays = [
            torch.randn(*(3, n, width) if batch_first else (n, 3, width))
            for n, width in ((5, 16), (7, ours.kdim), (7, ours.vdim))
        ]
        hidden = torch.rand(3 * 4, 5, 7) < 0.3
        hidden[..., 0] = False
        with torch.inference_mode():
            expected = theirs(*arrays, attn_mask=hidden)
        mask = ~hidden.reshape(3, 4, 5, 7).numpy()
        call = {"mask": mask, "return_weights": True, "average_weights": True}
        arrays = [x.numpy() for x in arrays]
        found = ours(*arrays, **call)
        for one, other in zip(found, expected, strict=True):
            close(one, other.numpy())
        state = theirs.state_dict()
        same = MultiHeadAttention.from_state_dict(state, HEADS, add_zero_attn=zero)
        if not batch_first:
            arrays = [x.swapaxes(0, 1) for x in arrays]
        output = same(*arrays, mask=mask)
        assert np.array_equal(output if batch_first else output.swapaxes(0, 1), found[0])


def test_from_module_with_lengths_first_stores_so_and_takes_one_sequence():
    torch = pytest.importorskip("torch")
    theirs = torch_module(torch)
    theirs.batch_first = False
    ours, x = MultiHeadAttention.from_module(theirs), draw(5, 3, EMBED).astype(np.float32)
    out = np.empty_like(x)
    assert ours(x, out=out) is out
    assert np.array_equal(out, ours(x))
    assert np.array_equal(ours(x[:, 1]), out[:, 1])
    halves = MultiHeadAttention.from_module(theirs.half())
    out = np.empty(x.shape, np.float16)
    assert halves(x.astype(np.float16), out=out) is out
    assert np.array_equal(out, halves(x.astype(np.float16)))
    with pytest.raises(ValueError, match=r"out has shape \(3, 5, 16\)"):
        ours(x, out=np.empty((5, 3, EMBED), np.float32).swapaxes(0, 1))


def test_from_module_takes_bfloat16_and_modules_of_layers():
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    layer = torch.nn.TransformerEncoderLayer(EMBED, HEADS, batch_first=True, dtype=torch.bfloat16)
    module = MultiHeadAttention.from_module(layer.eval().self_attn)
    assert module.state_dict()["in_proj_weight"].dtype == ml_dtypes.bfloat16


def test_from_module_refuses_what_computes_otherwise():
    torch = pytest.importorskip("torch")

    class Own(torch.nn.MultiheadAttention):
        def forward(self, *arguments, **options):
            return super().forward(*arguments, **options)

    class Same(torch.nn.MultiheadAttention):
        pass

    MultiHeadAttention.from_module(Same(EMBED, HEADS))
    hooked = torch.nn.MultiheadAttention(EMBED, HEADS)
    hooked.register_forward_hook(lambda module, x, output: output)
    for module, text in (
        (Own(EMBED, HEADS), "Own computes in a way of its own"),
        (hooked, "has hooks"),
        (
            torch.nn.MultiheadAttention(EMBED, HEADS, dropout=0.1),
            r"drops some .*`module\.eval\(\)`",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            MultiHeadAttention.from_module(module)
    for module in (torch.nn.Linear(3, 4), None, {}):
        with pytest.raises(TypeError, match=r"must be a torch\.nn\.MultiheadAttention, not"):
            MultiHeadAttention.from_module(module)
    with pytest.raises(TypeError, match="no memory behind it"):
        MultiHeadAttention.from_module(torch.nn.MultiheadAttention(EMBED, HEADS, device="meta"))
