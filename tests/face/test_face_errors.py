"""Every call of attention that cannot work: the type of its error, the shapes, the way out."""

import numpy as np
import pytest
from refusals import K, Q, V, call, check, zeros

import fastattn
from fastattn import attention


class Lazy:
    """What a Dask array looks like from outside."""

    shape, dtype = (5, 8), np.dtype(np.float64)

    def __dask_graph__(self):
        return {}


class Sparse:
    shape = (5, 8)

    def tocsr(self):
        return self


class InAGraph:
    """What a torch tensor that needs a gradient does when NumPy asks."""

    requires_grad = True

    def __dlpack__(self, **options):
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


NAN = float("nan")

# name: (call, error, what its text must hold)
CASES = {
    # --- rank and sizes
    "query without dims": (call(zeros(), K, V), ValueError, ["too few dims", "()", "(..., L, E)"]),
    "key with one dim": (call(zeros(8), zeros(8), V), ValueError, ["too few dims", "(8,)"]),
    "value with one dim": (
        call(zeros(5, 8), zeros(7, 8), zeros(7)),
        ValueError,
        ["`np.asarray(value)[:, None]`"],
    ),
    "E differs": (
        call(Q, zeros(7, 6), V),
        ValueError,
        ["E = 8", "E = 6", "(2, 3, 5, 8)", "(7, 6)"],
    ),
    "E of the article": (
        call([0.1, 0.2, 0.3], [[0.5, 0.3], [0.4, 0.5]], [[0.6, 0.7], [0.8, 0.9]]),
        ValueError,
        ["E = 3", "E = 2", "(3,)", "(2, 2)"],
    ),
    "S differs": (call(Q, K, zeros(6, 4)), ValueError, ["S = 7", "S = 6", "(6, 4)"]),
    "batch does not broadcast": (
        call(Q, zeros(4, 3, 7, 8), V),
        ValueError,
        ["do not broadcast", "(2, 3, 5, 8)", "(4, 3, 7, 8)"],
    ),
    "heads without gqa": (
        call(zeros(2, 6, 5, 8), K, V),
        ValueError,
        ["(2, 6, 5, 8)", "(2, 3, 7, 8)", "enable_gqa=True"],
    ),
    "gqa not a multiple": (
        call(zeros(2, 4, 5, 8), K, V, enable_gqa=True),
        ValueError,
        ["4 over 3", "multiple", "(2, 4, 5, 8)", "axis -3"],
    ),
    "gqa value heads": (
        call(zeros(2, 6, 5, 8), K, zeros(2, 2, 7, 4), enable_gqa=True),
        ValueError,
        ["do not broadcast", "(2, 2, 7, 4)"],
    ),
    # --- words
    "unknown similarity": (
        call(similarity="cos"),
        ValueError,
        ["'cos'", "'cosine'", "'scaled_dot'"],
    ),
    "similarity no word": (call(similarity=["dot"]), ValueError, ["['dot']", "'dot'"]),
    "unknown causal": (call(causal="upper"), ValueError, ["'upper'", "top_left", "bottom_right"]),
    "causal a number": (call(causal=1), ValueError, ["1", "top_left"]),
    "unknown backend": (call(backend="cuda"), ValueError, ["'cuda'", "'numba'", "'reference'"]),
    "unknown option": (call(scales=1), TypeError, ["scales"]),
    # --- numbers
    "scale nan": (call(scale=NAN), ValueError, ["scale", "nan", "finite"]),
    "scale inf": (call(scale=-np.inf), ValueError, ["scale", "inf", "finite"]),
    "scale too large an int": (call(scale=10**5000), ValueError, ["scale", "beyond float64"]),
    "scale bool": (call(scale=True), TypeError, ["scale", "True"]),
    "scale text": (call(scale="1"), TypeError, ["scale", "'1'"]),
    "scale per head": (
        call(scale=np.ones(3)),
        ValueError,
        ["(3,)", "(2, 3)", "np.reshape(scale, (1, 3))"],
    ),
    "scale per batch": (
        call(scale=[1, 2]),
        ValueError,
        ["(2,)", "(2, 3)", "np.reshape(scale, (2, 1))"],
    ),
    "scale as Swin has it": (
        call(scale=zeros(3, 1, 1)),
        ValueError,
        ["(3, 1, 1)", "heads included", "np.reshape(scale, (1, 3))"],
    ),
    "scales of another batch": (
        call(scale=zeros(4, 5)),
        ValueError,
        ["(4, 5)", "(2, 3)", "one per head has shape (1, 3)"],
    ),
    "scale of no heads": (
        call(zeros(5, 8), zeros(7, 8), zeros(7, 4), scale=[2.0]),
        ValueError,
        ["(1,)", "np.reshape(scale, ())"],
    ),
    "scales of nan": (
        call(scale=[[1, 2, NAN]]),
        ValueError,
        ["(1, 3)", "nan at (0, 2), head 2", "finite"],
    ),
    "scales of inf": (call(scale=[[1], [np.inf]]), ValueError, ["inf at (1, 0)", "finite"]),
    "scales bool": (call(scale=[[True, False, True]]), TypeError, ["scale", "bool"]),
    "scales complex": (call(scale=[[1j, 0, 0]]), TypeError, ["scale", "complex"]),
    "scales of text": (call(scale=["1", "2"]), TypeError, ["scale", "(2,)"]),
    "scales ragged": (call(scale=[[1], [1, 2]]), TypeError, ["scale", "rows of equal length"]),
    "scale complex": (call(scale=1j), TypeError, ["scale", "1j"]),
    "softcap zero": (call(softcap=0.0), ValueError, ["softcap", "positive", "None"]),
    "softcap negative": (call(softcap=-3), ValueError, ["softcap", "-3", "positive"]),
    "softcap nan": (call(softcap=NAN), ValueError, ["softcap", "nan", "None"]),
    "threads zero": (call(threads=0), ValueError, ["threads", "0"]),
    "threads fraction": (call(threads=1.5), TypeError, ["threads", "1.5"]),
    # --- position
    "causal ambiguous": (
        call(causal=True),
        ValueError,
        ["L = 5", "S = 7", '"top_left"', '"bottom_right"', "query_offset="],
    ),
    "causal twice": (
        call(causal="top_left", query_offset=0),
        ValueError,
        ["top_left", "query_offset", "causal=True"],
    ),
    "offset too large": (
        call(causal=True, query_offset=2**60),
        ValueError,
        ["query_offset", str(2**60), "2**53"],
    ),
    "offset beyond int64": (
        call(causal=True, query_offset=2**70),
        ValueError,
        [str(2**70), "2**53"],
    ),
    "offset nan": (call(causal=True, query_offset=NAN), TypeError, ["query_offset", "NaN"]),
    "offset fraction": (call(causal=True, query_offset=0.5), TypeError, ["float64", "int64"]),
    "offset shape": (
        call(causal=True, query_offset=[0, 1]),
        ValueError,
        ["np.asarray(query_offset)[:, None]", "(2,)", "(2, 3)"],
    ),
    "offset checked though unused": (
        call(query_offset=[0, 1]),
        ValueError,
        ["np.asarray(query_offset)[:, None]"],
    ),
    "window no pair": (call(window=4), ValueError, ["window", "(left, right)", "4"]),
    "window of three": (call(window=(1, 2, 3)), ValueError, ["(1, 2, 3)", "(left, right)"]),
    "window negative": (call(window=(-1, 0)), ValueError, ["(-1, 0)", "left", "None"]),
    "window fraction": (call(window=(1.0, 0)), TypeError, ["left", "1.0"]),
    "window bool": (call(window=(0, True)), TypeError, ["right", "True"]),
    "window too far": (call(window=(0, 2**60)), ValueError, ["right", "2**53", "None"]),
    # --- lengths
    "lengths nan": (
        call(key_lengths=np.array([[3.0], [NAN]])),
        TypeError,
        ["key_lengths", "(2, 1)", "NaN", "int64"],
    ),
    "lengths float": (call(key_lengths=[[3.0], [2.0]]), TypeError, ["float64", "astype(np.int64)"]),
    "lengths bool": (call(key_lengths=True), TypeError, ["bool"]),
    "lengths negative": (call(key_lengths=[[-1], [2]]), ValueError, ["-1", "0..S = 7", "np.clip"]),
    "lengths beyond S": (call(key_lengths=8), ValueError, ["8", "0..S = 7", "np.clip"]),
    "lengths unsigned": (call(key_lengths=np.uint64(2**64 - 1)), ValueError, [str(2**64 - 1)]),
    "lengths without heads": (
        call(key_lengths=[3, 4]),
        ValueError,
        ["(2,)", "(2, 3)", "heads included", "np.asarray(key_lengths)[:, None]"],
    ),
    "lengths of three": (
        call(key_lengths=zeros(3, 1, dtype=int)),
        ValueError,
        ["(3, 1)", "(2, 3)"],
    ),
    "lengths without a batch": (
        call(zeros(5, 8), zeros(7, 8), zeros(7, 4), key_lengths=[3]),
        ValueError,
        ["(1,)", "one integer"],
    ),
    "lengths masked": (
        call(key_lengths=np.ma.masked_array([[3], [4]])),
        TypeError,
        ["key_lengths is a masked array"],
    ),
    # --- mask
    "mask sizes": (call(mask=zeros(5, 6)), ValueError, ["(5, 6)", "(2, 3, 5, 7)", "equal or 1"]),
    "mask per batch row": (
        call(mask=zeros(2, 7, dtype=bool)),
        ValueError,
        ["(2, 7)", "np.asarray(mask)[:, None, None, :]"],
    ),
    "mask enlarges": (
        call(mask=zeros(9, 2, 3, 5, 7)),
        ValueError,
        ["(9, 2, 3, 5, 7)", "(2, 3, 5, 7)"],
    ),
    "mask enlarges a dim": (
        call(zeros(1, 5, 8), zeros(7, 8), zeros(7, 4), mask=zeros(2, 5, 7)),
        ValueError,
        ["(2, 5, 7)", "(1, 5, 7)"],
    ),
    "mask of integers": (
        call(mask=zeros(5, 7, dtype=np.int32)),
        TypeError,
        ["int32", "(5, 7)", "np.asarray(mask, bool)"],
    ),
    "mask complex": (call(mask=zeros(5, 7, dtype=complex)), TypeError, ["complex128"]),
    # --- flags
    "enable_gqa text": (call(enable_gqa="no"), TypeError, ["enable_gqa", "'no'", "True or False"]),
    "return_lse number": (call(return_lse=1), TypeError, ["return_lse", "1", "True or False"]),
    "return_weights array": (
        call(return_weights=zeros(2)),
        TypeError,
        ["return_weights", "True or False"],
    ),
    # --- dtypes
    "complex": (
        call(Q.astype(complex), K, V),
        TypeError,
        ["query", "complex128", "np.real(query)"],
    ),
    "longdouble": (
        call(Q, K.astype(np.longdouble), V),
        TypeError,
        ["key", "longdouble" if np.dtype(np.longdouble).name == "longdouble" else "float128"],
    ),
    "object": (call(Q, K, V.astype(object)), TypeError, ["value", "object", "(2, 3, 7, 4)"]),
    "text": (call(Q.astype(str), K, V), TypeError, ["query", "<U"]),
    "dates": (call(Q.astype("M8[s]"), K, V), TypeError, ["query", "datetime64"]),
    "records": (call(zeros(5, 8, dtype=[("a", float)]), K, V), TypeError, ["query"]),
    "None": (call(None, K, V), TypeError, ["query", "object"]),
    "ragged": (call(Q, [[1.0], [1.0, 2.0]], V), TypeError, ["key", "equal length"]),
    "masked": (
        call(Q, K, np.ma.masked_array(V)),
        TypeError,
        ["value", "masked", ".filled", ".data"],
    ),
    "masked mask": (
        call(mask=np.ma.masked_array(zeros(5, 7))),
        TypeError,
        ["mask is a masked array"],
    ),
    "dask": (call(Lazy(), K, V), TypeError, ["query", "Dask", ".compute()"]),
    "sparse": (call(Q, Sparse(), V), TypeError, ["key", "sparse", ".toarray()"]),
    "in a gradient graph": (
        call(Q, InAGraph(), V),
        TypeError,
        ["key", "requires a gradient", "`key.detach()`"],
    ),
    # --- out
    "out shape": (
        call(out=zeros(2, 3, 5, 5)),
        ValueError,
        ["(2, 3, 5, 5)", "(2, 3, 5, 4)", "np.empty"],
    ),
    "out would broadcast": (call(out=zeros(9, 2, 3, 5, 4)), ValueError, ["(9, 2, 3, 5, 4)"]),
    "out dtype": (call(out=zeros(2, 3, 5, 4, dtype=np.float32)), TypeError, ["float32", "float64"]),
    "out list": (call(out=[]), TypeError, ["builtins.list", "(2, 3, 5, 4)"]),
    "out masked": (call(out=np.ma.masked_array(zeros(2, 3, 5, 4))), TypeError, ["MaskedArray"]),
    "out read-only": (
        call(out=np.broadcast_to(0.0, (2, 3, 5, 4))),
        ValueError,
        ["read-only", "(2, 3, 5, 4)"],
    ),
}


