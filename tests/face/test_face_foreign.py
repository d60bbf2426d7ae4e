"""Arrays of other libraries: taken where they lie, or refused with what to write instead."""

import inspect
import sys

import numpy as np
import pytest
import tolerances
from foreign import Brain16, Exported, ExportedBefore, Float8, Nowhere, Tensor

import fastattn
from fastattn import attention, attention_varlen, explain, softmax
from fastattn._core import names
from fastattn.state import State


def draw(*shape, seed=5):
    # Numbers that bfloat16 holds exactly.
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32) / 4


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "u1", "?"])
@pytest.mark.parametrize("layout", ["plain", "transposed", "every other"])
@pytest.mark.parametrize("exported", [Exported, ExportedBefore])
def test_what_speaks_dlpack_is_taken_where_it_lies(exported, dtype, layout):
    memory = {
        "plain": lambda x: x.copy(),
        "transposed": lambda x: x.T.copy().T,
        "every other": lambda x: np.repeat(x, 2, -1)[:, ::2],
    }[layout](draw(5, 8).astype(dtype))
    given = exported(memory)
    key, value = draw(7, 8), draw(7, 4)
    problem = explain(given, key, value).problem
    assert np.shares_memory(problem.query, memory)
    assert np.array_equal(attention(given, key, value), attention(memory, key, value))
    assert np.array_equal(softmax(given), softmax(memory))


def test_bfloat16_tensors_are_taken_where_they_lie():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    query, key, value = Brain16(draw(5, 8)), Brain16(draw(7, 8)), Brain16(draw(7, 4))
    problem = explain(query, key, value).problem
    for seen, given in zip(problem[:3], (query, key, value), strict=True):
        assert seen.dtype == ml_dtypes.bfloat16
        assert np.shares_memory(seen, given.memory)
    plain = [x.float().astype(ml_dtypes.bfloat16) for x in (query, key, value)]
    output = attention(query, key, value)
    assert output.dtype == ml_dtypes.bfloat16
    assert np.array_equal(output, attention(*plain))
    # The tensor's own memory stays what it was.
    assert query.memory.dtype == np.uint16
    assert np.array_equal(Brain16(draw(5, 8)).memory, query.memory)


def test_bfloat16_tensors_without_the_type_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match=r"`pip install ml_dtypes`, or pass `query\.float\(\)`"):
        attention(Brain16(), draw(7, 4), draw(7, 4))


@pytest.mark.parametrize(("device", "told"), [(2, "CUDA"), (10, "ROCm"), (99, "number 99")])
def test_other_devices_are_refused(device, told):
    with pytest.raises(TypeError, match=rf"query of type .* on the device {told}.*copy it there"):
        attention(Exported(draw(5, 8), device), draw(7, 8), draw(7, 4))


def test_what_is_read_only_is_taken_where_it_lies():
    memory = draw(5, 8)
    memory.flags.writeable = False
    for given in (Exported(memory), Brain16(memory)):
        given.memory.flags.writeable = False
        seen = explain(given, given, given).problem.query
        assert np.shares_memory(seen, given.memory)
    assert np.array_equal(softmax(Exported(memory)), softmax(memory))
    with pytest.raises(TypeError, match=r"readonly.*copy of it in float32 or float64"):
        softmax(ExportedBefore(memory))  # which would have to say that it may be written


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Float8(np.ones((3, 4), np.uint8)), "dtype"),
        (Exported(np.ones((3, 4), ">f4")), "byte order"),
        (Exported(np.ones((3, 4), "f4").astype(object)), "dtype"),
    ],
)
def test_numbers_that_are_not_read_say_what_to_pass(given, told):
    with pytest.raises(TypeError, match=rf"x of type .*{told}.*: pass a copy of it in float32"):
        softmax(given)
    with pytest.raises(TypeError, match="complex numbers"):
        softmax(Exported(np.ones((3, 4), complex)))


