"""Sizes that no memory holds, more dims than NumPy has, masks that are probably none."""

import os
import warnings
import zlib

import children
import numpy as np
import pytest
from foreign import safetensors

import fastattn
from fastattn import attention, softmax
from fastattn._core import backends, masks

MOST = 62


def huge(*shape):
    return np.broadcast_to(np.float32(1), shape)


def tiny(*shape):
    return np.broadcast_to(np.int8(1), shape)


def packed(query, key):
    return fastattn.attention_varlen(query, key, key, [0, len(query)], [0, 1], return_lse=True)


# --- dims ----------------------------------------------------------------------------------------


def of_dims(dims):
    x = np.arange(6, dtype=np.float32).reshape((1,) * (dims - 2) + (2, 3))
    return x, x[..., :0] @ np.swapaxes(x[..., :0], -1, -2) + 0.5, (1,) * (dims - 2)


DIMS = {
    "attention": lambda x, w, s: attention(x, x, x, mask=w > 0, return_lse=True)[0],
    "numbers over the batch": lambda x, w, s: attention(
        x,
        x,
        x,
        causal=True,
        key_lengths=np.full(s, 2),
        query_offset=np.zeros(s, int),
        sinks=np.full(s, -np.inf),
        alibi_slopes=np.zeros(s),
        query_segments=np.zeros((*s, 2), int),
        key_segments=np.zeros((*s, 2), int),
    ),
    "similarity": lambda x, w, s: fastattn.similarity(x, x),
    "distances": lambda x, w, s: fastattn.similarity(x, x, metric="euclidean"),
    "softmax": lambda x, w, s: softmax(x, mask=x > 1),
    "logsumexp": lambda x, w, s: fastattn.logsumexp(x, axis=(0, -1), keepdims=True),
    "logsumexp with factors": lambda x, w, s: fastattn.logsumexp(
        x, b=np.float32([1, -2, 3]), return_sign=True
    )[0],
    "fuse": lambda x, w, s: fastattn.fuse(w, x),
    "linear": lambda x, w, s: fastattn.linear(x, np.eye(2, 3)),
    "fuse apart": lambda x, w, s: fastattn.fuse(w, x, reduce=False),
    "state": lambda x, w, s: fastattn.attention_state(x, x, x).finish(),
    "merge": lambda x, w, s: fastattn.merge_states(x, w[..., 0])[0],
    "cache": lambda x, w, s: _cached(x, s),
}


def _cached(x, batch):
    cache = fastattn.KVCache(batch[:-1], 1, 3)
    cache.append(x, x)
    return cache.attend(x)


@pytest.mark.parametrize("name", DIMS)
@pytest.mark.parametrize("dims", [33, MOST])
def test_more_dims_than_numpy_broadcasts(backend, name, dims):
    few, many = DIMS[name](*of_dims(4)), DIMS[name](*of_dims(dims))
    assert np.array_equal(np.ravel(few), np.ravel(many))


@pytest.mark.parametrize(
    "name", [name for name in DIMS if not name.startswith(("softmax", "logsumexp"))]
)
@pytest.mark.parametrize("dims", [MOST + 1, 64])
def test_too_many_dims_are_refused(name, dims):
    with pytest.raises(ValueError, match=rf"{dims} dims, and at most {MOST} .*reshape"):
        DIMS[name](*of_dims(dims))


def test_a_module_has_one_dim_less():
    module = fastattn.MultiHeadAttention(3, 1, seed=0)
    x = of_dims(MOST - 1)[0]
    assert np.array_equal(module(x).ravel(), module(of_dims(2)[0]).ravel())
    with pytest.raises(ValueError, match=f"at most {MOST - 1} can be computed"):
        module(of_dims(MOST)[0])


# --- sizes ---------------------------------------------------------------------------------------