@pytest.mark.parametrize("shape", [(5, 6), (3, 7), (7, 2), (9, 2, 3, 5, 7)])
def test_only_a_mask_per_batch_row_is_told_how_to_become_one(shape):
    with pytest.raises(ValueError, match=r"equal or 1$"):
        attention(Q, K, V, mask=zeros(*shape, dtype=bool))


@pytest.mark.parametrize("name", CASES)
def test_error_says_what_and_the_way_out(name):
    check(*CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_explain_refuses_what_attention_refuses(name):
    case, error, fragments = CASES[name]
    check(case._replace(function=fastattn.explain), error, fragments)


@pytest.mark.parametrize("good", [{"scale": 1.0}, {"causal": "top_left"}, {"window": (1, 0)}])
def test_equal_values_of_a_wrong_type_do_not_pass_on_an_earlier_call(good):
    """1, 1.0 and True are equal and hash alike, so a remembered call could let them through."""
    bad = {"scale": True, "causal": 1, "window": (True, 0)}
    attention(Q, K, V, backend="reference", **good)
    attention(Q, K, V, backend="reference", causal="top_left")
    ((option, _),) = good.items()
    with pytest.raises((TypeError, ValueError)):
        attention(Q, K, V, backend="reference", **{option: bad[option]})


def test_two_byte_records_are_no_halves():
    with pytest.raises(TypeError, match="numbers are needed"):
        attention(zeros(2, 3, 5, 8, dtype=[("a", np.int16)]), K, V)


def test_a_real_dask_array_is_refused():
    dask = pytest.importorskip("dask.array")
    with pytest.raises(TypeError, match="compute"):
        attention(dask.from_array(Q), K, V)