def test_empty_tensors_lie_nowhere():
    """Other libraries give them no memory, and no address."""
    pytest.importorskip("ml_dtypes")
    none, keys = Nowhere(draw(0, 8)), Brain16(draw(7, 8))
    assert attention(none, keys, keys).shape == (0, 8)
    assert (attention(keys, none, none) == 0).all()
    assert attention_varlen(none, none, none, [0, 0], [0, 0]).shape == (0, 8)
    with pytest.raises(TypeError, match="query"):
        attention(Nowhere(draw(5, 8)), keys, keys)


REFUSED = {
    "gradient": (Tensor(requires_grad=True), r"gradient.*`x\.detach\(\)`"),
    "device": (Tensor(device="cuda:1", cpu=None), r"device cuda:1.*`x\.cpu\(\)`"),
    "another library's device": (Tensor(device="<CUDA Device 0>", get=None), r"`x\.get\(\)`"),
    "no device": (Tensor(device="meta", shape=(3, 4)), r"no memory behind it.*\(3, 4\)"),
    "sparse": (Tensor(layout="torch.sparse_csr"), r"sparse: pass `x\.to_dense\(\)`"),
    "conjugate": (Tensor(is_conj=lambda: True), r"`x\.resolve_conj\(\)`"),
    "negative": (Tensor(is_neg=lambda: True), r"`x\.resolve_neg\(\)`"),
    "nested": (Tensor(is_nested=True), r"attention_varlen.*`x\.offsets\(\)`"),
    "float8": (Tensor(dtype="torch.float8_e4m3fn", float=None), r"float8_e4m3fn.*`x\.float\(\)`"),
    "function": (lambda scores: scores, r"x is a function .*call it first"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_says_what_to_pass(name):
    given, text = REFUSED[name]
    with pytest.raises(TypeError, match=text):
        softmax(given)


def test_a_sign_that_is_kept_apart_is_never_lost():
    """DLPack shows the numbers in memory, which are not the ones that are meant."""

    class Negated(Exported):
        def is_neg(self):
            return True

        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("Can't call numpy() on Tensor that has negative bit set.")

    with pytest.raises(TypeError, match="resolve_neg"):
        softmax(Negated(draw(5, 8)))


def test_torch_tensors_of_every_dtype():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(draw(5, 8))
    plain = draw(5, 8)
    for dtype in ("float32", "float64", "float16", "bfloat16", "int64", "int8", "uint8", "bool"):
        given = x.to(getattr(torch, dtype))
        for laid in (given, given.T.contiguous().T, given.repeat(1, 2)[:, ::2][:, :8]):
            output = attention(laid, laid, laid)
            twin = np.asarray(laid.float()).astype(output.dtype)
            assert np.array_equal(output, attention(twin, twin, twin)), dtype
            seen = explain(laid, laid, laid).problem.query
            assert seen.ctypes.data == laid.data_ptr()
    parameter = torch.nn.Parameter(x.to(torch.bfloat16))
    for given in (parameter, torch.nn.Parameter(x)):
        with pytest.raises(TypeError, match=r"`query\.detach\(\)`"):
            attention(given, plain, plain)
        assert attention(given.detach(), plain, plain).shape == (5, 8)
    for given in (x.to_sparse(), torch._neg_view(x), x.to("meta"), x.to(torch.float8_e4m3fn)):
        with pytest.raises(TypeError, match="query"):
            attention(given, plain, plain)


def test_arrow_lists_say_how_they_are_passed():
    pa = pytest.importorskip("pyarrow")
    column = pa.array([[0, 1], [2]], pa.list_(pa.int32()))
    table, query = draw(3, 8), draw(2, 8)
    with pytest.raises(TypeError, match=r"`key_indices\.values`.*`key_indices\.offsets`"):
        fastattn.attention_varlen(query, table, table, [0, 1, 2], [0, 2, 3], key_indices=column)
    given = {"key_indices": column.values}
    output = fastattn.attention_varlen(query, table, table, [0, 1, 2], column.offsets, **given)
    assert output.shape == (2, 8)
    chunked = pa.chunked_array([column, column])
    with pytest.raises(TypeError, match=r"`key_indices\.combine_chunks\(\)\.values`"):
        fastattn.attention_varlen(query, table, table, [0, 1, 2], [0, 2, 3], key_indices=chunked)
    vectors = pa.array(table.tolist(), pa.list_(pa.float32(), 8))
    for given in (vectors, pa.chunked_array([vectors])):
        with pytest.raises(TypeError, match="key is an Arrow column of fixed_size_list") as error:
            attention(query, given, table)
        code = str(error.value).split("`")[1]
        key = eval(code, {"np": np, "key": given})
        assert np.array_equal(attention(query, key, table), attention(query, table, table))


# --- names of other libraries --------------------------------------------------------------------

FUNCTIONS = (
    fastattn.allocate,
    fastattn.allocate_shared,
    fastattn.attention,
    fastattn.attention_allocation,
    fastattn.attention_state,
    fastattn.attention_varlen,
    fastattn.explain,
    fastattn.fuse,
    fastattn.log_softmax,
    fastattn.logsumexp,
    fastattn.similarity,
    fastattn.softmax,
    fastattn.KVCache.__init__,
    fastattn.KVCache.append,
    fastattn.KVCache.attend,
    State.finish,
    fastattn.merge_states,
    fastattn.MultiHeadAttention.__call__,
    fastattn.MultiHeadAttention.__init__,
)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__qualname__)
def test_signatures_show_what_there_is(function):
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    written = (inspect.unwrap(function).__kwdefaults__ or {}).keys()
    assert written <= inspect.signature(function).parameters.keys()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__qualname__)
