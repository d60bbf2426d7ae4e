"""What the face makes of arrays: canonical views, dtypes, layouts and `out`; nothing is written."""

import numpy as np
import pytest

import fastattn

ATTEND = {"backend": "reference"}


def draw(*shape, dtype="float64", seed=5):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def problem_of(*operands, **options):
    return fastattn.explain(*operands, backend="reference", **options).problem


# --- the canonical problem -----------------------------------------------------------------------

# query, key, value, enable_gqa -> canonical query, key, value, shape of the output
SHAPES = [
    ((5, 8), (7, 8), (7, 4), False, (1, 1, 5, 8), (1, 7, 8), (5, 4)),
    ((8,), (7, 8), (7, 4), False, (1, 1, 1, 8), (1, 7, 8), (4,)),
    ((8,), (2, 7, 8), (7, 4), False, (2, 1, 1, 8), (2, 7, 8), (2, 4)),
    ((3, 5, 8), (3, 7, 8), (3, 7, 4), False, (3, 1, 5, 8), (3, 7, 8), (3, 5, 4)),
    ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4), False, (2, 3, 1, 5, 8), (2, 3, 7, 8), (2, 3, 5, 4)),
    ((2, 3, 5, 8), (7, 8), (7, 4), False, (2, 1, 3, 5, 8), (2, 1, 7, 8), (2, 3, 5, 4)),
    ((5, 8), (2, 3, 7, 8), (3, 7, 4), False, (2, 3, 1, 5, 8), (2, 3, 7, 8), (2, 3, 5, 4)),
    ((2, 6, 5, 8), (2, 3, 7, 8), (1, 3, 7, 4), True, (2, 3, 2, 5, 8), (2, 3, 7, 8), (2, 6, 5, 4)),
    ((6, 5, 8), (2, 1, 7, 8), (7, 4), True, (2, 1, 6, 5, 8), (2, 1, 7, 8), (2, 6, 5, 4)),
    ((2, 0, 5, 8), (2, 0, 7, 8), (7, 4), True, (2, 0, 1, 5, 8), (2, 0, 7, 8), (2, 0, 5, 4)),
    ((2, 0, 5, 8), (7, 8), (7, 4), False, (2, 1, 0, 5, 8), (2, 1, 7, 8), (2, 0, 5, 4)),
    ((4, 1, 3, 0, 8), (4, 2, 3, 7, 8), (7, 0), False, (4, 2, 3, 1, 0, 8), (4, 2, 3, 7, 8), None),
]


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def test_canonical_shapes(case):
    query, key, value, gqa, canonical_query, canonical_key, output = case
    operands = [draw(*shape) for shape in (query, key, value)]
    problem = problem_of(*operands, enable_gqa=gqa)
    assert problem.query.shape == canonical_query
    assert problem.key.shape == canonical_key
    assert problem.value.shape == (*canonical_key[:-1], value[-1])
    assert problem.output_shape == (output or (4, 2, 3, 0, 0))
    assert fastattn.attention(*operands, enable_gqa=gqa, **ATTEND).shape == problem.output_shape
    for view, operand in zip(problem[:3], operands, strict=True):
        assert not view.flags.writeable
        assert not view.size or np.shares_memory(view, operand)