BEYOND = {
    "similarity": lambda: fastattn.similarity(huge(2**33, 4), huge(2**33, 4)),
    "output": lambda: attention(huge(2**45, 4), huge(1, 4), huge(1, 2**30)),
    "weights": lambda: attention(
        huge(2**33, 1), huge(2**33, 1), huge(2**33, 0), return_weights=True
    ),
    "explain": lambda: fastattn.explain(huge(2**45, 4), huge(1, 4), huge(1, 2**30)),
    "linear": lambda: fastattn.linear(huge(2**40, 4), huge(2**40, 4)),
    "pack_linear": lambda: fastattn.pack_linear(tiny(2**40, 2**21)),
    "fuse": lambda: fastattn.fuse(huge(2**40, 4), huge(4, 2**40)),
    "fuse apart": lambda: fastattn.fuse(huge(2**40, 4), huge(4, 2**30), reduce=False),
    "softmax": lambda: softmax(np.broadcast_to(np.int8(1), 2**62)),
    "logsumexp": lambda: fastattn.logsumexp(np.broadcast_to(np.int8(1), (2**62, 1))),
    "cache": lambda: fastattn.KVCache((2**40, 2**40), 1, 4),
    "allocate shared": lambda: fastattn.allocate_shared(
        np.broadcast_to(np.int8(1), (2**31, 2**30)), 1.0, 1.0
    ),
    "softmax of bytes": lambda: softmax(tiny(2**60, 4), mask=np.full(4, 0.5)),
    "softmax with a wide mask": lambda: softmax(huge(2**58, 4), mask=np.full(4, 0.5)),
    "log_softmax": lambda: fastattn.log_softmax(tiny(2**60, 4), mask=np.ones(4, bool)),
    "logsumexp with factors": lambda: fastattn.logsumexp(tiny(2**60, 4), b=np.ones(4)),
    "logsumexp over both": lambda: fastattn.logsumexp(huge(2**58, 1), b=tiny(8)),
    "logsumexp and signs": lambda: fastattn.logsumexp(huge(2**60, 1), b=tiny(1)),
    "allocate": lambda: fastattn.allocate(tiny(2**62), 1),
    "allocate rows": lambda: fastattn.allocate(tiny(2**40, 2**22), 1.0),
    "budgets": lambda: fastattn.allocate(tiny(2**60, 2), tiny(2**60), unit=1),
    "bounds": lambda: fastattn.allocate([1.0, 1.0], 1, lower=tiny(2**60, 2)),
    "ragged": lambda: packed(tiny(2**62, 1), tiny(1, 1)),
    "ragged lse": lambda: packed(tiny(2**61, 2, 0), tiny(1, 2, 0)),
    "splits": lambda: fastattn.attention_varlen(
        tiny(1, 1), tiny(1, 1), tiny(1, 1), tiny(2**62), tiny(2**62)
    ),
    "indices": lambda: fastattn.attention_varlen(
        tiny(1, 1), tiny(1, 1), tiny(1, 1), [0, 1], [0, 2**62], key_indices=tiny(2**62)
    ),
    "a module": lambda: fastattn.MultiHeadAttention(4, 2, seed=0)(tiny(2**60, 4)),
}


@pytest.mark.parametrize("name", BEYOND)
def test_results_beyond_the_address_space_are_refused(name):
    with pytest.raises(ValueError, match=r"shape \(.*bytes, more than there are addresses: .*part"):
        BEYOND[name]()


@pytest.mark.parametrize("size", [2**48, 2**40])
def test_results_beyond_the_memory_say_their_size(size):
    for call in (
        lambda: fastattn.similarity(huge(size, 4), huge(64, 4)),
        lambda: softmax(huge(size, 64)),
        lambda: fastattn.fuse(huge(size, 64), huge(64, 4)),
        lambda: packed(huge(size, 64), huge(1, 64)),
    ):
        with pytest.raises(MemoryError, match=rf"shape \({size}"):
            call()


def test_a_wrong_out_is_refused_before_work_starts(monkeypatch):
    """Also where a result is computed aside."""
    monkeypatch.setattr(backends, "pick", None)
    x = np.ones((3, 4))
    for call in (
        lambda out: fastattn.logsumexp(x, b=2.0, out=out),
        lambda out: fastattn.logsumexp(x, b=2.0, keepdims=True, return_sign=True, out=out),
    ):
        with pytest.raises(ValueError, match=r"out has shape \(5,\), the result has \(3,"):
            call(np.empty(5))
        with pytest.raises(TypeError, match="out must be a plain NumPy array"):
            call([0.0] * 3)


# --- settings and files --------------------------------------------------------------------------


