"""Where the module's weights come from: arrays, states, files; what does not fit is named."""

import multihead_golden as golden
import numpy as np
import pytest
from test_multihead import inputs_of, module_of

from fastattn import MultiHeadAttention


def test_arrays_one_by_one_are_the_same_module():
    state = golden.state()
    rows = np.split(state["in_proj_weight"], 3)
    biases = np.split(state["in_proj_bias"], 3)
    named = dict(zip(("query", "key", "value"), zip(rows, biases, strict=True), strict=True))
    named["output"] = state["out_proj.weight"], state["out_proj.bias"]
    arrays = {f"{name}_weight": pair[0] for name, pair in named.items()}
    biased = arrays | {f"{name}_bias": pair[1] for name, pair in named.items()}
    query, key, value, _ = inputs_of("plain")
    made = MultiHeadAttention.from_arrays(2, **biased)
    assert np.array_equal(made(query, key, value), module_of("plain")(query, key, value))
    made = MultiHeadAttention.from_arrays(2, **arrays)
    assert "in_proj_bias" not in made.state_dict()
    some = MultiHeadAttention.from_arrays(2, **arrays, query_bias=biases[0])
    assert np.array_equal(some.state_dict()["in_proj_bias"], [*biases[0], *np.zeros(16)])
    state = golden.state(kdim=6, vdim=5, bias_kv=True)
    made = MultiHeadAttention.from_arrays(
        2,
        query_weight=state["q_proj_weight"],
        key_weight=state["k_proj_weight"],
        value_weight=state["v_proj_weight"],
        output_weight=state["out_proj.weight"],
        added_key=state["bias_k"].ravel(),
        added_value=state["bias_v"].ravel(),
    )
    assert (made.kdim, made.vdim, made.head_dim) == (6, 5, 4)
    assert np.array_equal(made.state_dict()["bias_v"], state["bias_v"])


def test_weights_are_copies():
    state = golden.state()
    module = MultiHeadAttention.from_state_dict(state, 2)
    x = inputs_of("plain")[0]
    before = module(x)
    for array in state.values():
        array[:] = 0
    assert np.array_equal(module(x), before)
    assert not any(array.flags.writeable for array in module.state_dict().values())


def test_random_weights_have_pytorchs_shapes_and_ranges():
    module = MultiHeadAttention(64, 4, add_bias_kv=True, seed=3)
    state = module.state_dict()
    assert np.array_equal(
        state["in_proj_weight"],
        MultiHeadAttention(64, 4, add_bias_kv=True, seed=3).state_dict()["in_proj_weight"],
    )
    bound = (6 / (4 * 64)) ** 0.5
    assert 0.95 * bound < state["in_proj_weight"].max() <= bound
    assert 0.9 / 8 < state["out_proj.weight"].max() <= 1 / 8
    assert not state["in_proj_bias"].any()
    added = np.concatenate([state["bias_k"].ravel(), state["bias_v"].ravel()])
    assert 0.75 / 8 < added.std() < 1.25 / 8
    assert repr(module) == "<MultiHeadAttention 64, 4 heads of 16, float32>"
    wide = MultiHeadAttention(8, 2, kdim=6, dtype="float64")
    assert repr(wide) == "<MultiHeadAttention 8, 2 heads of 4, kdim=6, vdim=8, float64>"