def test_grouped_heads_are_views_of_the_right_heads():
    query, key = draw(2, 6, 5, 8)[:, ::-1, :, ::2], draw(2, 3, 7, 4)
    problem = problem_of(query, key, key, enable_gqa=True)
    for head in range(6):
        assert np.array_equal(problem.query[:, head // 2, head % 2], query[:, head])
        assert np.array_equal(problem.key[:, head // 2], key[:, head // 2])


def test_masks_and_per_batch_arrays_follow_the_heads():
    query, key = draw(2, 6, 5, 8), draw(2, 3, 7, 8)
    mask = draw(2, 6, 1, 7) < 0
    lengths = np.arange(12, dtype=np.uint16).reshape(2, 6) % 8
    offsets = np.arange(6)[None] - 2
    problem = problem_of(
        query,
        key,
        key,
        enable_gqa=True,
        mask=mask,
        key_lengths=lengths,
        query_offset=offsets,
        causal=True,
    )
    assert problem.mask.shape == (2, 3, 2, 5, 7)
    for array in (problem.extras.key_lengths, problem.extras.query_offset):
        assert array.shape == (2, 3, 2)
        assert array.dtype == np.int64
        assert not array.flags.writeable
    for head in range(6):
        place = np.s_[:, head // 2, head % 2]
        assert np.array_equal(problem.mask[place], np.broadcast_to(mask[:, head], (2, 5, 7)))
        assert np.array_equal(problem.extras.key_lengths[place], lengths[:, head])
        assert (problem.extras.query_offset[place] == head - 2).all()


@pytest.mark.parametrize(
    ("options", "offset"),
    [
        ({}, 0),
        ({"query_offset": 9}, 0),  # nothing asks for a position
        ({"causal": "top_left"}, 0),
        ({"causal": "bottom_right"}, 2),
        ({"causal": True, "query_offset": np.int8(-3)}, -3),
        ({"window": (1, None), "query_offset": 4}, 4),
        ({"window": (None, None), "query_offset": 4}, 0),
        ({"window": (1, None)}, 0),
        ({"causal": "bottom_right", "key_lengths": 3}, -2),
    ],
)
def test_offsets_are_resolved(options, offset):
    problem = problem_of(draw(5, 8), draw(7, 8), draw(7, 4), **options)
    assert np.array_equal(
        problem.extras.query_offset, np.broadcast_to(offset, np.shape(problem.extras.query_offset))
    )
    assert problem.options.causal == bool(options.get("causal"))


def test_lengths_cannot_change_after_they_were_checked():
    lengths = np.array([3, 4])
    problem = problem_of(draw(2, 5, 8), draw(2, 7, 8), draw(2, 7, 4), key_lengths=lengths)
    lengths[:] = 10**6
    assert problem.extras.key_lengths.max() == 4


# --- dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["?", "i1", "u8", "i4", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("other", ["<f4", "<f8"])
def test_dtype_of_the_result(kind, other):
    operands = draw(5, 8).astype(kind), draw(7, 8).astype(other), draw(7, 4).astype(other)
    wanted = np.float32 if kind[1:] == "f4" and other == "<f4" else np.float64
    output, lse, weights = fastattn.attention(
        *operands, return_lse=True, return_weights=True, mask=draw(5, 7), **ATTEND
    )
    assert output.dtype == lse.dtype == weights.dtype == np.dtype(wanted)
    assert output.dtype.isnative


def test_array_likes():
    class Frame:
        """As a pandas DataFrame converts."""

        def __array__(self, dtype=None, copy=None):
            return draw(7, 8)

    lists = draw(5, 8).tolist(), Frame(), tuple(map(tuple, draw(7, 4)))
    plain = draw(5, 8), draw(7, 8), draw(7, 4)
    for similarity in ("dot", "euclidean"):
        assert np.array_equal(
            fastattn.attention(*lists, similarity=similarity, **ATTEND),
            fastattn.attention(*plain, similarity=similarity, **ATTEND),
        )


def test_subclasses_come_in_and_plain_arrays_go_out(tmp_path):
    query = np.memmap(tmp_path / "query", np.float64, "w+", shape=(5, 8))
    query[...] = draw(5, 8)
    output = fastattn.attention(query, draw(7, 8), draw(7, 4), **ATTEND)
    assert type(output) is np.ndarray
    assert np.shares_memory(problem_of(query, draw(7, 8), draw(7, 4)).query, query)
    out = np.memmap(tmp_path / "out", np.float64, "w+", shape=(5, 4))
    assert fastattn.attention(query, draw(7, 8), draw(7, 4), out=out, **ATTEND) is out
    assert np.array_equal(out, output)


# --- layouts -------------------------------------------------------------------------------------


def unaligned(array):
    raw = np.empty(array.nbytes + 1, np.uint8)
    copy = raw[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert not copy.flags.aligned
    return copy


LAYOUTS = {
    "plain": lambda x: x.copy(),
    "fortran": np.asfortranarray,
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "every other": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned": unaligned,
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_seen_where_it_lies_and_never_written(layout):
    plain = draw(5, 8), draw(7, 8), draw(7, 4)
    operands = [LAYOUTS[layout](x) for x in plain]
    before = [x.tobytes() for x in operands]
    problem = problem_of(*operands)
    for view, operand, original in zip(problem[:3], operands, plain, strict=True):
        assert np.shares_memory(view, operand)
        assert view.dtype == operand.dtype
        assert np.array_equal(np.squeeze(view), original)
    output = fastattn.attention(*operands, **ATTEND)
    assert np.array_equal(output, fastattn.attention(*plain, **ATTEND))
    assert [x.tobytes() for x in operands] == before


# --- out -----------------------------------------------------------------------------------------

OUTS = {
    "plain": lambda: np.empty((3, 5, 4)),
    "transposed": lambda: np.empty((4, 3, 5)).transpose(1, 2, 0),
    "reversed": lambda: np.empty((3, 5, 4))[:, ::-1],
    "every other": lambda: np.empty((3, 5, 8))[..., ::2],
    "swapped": lambda: np.empty((3, 5, 4), np.dtype(np.float64).newbyteorder()),
    "unaligned": lambda: unaligned(np.empty((3, 5, 4))),
}


@pytest.mark.parametrize("layout", OUTS)
def test_out_of_any_layout(backend, layout):
    operands = draw(3, 5, 8), draw(3, 7, 8), draw(3, 7, 4)
    wanted = fastattn.attention(*operands)
    for _ in range(2):  # the second call repeats a kept plan
        out = OUTS[layout]()
        around = out.base
        assert fastattn.attention(*operands, out=out) is out
        assert np.array_equal(out, wanted)
        assert out.base is around
    scores, other, _ = fastattn.attention(*operands, out=out, return_lse=True, return_weights=True)
    assert scores is out
    assert other.shape == (3, 5)


def test_out_leaves_its_surroundings_alone(backend):
    operands = draw(3, 5, 8), draw(3, 7, 8), draw(3, 7, 4)
    around = np.full((5, 9, 8), 7.0)
    fastattn.attention(*operands, out=around[1:4, 2:7, 1:5])
    inside = np.zeros(around.shape, bool)
    inside[1:4, 2:7, 1:5] = True
    assert (around[~inside] == 7.0).all()
    assert np.array_equal(around[1:4, 2:7, 1:5], fastattn.attention(*operands))


def test_out_whose_elements_share_memory_is_filled_as_numpy_would(backend):
    operands = draw(3, 5, 8), draw(3, 7, 8), draw(3, 7, 4)
    out = np.lib.stride_tricks.as_strided(np.empty(100), (3, 5, 4), (8, 8, 8))
    assert fastattn.attention(*operands, out=out) is out


@pytest.mark.parametrize(
    "stage", ["attention", "softmax", "log_softmax", "similarity", "fuse", "linear"]
)
@pytest.mark.parametrize("shift", [0, 1, -1, 3])
def test_out_may_be_an_input_or_overlap_it(backend, stage, shift):
    memory = np.zeros((18, 6))
    x = memory[5:11]
    out = memory[5 + shift : 11 + shift]
    square = draw(6, 6)
    others = {
        "attention": (square, square),
        "similarity": (square,),
        "fuse": (square,),
        "linear": (square,),
    }
    function = getattr(fastattn, stage)
    x[...] = draw(6, 6, seed=8)
    wanted = function(x.copy(), *others.get(stage, ()))
    assert function(x, *others.get(stage, ()), out=out) is out
    assert np.array_equal(out, wanted)


def test_out_may_overlap_a_mask(backend):
    mask = draw(5, 5)
    operands = draw(5, 8), draw(5, 8), draw(5, 5)
    wanted = fastattn.attention(*operands, mask=mask.copy())
    assert np.array_equal(fastattn.attention(*operands, mask=mask, out=mask), wanted)
    x = draw(5, 5, seed=9)
    mask = draw(5, 5)
    wanted = fastattn.softmax(x, mask=mask.copy())
    assert np.array_equal(fastattn.softmax(x, mask=mask, out=mask), wanted)


# --- the stages' axes ----------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), (1, 2), (2, 0), (), None, np.int64(1)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_axes_agree_with_a_plain_formula(backend, axis, order):
    x = np.asarray(draw(3, 4, 5), order=order)
    mask = draw(4, 1, seed=6) < 0.8
    over = tuple(range(3)) if axis is None else axis
    hidden = np.where(mask, 2.0 * x, -np.inf)
    with np.errstate(divide="ignore"):
        lse = np.log(np.exp(hidden).sum(over, keepdims=True))
    visible = np.broadcast_to(mask, x.shape) & np.isfinite(lse)
    with np.errstate(invalid="ignore"):
        weights = np.where(visible, np.exp(hidden - lse), 0.0)
    options = {"scale": 2.0, "mask": mask}
    close = {"rtol": 1e-13, "atol": 1e-15}
    np.testing.assert_allclose(fastattn.softmax(x, axis, **options), weights, **close)
    for keepdims in (False, True):
        wanted = lse if keepdims else np.squeeze(lse, over)
        found = fastattn.logsumexp(x, axis, keepdims=keepdims, **options)
        assert np.shape(found) == wanted.shape
        np.testing.assert_allclose(found, wanted, **close)
        out = np.empty(wanted.shape)
        assert fastattn.logsumexp(x, axis, keepdims=keepdims, out=out, **options) is out
        assert np.array_equal(out, found)
    out = np.empty((5, 4, 3)).T
    assert fastattn.softmax(x, axis, out=out, **options) is out
    assert np.array_equal(out, fastattn.softmax(x, axis, **options))


# --- parts of the keys ---------------------------------------------------------------------------

POSITIONS = [
    {},
    {"causal": True, "query_offset": 700},
    {"causal": True, "query_offset": np.array([[-3], [1020]])},
    {"causal": "top_left", "window": (2, None)},
    {"window": (600, 100), "query_offset": 900},
    {"key_lengths": np.array([[512, 100, 1100]])},
    {"key_lengths": np.array([[0], [1024]]), "causal": "bottom_right", "window": (300, 5)},
]


@pytest.mark.parametrize("options", POSITIONS, ids=str)
def test_positions_of_parts_count_from_the_first_key_of_all(backend, options):
    query, key, value = draw(2, 3, 5, 8), draw(2, 3, 1100, 8), draw(3, 1100, 4)
    mask = draw(5, 1100, seed=6) < 1
    wanted, wanted_lse = fastattn.attention(
        query, key, value, mask=mask, return_lse=True, **options
    )
    parts = [
        fastattn.attention_state(
            query,
            key[..., start:stop, :],
            value[..., start:stop, :],
            key_start=start,
            mask=mask[:, start:stop],
            **options,
        )
        for start, stop in ((0, 512), (512, 1024), (1024, 1100))
    ]
    for merged in (
        parts[0].merge(parts[1]).merge(parts[2]),
        parts[0].merge(parts[1].merge(parts[2])),
    ):
        assert (merged.key_start, merged.key_stop) == (0, 1100)
        output, lse = merged.finish(return_lse=True)
        np.testing.assert_allclose(output, wanted, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(lse, wanted_lse, rtol=1e-13, atol=1e-15)


def test_an_unfinished_part_can_be_finished_and_merged_again(backend):
    query, key, value = draw(5, 8), draw(700, 8), draw(700, 4)
    first = fastattn.attention_state(query, key[:512], value[:512])
    rest = fastattn.attention_state(query, key[512:], value[512:], key_start=512)
    close = {"rtol": 1e-13, "atol": 1e-15}
    for _ in range(2):
        for state, part in (
            (first, np.s_[:512]),
            (rest, np.s_[512:]),
            (first.merge(rest), np.s_[:]),
        ):
            wanted = fastattn.attention(query, key[part], value[part])
            np.testing.assert_allclose(state.finish(), wanted, **close)