def test_a_disabled_compiler_is_named_by_every_call():
    code = """
        import numpy as np, fastattn
        x = np.ones((2, 3))
        for call in (
            lambda: fastattn.attention(x, x, x, backend="numba"),
            lambda: fastattn.similarity(x, x, backend="numba"),
            lambda: fastattn.softmax(x, backend="numba"),
            lambda: fastattn.allocate(x, 1.0, backend="numba"),
        ):
            try:
                call()
            except (ValueError, RuntimeError) as error:
                assert "NUMBA_DISABLE_JIT is set" in str(error), error
                print("refused")
        fastattn.show_config()
        print(fastattn.attention(x, x, x, backend="reference").shape)
    """
    output = children.run(code, NUMBA_DISABLE_JIT=1).splitlines()
    assert output[:4] == ["refused"] * 4
    assert output[-1] == "(2, 3)"


@pytest.mark.parametrize(("kind", "size"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("C64", 8)])
def test_dtypes_of_files_that_weights_cannot_have(kind, size):
    pytest.importorskip("safetensors")
    path = safetensors(kind, size)
    with pytest.raises(TypeError, match=rf"'in_proj_weight' of shape \(12, 4\) .*{kind}.*F32"):
        fastattn.MultiHeadAttention.from_safetensors(path, 2)
    os.unlink(path)


def test_a_folder_is_no_file(tmp_path):
    pytest.importorskip("safetensors")
    load = fastattn.MultiHeadAttention.from_safetensors
    with pytest.raises(IsADirectoryError, match="is a folder; name the file in it, which ends in"):
        load(tmp_path, 2)
    (tmp_path / "modèle.safetensors").write_bytes(b"")
    with pytest.raises(IsADirectoryError, match=r"there are 'modèle\.safetensors'"):
        load(str(tmp_path), 2)
    with pytest.raises(ValueError, match="no safetensors file, or not whole"):
        load(tmp_path / "modèle.safetensors", 2)
    for path in (5, None, b"x"):
        with pytest.raises(TypeError, match="path must be a str or a path"):
            load(path, 2)


# --- numbers per head ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sinks", "alibi_slopes"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numbers_beyond_float32_name_its_range(name, dtype):
    x = np.ones((2, 3, 4), dtype)
    with pytest.raises(ValueError, match=r"1e\+300 at \(1,\), beyond the range of float32 .*3\.4e"):
        attention(x, x, x, **{name: [1.0, 1e300]})
    x = x.astype(np.float64)
    assert attention(x, x, x, **{name: [1.0, 1e300]}).shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"inf at .*: every entry must be finite"):
        attention(x, x, x, **{name: [1.0, np.inf]})


def test_a_sink_below_float32_counts_for_nothing():
    x = np.ones((3, 4), np.float32)
    assert np.array_equal(attention(x, x, x, sinks=-1e300), attention(x, x, x))


# --- masks of 0 and 1 ----------------------------------------------------------------------------

WARNED = {
    "causal": np.tril(np.ones((5, 7))),
    "all ones": np.ones((5, 7), np.float32),
    "float16": np.eye(5, 7, dtype=np.float16),
    "columns": np.array([[1, 1, 1, 1, 1, 0, 0]], np.float32),
    "repeated": np.broadcast_to(np.float32([[1.0]]), (5, 7)),
    "ones in the last columns": np.repeat([[0.0] * 61 + [1.0] * 3], 4, axis=0),
    "ones of the second sentence": np.float32([[[[0] * 64]], [[[1] * 64]]]),
    "negative zero": np.where(np.eye(5, 7) > 0, 1.0, -0.0),
}
QUIET = {
    "bool": np.tril(np.ones((5, 7), bool)),
    "all zeros": np.zeros((5, 7)),
    "hiding": np.where(np.eye(5, 7) > 0, 0, -np.inf),
    "hiding among ones": np.where(np.eye(5, 7) > 0, 1, -np.inf),
    "distances": np.abs(np.subtract.outer(np.arange(5.0), np.arange(7.0))),
    "fractions": np.full((5, 7), 0.5),
}


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("name", [*WARNED, *QUIET])
def test_a_float_mask_of_zeros_and_ones_is_warned_of(name, seed):
    mask = {**WARNED, **QUIET}[name]
    rows, keys = np.broadcast_shapes(mask.shape[-2:], (4 if mask.shape[0] == 4 else 5, 1))
    x, y = np.ones((2, 1, rows, 3), np.float32), np.ones((2, 1, keys, 3), np.float32)
    cache = fastattn.KVCache(2, 1, 3)
    cache.append(y, y)
    scores = np.ones((2, 1, rows, keys))
    scale = (
        1.0 + zlib.crc32(name.encode()) % 9999 / 9999
    )  # of a signature that is not known already
    for call in (
        lambda: attention(x, y, y, mask=mask, scale=scale),
        lambda: fastattn.explain(x, y, y, mask=mask),
        lambda: fastattn.attention_state(x, y, y, mask=mask),
        lambda: cache.attend(x, mask=mask, causal=False),
        lambda: fastattn.attention_allocation(x, y, mask=mask, scale=scale),
        lambda: softmax(scores, mask=mask, scale=scale),
        lambda: fastattn.logsumexp(scores, mask=mask, scale=scale),
    ):
        texts = warned(call)
        assert len(texts) == (name in WARNED), texts
        for text in texts:
            assert "`np.asarray(mask, bool)`" in text
            assert "`np.where(mask, -np.inf, 0)`" in text


