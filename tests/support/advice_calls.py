"""A wrong call for every text that quotes code; `advice.py` says what is done with them."""

import itertools
from unittest import mock

from advice_names import BY_OTHER_NAMES
from advice_wrong import (
    OPERANDS,
    PACKED,
    RAGGED,
    SPLITS,
    Wrong,
    X,
    attend,
    cached,
    display,
    ragged,
    tensor,
)
from foreign import Brain16, Lazy, Lists, MultiheadAttention, Series, Sparse, Tensor, safetensors

_fresh = itertools.count(0.37, 0.01)

OBJECTS = "np.array([[1, 2.5, 3, 4]] * 3, dtype=object)"
FIRST_DTYPES = {
    "objects": OBJECTS,
    "extended": "np.ones((3, 4), np.longdouble)",
    "text": "np.full((3, 4), '1.5')",
    "records": "np.ones((3, 4), [('a', 'f8'), ('b', 'f8')])",
    "raw": "np.full((3, 4), 0x3F80, np.uint16).view('V2')",
    "complex": "[[1j, 2], [3, 4]]",
    "masked": "np.ma.masked_array(np.ones((3, 4)))",
    "lazy": Lazy,
    "sparse": Sparse,
}

WRONG: dict[str, Wrong] = {
    **{f"of {kind}": Wrong("softmax(x)", {"x": x}) for kind, x in FIRST_DTYPES.items()},
    # --- arrays of other libraries
    "in a graph": tensor(requires_grad=True, methods=("detach",)),
    "sparse tensor": tensor(layout="torch.sparse_coo", methods=("to_dense",)),
    "elsewhere": tensor(device="cuda:0", methods=("cpu",)),
    "negated": tensor(is_neg=lambda: True, methods=("resolve_neg",)),
    "quantized": tensor(is_quantized=True, methods=("dequantize",)),
    "float8 tensor": tensor(dtype="torch.float8_e4m3fn", methods=("float",)),
    "nested": Wrong(
        "softmax(x)",
        {"x": lambda: Tensor(is_nested=True, methods=("values", "offsets"))},
        into="",
    ),
    "bfloat16 without its type": Wrong("softmax(x)", {"x": Brain16}, without=("ml_dtypes",)),
    "Arrow lists": Wrong("softmax(x)", {"x": lambda: Lists("list<item: double>")}, into=""),
    "Arrow vectors": Wrong("softmax(x)", {"x": lambda: Lists("fixed_size_list<item: float>[3]")}),
    # --- out
    "out of a list": attend(", out=out", out="[]", into="out"),
    "out of another shape": attend(", out=out", out="np.empty((5, 4))", into="out"),
    "out of another dtype": attend(
        ", out=out", out="np.empty((2, 3, 5, 4), np.float32)", into="out"
    ),
    # --- numbers per head
    "sinks of bools": attend(", sinks=sinks", sinks="[True, False, True]"),
    "a sink beyond float32": Wrong(
        "attention(query, key, value, sinks=sinks)",
        {name: f"{x}.astype(np.float32)" for name, x in OPERANDS.items()} | {"sinks": "1e300"},
    ),
    "scales of heads": attend(", scale=scale", scale="[1.0, 2.0, 3.0]"),
    "scales of a batch": attend(", scale=scale", scale="[1.0, 2.0]"),
    "a scale in brackets": attend(", scale=scale", scale="[0.5]"),
    # --- shapes
    "one number per key": attend(value="[1.0] * 7", into=None),
    "fewer key heads": attend(query="np.ones((2, 6, 5, 8))"),
    "fewer packed key heads": Wrong(
        RAGGED,
        {"query": "np.ones((6, 4, 8))", "key": "np.ones((9, 2, 8))", "value": "np.ones((9, 2, 8))"}
        | SPLITS,
    ),
    "one factor per row": Wrong("logsumexp(x, b=b)", X | {"b": "np.ones(3)"}),
    "weights of one row of values": Wrong(
        "fuse(weights, value)", {"weights": "np.ones(7)", "value": "[1.0] * 7"}
    ),
    **{
        f"linear, {name}": Wrong(
            "fastattn.linear(x, weight, bias)",
            {"x": "np.ones((3, 4))", "weight": "np.ones((5, 4))", "bias": "np.ones(5)", **given},
        )
        for name, given in {
            "turned": {"weight": "np.ones((4, 5))"},
            "one output": {"weight": "np.ones(4)", "bias": "[1.0]"},
            "one number for all": {"bias": "1.0"},
            "bias as a row": {"bias": "np.ones((1, 5))"},
        }.items()
    },
    "a packed weight by itself": Wrong(
        "fastattn.PackedWeight(weight)", {"weight": "np.ones((5, 4))"}, into=""
    ),
    "one row for a module": Wrong(
        "module(query)",
        {"query": "[1.0] * 4", "module": "MultiHeadAttention(4, 2, seed=0)"},
    ),
    # --- masks
    "mask of integers": attend(", mask=mask", mask="[[2] * 7] * 5"),
    "mask per batch row of keys": attend(", mask=mask", mask="np.ones((2, 7), bool)"),
    "mask per batch row": attend(", mask=mask", mask="np.ones((2, 5, 7), bool)"),
    "mask per row and head": attend(", mask=mask", mask="np.ones((6, 5, 7), bool)"),
    # A call that is known already is repeated without a look at its mask.
    "mask of zeros and ones": attend(
        ", mask=mask, scale=scale",
        mask="np.tril(np.ones((5, 7), np.float32))",
        scale=lambda: next(_fresh),
    ),
    "a function for a mask": attend(", mask=mask", mask="lambda b, h, q, k: q >= k"),
    "a function for a mask of two dims": Wrong(
        "attention(query, query, query, mask=mask)",
        {"query": "np.ones((5, 8))", "mask": "lambda b, h, q, k: (q >= k) & (b == 0)"},
    ),
    # --- positions
    "causal of unequal lengths": attend(", causal=causal", causal="True", n="2"),
    "causal twice": attend(
        ", causal=causal, query_offset=query_offset", causal="'top_left'", query_offset="2"
    ),
    "bottom right of a part": Wrong(
        'attention_state(query, key, value, causal="bottom_right")',
        OPERANDS | {"total": "7", "n": "2"},
    ),
    "lengths without heads": attend(", key_lengths=key_lengths", key_lengths="[3, 4]"),
    "lengths in one row": attend(", key_lengths=key_lengths", key_lengths="[1, 2, 3, 4, 5, 6]"),
    "lengths of one": Wrong(
        "attention(query, key, key, key_lengths=key_lengths)",
        {"query": "np.ones((5, 8))", "key": "np.ones((7, 8))", "key_lengths": "[3]"},
    ),
    "lengths of floats": attend(", key_lengths=key_lengths", key_lengths="[[3.0], [4.0]]"),
    "lengths beyond S": attend(", key_lengths=key_lengths", key_lengths="[[9], [4]]"),
    "ids of floats": attend(
        ", query_segments=query_segments, key_segments=key_segments",
        query_segments="[0.0] * 5",
        key_segments="[0] * 7",
    ),
    "ids per batch row": attend(
        ", query_segments=query_segments, key_segments=key_segments",
        query_segments="[[0] * 5, [1] * 5]",
        key_segments="[0] * 7",
    ),
    # --- ragged
    "splits of nothing": ragged(key_splits="[]", lengths="[4, 5]", into="key_splits"),
    "splits of floats": ragged(key_splits="[0.0, 4.0, 9.0]"),
    "lengths that fall": ragged(key_splits="[5, 4]", query_splits="[0, 3, 6]"),
    "lengths that fall and do not fit": ragged(
        key_splits="[0, 9, 4]", lengths="[4, 5]", into="key_splits"
    ),
    "lengths for splits": ragged(query_splits="[3, 3]", key_splits="[4, 5]")._replace(rounds=2),
    "splits that begin late": ragged(key_splits="[2, 4, 9]", lengths="[4, 5]", into="key_splits"),
    # --- caches
    "truncated too far": cached("cache.truncate(lengths)", lengths="[3, 3]"),
    "what was given back": cached(
        "dropped(cache).attend(query, window=window)",
        query="np.ones((2, 1, 1, 4))",
        window="None",
        dropped="lambda c: [c.append(*np.ones((2, 2, 1, 297, 4))), c.drop_before(200), c][2]",
    ),
    "given back beyond the end": cached("cache.drop_before(positions)", positions="[3, 3]"),
    "reordered by floats": cached("cache.reorder(indices)", indices="[1.0, 0.0]"),
    "tokens of integers": cached(
        "cache.append(key, value)",
        key="np.ones((2, 1, 1, 4), int)",
        value="np.ones((2, 1, 1, 4))",
    ),
    "NaN in int8": Wrong(
        "start(key, dtype=dtype)",
        {
            "key": "np.full((1, 1, 1, 4), np.nan)",
            "dtype": "'int8'",
            "start": "lambda key, dtype: KVCache(1, 1, 4, dtype=dtype).append(key, key)",
        },
    ),
    "more than int8 holds": Wrong(
        "start(key, dtype=dtype)",
        {
            "key": "np.full((1, 1, 1, 4), 1e300)",
            "dtype": "'int8'",
            "start": "lambda key, dtype: KVCache(1, 1, 4, dtype=dtype).append(key, key)",
        },
    ),
    "a cache of a missing type": Wrong(
        "storage(dtype)",
        {
            "dtype": "'bfloat16'",
            "storage": "__import__('fastattn._core.stored', fromlist=['_']).storage",
        },
        without=("ml_dtypes",),
        patches=(("numpy.dtype", mock.Mock(side_effect=TypeError)),),
    ),
    # --- modules
    "average of no weights": Wrong(
        "module(query, average_weights=average_weights)",
        {
            "query": "np.ones((5, 4))",
            "average_weights": "True",
            "module": "MultiHeadAttention(4, 2, seed=0)",
        },
    ),
    "another module": Wrong(
        "MultiHeadAttention.from_module(module)",
        {"module": "MultiHeadAttention(4, 2, seed=0)", "num_heads": "2"},
        into="",
    ),
    "a module that trains": Wrong(
        "MultiHeadAttention.from_module(module)", {"module": MultiheadAttention}
    ),
    "a module for a state": Wrong(
        "MultiHeadAttention.from_state_dict(module, 2)",
        {"module": "MultiHeadAttention(4, 2, seed=0)"},
    ),
    "no safetensors": Wrong(
        "MultiHeadAttention.from_safetensors(path, 2)", {"path": "'x'"}, without=("safetensors",)
    ),
    "bfloat16 in a file": Wrong(
        "MultiHeadAttention.from_safetensors(path, 2)",
        {"path": lambda: safetensors("BF16", 2)},
        without=("ml_dtypes",),
    ),
    # --- allocation
    "a method without units": Wrong(
        "allocate(weights, budget, method=method)",
        {"weights": "[1, 2]", "budget": "4", "method": "'dhondt'"},
    ),
    "a budget that is left": Wrong(
        "allocate(weights, budget, upper=upper)",
        {"weights": "[1, 2]", "budget": "4", "upper": "1"},
    ),
    "a budget in parts of units": Wrong(
        "allocate(weights, budget, unit=unit)",
        {"weights": "[1, 2]", "budget": "4.5", "unit": "1"},
    ),
    "receivers by number": Wrong(
        "allocate(weights, budget, where=where)",
        {"weights": "[1, 2]", "budget": "4", "where": "[0, 1]"},
    ),
    "one requester": Wrong(
        "allocate_shared(weights, budgets, capacities)",
        {"weights": "[1, 2]", "budgets": "[1.0]", "capacities": "[1.0, 1.0]"},
    ),
    "a budget without limit": Wrong(
        "allocate_shared(weights, budgets, capacities)",
        {"weights": "[[1, 2]]", "budgets": "[np.inf]", "capacities": "[1.0, 1.0]"},
        into="budgets",
    ),
    "three components and two": Wrong(
        "attention_allocation(query, key)", {"query": "[1.0, 2, 3]", "key": "[[1.0, 2], [3, 4]]"}
    ),
    "two components and three": Wrong(
        "attention_allocation(query, key)", {"query": "[1.0, 2]", "key": "[[1.0, 2, 3]]"}
    ),
    "one value per key": Wrong(
        "attention_allocation(query, key, value)",
        {"query": "[1.0, 2]", "key": "[[1.0, 2], [3, 4]]", "value": "[1.0, 2.0]"},
    ),
    "a Series of values": Wrong(
        "attention_allocation(query, key, value)",
        {
            "query": "[1.0, 2]",
            "key": "[[1.0, 2], [3, 4]]",
            "value": lambda: Series([1.0, 2.0]),
        },
    ),
    # --- the machine
    "no backend at all": Wrong(
        "softmax(x)",
        {"x": "np.ones((3, 5, 7))"},
        patches=(("fastattn._core.backends._AUTOMATIC", ()),),
    ),
    "no Numba": Wrong(
        "run_module(name)",
        {"name": "'fastattn._numba.backend'", "run_module": "__import__('runpy').run_module"},
        without=("numba",),
    ),
    "a compiler that is switched off": Wrong(
        "attention(query, key, value, scale=scale, backend=backend)",
        OPERANDS | {"scale": "0.123", "backend": "'numba'"},
        patches=(("numba.config.DISABLE_JIT", True),),
    ),
    "kernels that were never built": Wrong(
        "run_module(name)",
        {"name": "'fastattn._cython.backend'", "run_module": "__import__('runpy').run_module"},
        without=("fastattn._cython._native",),
    ),
    "kernels of other sources": Wrong(
        "check()",
        {"check": "__import__('fastattn._cython.backend', fromlist=['_'])._check_sources"},
        patches=(("fastattn._cython.words.digest", lambda *given: b"others"),),
    ),
    # --- pictures
    "no Matplotlib": Wrong(
        "plot(weights)",
        {"weights": "np.ones((3, 4))", "plot": lambda: display("AttentionDisplay").from_weights},
        without=("matplotlib", "matplotlib.figure"),
    ),
    "a picture of text": Wrong(
        "plot(weights)",
        {"weights": "[['1', '2']]", "plot": lambda: display("AttentionDisplay").from_weights},
    ),
    "amounts as text": Wrong(
        "plot(allocation)",
        {"allocation": "['1', '2']", "plot": lambda: display("AllocationDisplay")},
    ),
    "hidden by number": Wrong(
        "plot(weights, hidden=hidden)",
        {
            "weights": "np.ones((1, 2))",
            "hidden": "[[0, 1]]",
            "plot": lambda: display("AttentionDisplay"),
        },
    ),
    "too many heads": Wrong(
        "plot(weights)",
        {
            "weights": "np.ones((1, 65, 2, 2))",
            "plot": lambda: display("AttentionDisplay").from_weights,
        },
    ),
    "too many rows": Wrong(
        "plot(allocation)",
        {
            "allocation": "np.ones((65, 2))",
            "plot": lambda: lambda allocation: display("AllocationDisplay")(allocation).plot(),
        },
    ),
    "amounts near the largest number": Wrong(
        "plot(allocation)",
        {
            "allocation": "[1e308, 1.7e308]",
            "plot": lambda: lambda allocation: display("AllocationDisplay")(allocation).plot(),
        },
    ),
    "too few axes": Wrong(
        "plot(weights, ax=ax)",
        {
            "weights": "np.ones((2, 2, 2))",
            "plt": "__import__('matplotlib.pyplot').pyplot",
            "ax": "plt.subplots(1, 1)[1]",
            "plot": lambda: display("AttentionDisplay").from_weights,
        },
        into="ax",
    ),
    "an example without its data": Wrong(
        "needed(module, why)",
        {
            "module": "'sklearn'",
            "why": "'the digits are there'",
            "needed": "__import__('fastattn.examples.report', fromlist=['_']).needed",
        },
        without=("sklearn",),
    ),
    "nearly a name": attend(", windows=windows", windows="(2, 0)"),
    "splits for a batch": attend(
        ", cu_seqlens_q=cu_seqlens_q", cu_seqlens_q="[0, 3, 6]", into="", **PACKED, **SPLITS
    ),
    "sinks of a part": Wrong(
        "attention_state(query, key, value, sinks=sinks)",
        OPERANDS | {"sinks": "0.0", "state": "attention_state(query, key, value)"},
        into="",
    ),
    "lse of a part": Wrong(
        "attention_state(query, key, value, return_lse=return_lse)",
        OPERANDS | {"return_lse": "True", "state": "attention_state(query, key, value)"},
        into="",
    ),
    "a mask of PyTorch's module": Wrong(
        "module(query, attn_mask=attn_mask)",
        {
            "query": "np.ones((5, 4))",
            "attn_mask": "np.zeros((5, 5), bool)",
            "module": "MultiHeadAttention(4, 2, seed=0)",
        },
    ),
    "a mask of a ragged call": ragged(", mask=mask", mask="None"),
    **BY_OTHER_NAMES,
}