def test_safetensors_reads_one_module_of_a_file(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    state = {key: x.astype(ml_dtypes.bfloat16) for key, x in golden.state().items()}
    path = tmp_path / "model.safetensors"
    file = {f"layer.0.{name}": x for name, x in state.items()} | {"layer.1.x": np.ones(3)}
    numpy.save_file(file, path)
    module = MultiHeadAttention.from_safetensors(path, 2, prefix="layer.0.")
    assert all(np.array_equal(module.state_dict()[name], x) for name, x in state.items())
    with pytest.raises(ValueError, match=r"prefix 'encoder'; there are 'layer\.0"):
        MultiHeadAttention.from_safetensors(path, 2, prefix="encoder")


def changed(**entries):
    state = golden.state() | entries
    return {name: x for name, x in state.items() if x is not None}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (changed(in_proj_bias=None), "'in_proj_bias' of shape (24,) is missing"),
        (changed(in_proj_weight=None), "'in_proj_weight' of shape (24, 8) is missing"),
        (changed(in_proj_weight=np.ones((24, 7))), "has shape (24, 7), expected (24, 8)"),
        (changed(bias_k=np.ones((1, 1, 8))), "'bias_v' of shape (1, 1, 8) is missing"),
        (changed(bias_x=np.ones(8)), "'bias_x' of shape (8,) is no parameter"),
        (changed(q_proj_weight=np.ones((8, 8))), "'q_proj_weight' of shape (8, 8) is one too many"),
        (
            changed(**{"out_proj.weight": None}),
            "'out_proj.weight' of shape (embed_dim, embed_dim) is needed, found none",
        ),
        (changed(**{"out_proj.weight": np.ones((8, 6))}), "has shape (8, 6), expected (8, 8)"),
        ({}, "there are nothing"),
    ],
)
def test_a_state_that_does_not_fit_is_named(state, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        MultiHeadAttention.from_state_dict(state, 2)
    assert words in str(caught.value)


def test_names_are_judged_before_anything_is_read(tmp_path):
    """Of a whole model nothing is converted until the names fit."""

    class Unreadable:
        shape = (3, 4)

        def __array__(self, *_, **__):
            raise AssertionError("it was read")

    state = {f"enc.{n}.self_attn.{name}": Unreadable() for n in range(8) for name in golden.state()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        MultiHeadAttention.from_state_dict(state, 2)
    assert "'enc.0.self_attn.in_proj_weight' of shape (3, 4) is no parameter" in str(caught.value)
    assert "prefixes of modules here: 'enc.0.self_attn.', " in str(caught.value)
    assert str(caught.value).endswith("'enc.5.self_attn.' and 2 more")
    state |= {f"enc.1.self_attn.{name}": x for name, x in golden.state().items()}
    MultiHeadAttention.from_state_dict(state, 2, prefix="enc.1.self_attn.")
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    numpy.save_file({f"a.{name}": x for name, x in golden.state().items()}, path)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        MultiHeadAttention.from_safetensors(path, 2)
    assert str(caught.value).startswith(f"{path}: 'a.")
    assert str(caught.value).endswith("prefixes of modules here: 'a.'")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(
        ValueError, match=r"model\.safetensors is no safetensors file, or not whole"
    ):
        MultiHeadAttention.from_safetensors(path, 2)
    with pytest.raises(FileNotFoundError):
        MultiHeadAttention.from_safetensors(tmp_path / "absent", 2)


def test_weights_of_several_dtypes_promote():
    state = golden.state()
    wide = MultiHeadAttention.from_state_dict(state, 2)
    narrow = state | {"out_proj.weight": state["out_proj.weight"].astype(np.float32)}
    mixed = MultiHeadAttention.from_state_dict(narrow, 2)
    x = inputs_of("plain", np.float32)[0]
    assert mixed(x).dtype == np.float64
    same = wide.state_dict() | {
        "out_proj.weight": mixed.state_dict()["out_proj.weight"].astype(float)
    }
    assert np.array_equal(mixed(x), MultiHeadAttention.from_state_dict(same, 2)(x))


SQUARE = {f"{name}_weight": np.eye(8) for name in ("query", "key", "value", "output")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"output_weight": np.ones((8, 7))},
            "divide the 7 columns of output_weight of shape (8, 7)",
        ),
        (
            {"output_weight": np.ones((8, 0))},
            "divide the 0 columns of output_weight of shape (8, 0)",
        ),
        (
            {"output_weight": np.ones(8)},
            "output_weight has shape (8,), expected ('embed_dim', 'num",
        ),
        ({"query_weight": np.ones((8, 7))}, "query_weight has shape (8, 7), expected (8, 8)"),
        ({"value_weight": np.ones((7, 6))}, "value_weight has shape (7, 6), expected (8, 'vdim')"),
        ({"key_weight": 3.0}, "key_weight has shape (), expected ('rows', 'kdim')"),
        ({"key_weight": np.ones((6, 8))}, "key_weight has 6 rows, and heads of 4 whose number"),
        ({"key_weight": np.ones((12, 8))}, "key_weight has 12 rows, and heads of 4 whose number"),
        ({"key_weight": np.ones((0, 8))}, "key_weight has 0 rows, and heads of 4 whose number"),
        (
            {name: np.ones((4, 8)) for name in ("key_weight", "value_weight")}
            | {"added_key": np.ones(4)},
            "added keys are for key_weight of embed_dim rows, not 4",
        ),
        # Together they have the right length, and would stand in the wrong rows.
        ({"query_bias": np.ones(7), "key_bias": np.ones(9)}, "query_bias has shape (7,), expected"),
        ({"output_bias": np.ones((1, 8))}, "output_bias has shape (1, 8), expected (8,)"),
        ({"added_key": np.ones(8)}, "added_value of shape (8,) is missing"),
        ({"added_key": np.ones(8), "added_value": np.ones(9)}, "added_value has shape (9,)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changes, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        MultiHeadAttention.from_arrays(2, **(SQUARE | changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("state", "words"),
    [([], "pass `module.state_dict()`"), ({3: np.ones(3)}, "3 is no name")],
)
def test_what_is_no_state_is_refused(state, words):
    with pytest.raises(TypeError) as caught:
        MultiHeadAttention.from_state_dict(state, 2)
    assert words in str(caught.value)