def test_one_other_number_anywhere_is_found():
    mask = np.ones((400, 300))
    mask[399, 298] = 0.5
    x, y = np.ones((400, 3), np.float32), np.ones((300, 3), np.float32)
    assert not warned(lambda: attention(x, y, y, mask=mask))
    mask[399, 298] = 0
    assert len(warned(lambda: attention(x, y, y, mask=mask, scale=0.7531))) == 1


def test_a_mask_beyond_the_limit_is_not_looked_through(monkeypatch):
    monkeypatch.setattr(masks, "_MOST_ELEMENTS", 35)
    x, y = np.ones((5, 3), np.float32), np.ones((8, 3), np.float32)
    assert not warned(lambda: attention(x, y, y, mask=np.eye(5, 8), scale=0.8642))
    repeated = np.broadcast_to(np.eye(5, 7), (9, 5, 7))
    assert warned(lambda: softmax(np.ones((9, 5, 7)), mask=repeated, scale=0.8642))


def test_the_warning_points_at_the_caller():
    x = np.ones((5, 3), np.float32)
    with pytest.warns(UserWarning, match="only 0 and 1") as caught:
        attention(x, x, x, mask=np.eye(5), scale=0.9753)
    assert caught[0].filename == __file__


# --- caches speak of themselves ------------------------------------------------------------------


def test_what_a_cache_refuses_is_about_the_cache():
    cache = fastattn.KVCache((2,), 2, 4)
    cache.append(np.ones((2, 2, 3, 4)), np.ones((2, 2, 3, 4)))
    for call, error, wanted in (
        (
            lambda: cache.attend(np.ones((2, 4, 1, 5))),
            ValueError,
            "5 features, .* this cache have 4",
        ),
        (lambda: cache.attend(np.ones((2, 3, 1, 4))), ValueError, r"3 heads .* of the 2 of this"),
        (lambda: cache.attend(np.ones((2, 1, 4))), ValueError, r"must be \(2, H, L, 4\)"),
        (
            lambda: cache.reorder([0, 2]),
            ValueError,
            "hold 2, and this cache has the sequences 0 to 1",
        ),
        (lambda: cache.reorder([-1, 0]), ValueError, "hold -1"),
        (lambda: cache.reorder([0.0, 1.0]), TypeError, "numbers of sequences are integers"),
        (lambda: cache.reorder([0]), ValueError, "one number each"),
        (
            lambda: cache.attend(np.ones((2, 4, 1, 4)), mask=lambda *at: True),
            TypeError,
            ":4, :1, :3",
        ),
        (
            lambda: cache.attend(np.ones((2, 4, 1, 4)), key_lengths=[2]),
            TypeError,
            "knows its lengths",
        ),
    ):
        with pytest.raises(error, match=wanted) as caught:
            call()
        for other in ("enable_gqa", "np.clip", "key (", "value ("):
            assert other not in str(caught.value)
    assert cache.lengths.tolist() == [3, 3]