def test_unknown_names_are_a_type_error_as_everywhere(function):
    parameters = inspect.signature(function).parameters
    needed = [
        x for x in parameters.values() if x.kind is x.POSITIONAL_OR_KEYWORD and x.default is x.empty
    ]
    texts = {}
    for name in {*names._ELSEWHERE, "thread", "nonsense"} - set(parameters):
        wanted = rf"{function.__qualname__}\(\) got an unexpected keyword argument '{name}': \w"
        with pytest.raises(TypeError, match=wanted) as error:
            function(*[None] * len(needed), **{name: None})
        texts[name] = str(error.value)
    assert ("threads" in parameters) == ("`threads=thread`" in texts["thread"])
    assert all(x in texts["nonsense"] for x in parameters if x != "self")


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__qualname__)
def test_names_of_others_are_explained_before_what_is_missing(function):
    """Who writes `q=q` passes no query."""
    own = [None] if "self" in inspect.signature(function).parameters else []
    for name in {*names._ELSEWHERE, "nonsense"} - set(inspect.signature(function).parameters):
        wanted = rf"{function.__qualname__}\(\) got an unexpected keyword argument '{name}': \w"
        with pytest.raises(TypeError, match=wanted):
            function(*own, **{name: None})


def test_calls_in_the_words_of_flash_attention():
    q, k, v, splits = draw(6, 8), draw(9, 8), draw(9, 4), [0, 6]
    for call, advice in (
        (lambda: attention(q=q, k=k, v=v), "`query=q`"),
        (lambda: attention(q, k=k, v=v), "`key=k`"),
        (lambda: attention_varlen(q=q, k=k, v=v, cu_seqlens_q=splits), "`query=q`"),
        (
            lambda: attention_varlen(q, k, v, cu_seqlens_q=splits, cu_seqlens_k=[0, 9]),
            "`query_splits=cu_seqlens_q, key_splits=cu_seqlens_k`",
        ),
        (
            lambda: attention_varlen(q, k, v, cu_seq_q=splits, cu_seq_k=[0, 9], max_q=6, max_k=9),
            "`query_splits=cu_seq_q, key_splits=cu_seq_k`",
        ),
        (
            lambda: attention_varlen(q, q, q, cu_seqlens=splits, max_seqlen=6),
            "`query_splits=cu_seqlens, key_splits=cu_seqlens`",
        ),
        (lambda: softmax(input=q, dim=-1), "`x=input`"),
    ):
        with pytest.raises(TypeError, match=advice):
            call()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__qualname__)
def test_what_a_call_needs_and_does_not_have_is_named(function):
    given = {"query_splits": [0, 4], "key_splits": [0, 4], "budget": 1, "lses": np.ones((2, 4))}
    given |= dict.fromkeys(("budgets", "capacities"), np.ones(4))
    given |= dict.fromkeys(("embed_dim", "num_heads", "heads", "head_dim", "batch_shape"), 4)
    cache = fastattn.KVCache(4, 4, 4)
    module = fastattn.MultiHeadAttention(4, 2, seed=0)
    array = np.ones((4, 4, 4, 4) if "KVCache" in function.__qualname__ else (4, 4))
    needed = {
        name: given.get(name, array)
        for name, x in inspect.signature(function).parameters.items()
        if x.kind is x.POSITIONAL_OR_KEYWORD and x.default is x.empty
    }
    if "self" in needed:
        needed["self"] = cache if "KVCache" in function.__qualname__ else module
    for name in needed.keys() - {"self"}:
        with pytest.raises(TypeError, match=f"^{name} is missing: the call needs it$"):
            function(**{given: x for given, x in needed.items() if given != name})


def test_a_word_of_pytorch_has_one_sentence():
    with pytest.raises(TypeError, match=r"is_causal.*`causal=\"top_left\"`, which is what PyTorch"):
        attention(draw(5, 8), draw(7, 8), draw(7, 4), is_causal=True)
    with pytest.raises(TypeError, match=r"dropout_p.*inference: leave it out"):
        attention(draw(5, 8), draw(7, 8), draw(7, 4), dropout_p=0.0)
    with pytest.raises(TypeError, match="`axis=dim`"):
        softmax(draw(5, 8), dim=-1)


def test_caches_and_states_answer_too():
    for call, advice in (
        (lambda: fastattn.KVCache(1, 2, 4, num_heads=2), "`heads=num_heads`"),
        (lambda: fastattn.merge_states(draw(2, 3, 4), draw(2, 3), dim=0), "`axis=dim`"),
        (
            lambda: attention_varlen(*[draw(4, 8)] * 3, [0, 4], [0, 4], cu_seqlens_k=[0, 4]),
            "`query_splits=cu_seqlens_q, key_splits=cu_seqlens_k`",
        ),
    ):
        with pytest.raises(TypeError, match=advice):
            call()


def test_pytorch_means_what_its_words_are_translated_to():
    torch = pytest.importorskip("torch")
    query, key, value = draw(2, 3, 5, 8), draw(2, 3, 7, 8), draw(2, 3, 7, 4)
    theirs = [torch.from_numpy(x) for x in (query, key, value)]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    mask = draw(2, 3, 5, 7) > -1
    for there, here in (
        ({"is_causal": True}, {"causal": "top_left"}),
        ({"attn_mask": torch.from_numpy(mask)}, {"mask": mask}),
        ({"attn_mask": torch.from_numpy(draw(5, 7))}, {"mask": draw(5, 7)}),
    ):
        output = attention(query, key, value, **here)
        np.testing.assert_allclose(output, sdpa(*theirs, **there).numpy(), atol=tolerances.PYTORCH)
    padding = draw(2, 5, seed=3) > 1
    module = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    ours = fastattn.MultiHeadAttention.from_state_dict(module.state_dict(), 2)
    x = torch.from_numpy(draw(2, 5, 8))
    with torch.no_grad():
        expected, _ = module(x, x, x, key_padding_mask=torch.from_numpy(padding))
    output = ours(x, mask=~padding[:, None, None, :])
    np.testing.assert_allclose(output, expected.numpy(), atol=tolerances.PYTORCH)
