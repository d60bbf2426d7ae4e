"""A row's bits are a function of its own inputs: contract point 1, compared with ``==``.

Each relation of `relations.py` runs on shapes that cross row blocks, panels and segments, and on
random cases with random options. Where the point is that a call is cut in another way,
`fastattn.explain` proves that the two plans differ.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest
import strategies
from conftest import BASE_SEED
from cut import call_of
from relations import PLANS_DIFFER, RELATIONS

import fastattn

# Every one crosses a border of rows (6, 24) or panels (64), and one of segments (512).
SHAPES = {
    "prefill": {"batch": (1, 2), "rows": 250, "keys": 700, "features": 33, "value_features": 40},
    "decode": {"batch": (2, 4), "rows": 1, "keys": 1100, "features": 64, "value_features": 64},
    "few_rows": {"batch": (1, 2), "rows": 7, "keys": 2100, "features": 16, "value_features": 17},
    "many_heads": {"batch": (3, 8), "rows": 25, "keys": 577, "features": 8, "value_features": 48},
}
FEATURES = {
    "plain": (),
    "causal": ("causal_bottom_right",),
    "windows": ("window_both", "key_lengths", "euclidean", "scales"),
    "scales": ("grouped", "scales_of_each", "subnormal", "sinks"),
    "masks": ("bool_mask", "cosine", "scale"),
    "biased": ("float_mask_hiding", "softcap"),
    "grouped": ("grouped", "causal_offsets"),
    "sloped": ("alibi_at_offset", "sinks_of_each"),
    "documents": ("documents", "causal_top_left", "sinks"),
    "small": ("float16", "documents_of_each", "window_both"),
    "tiles": ("tile_mask", "sinks"),
    "biased tiles": ("tile_bias", "scales", "causal_bottom_right"),
    "small tiles": ("float16", "tile_mask", "grouped"),
}
WIDE = ((1040, 9), (2064, 1), (272, 9), (1030, 3))  # features and rows
RANDOM_BLOCKS = 8


def compare(relation, call, about, *, check_plans=False):
    """Assert that both calls of every pair give the same bits; return how many pairs there were."""
    rng = np.random.default_rng(call.rows * 1009 + call.keys)
    pairs = plans = 0
    for left, right in RELATIONS[relation](call, rng):
        pairs += 1
        plans += left.plan() != right.plan()
        for here, there in ((left.lean(), right.lean()), (left.run(), right.run())):
            for name, *results in zip(("output", "lse", "weights"), here, there, strict=False):
                about_pair = f"{name}, pair {pairs} of {relation}: {about}"
                oracle.assert_same_bits(*results, about=about_pair)
    if check_plans and pairs:
        assert plans, f"all {pairs} pairs of {relation} ran the same plan: {about}"
    return pairs


def related():
    """Each relation with each options, in one of the shapes by the seed; in the others at length.

    So each relation, each shape and each options meets each of the others in every run.
    """
    names = list(SHAPES)
    for i, relation in enumerate(RELATIONS):
        for j, features in enumerate(FEATURES):
            drawn = names[(i + j + BASE_SEED) % len(names)]
            for shape in names:
                marks = () if shape == drawn else pytest.mark.long
                about = f"{relation}-{shape}-{features}"
                yield pytest.param(relation, shape, features, marks=marks, id=about)


@pytest.mark.parametrize(("relation", "shape", "features"), list(related()))
def test_relation(exact_backend, relation, shape, features, seed):
    sizes = SHAPES[shape]
    names = FEATURES[features]
    case = strategies.case(names, seed=seed, **sizes)
    splits_nothing = sizes["rows"] == 1 and relation in ("query_split", "one_row_among_many")
    check_plans = relation in PLANS_DIFFER and not splits_nothing and not case.key_heads
    compare(relation, call_of(case), case, check_plans=check_plans)


@pytest.mark.parametrize("relation", RELATIONS)
def test_relation_in_float64(exact_backend, relation, seed):
    for shape in ("prefill", "decode"):
        case = strategies.case(["float64", "key_mask"], seed=seed, **SHAPES[shape])
        compare(relation, call_of(case), case)


@pytest.mark.parametrize("relation", RELATIONS)
def test_relation_of_wide_vectors(exact_backend, relation, seed):
    """Chains, runs of chains and their sums end where they must, for many rows and for one."""
    sizes = {"batch": (1, 2), "keys": 77, "value_features": 64}
    drawn = seed + list(RELATIONS).index(relation)
    for i, names in enumerate(((), ("cosine",), ("euclidean",), ("float16",), ("float64",))):
        features, rows = WIDE[(drawn + i) % len(WIDE)]
        case = strategies.case(names, seed=seed, features=features, rows=rows, **sizes)
        compare(relation, call_of(case), case)


def random_relation(number, seed):
    """Draw one case and one relation; sizes at random, one segment border always crossed."""
    rng = np.random.default_rng([seed, 4, number])
    features = strategies.random_features(rng, int(rng.integers(0, 6)))
    relation = str(rng.choice(list(RELATIONS)))
    sizes = {"keys": int(rng.integers(1, 1300))} if rng.random() < 0.7 else {}
    if not {"no_keys", "two_segments"}.isdisjoint(features):
        sizes = {}
    batch = tuple(rng.choice([1, 2, 4], 2).tolist())
    batch = (batch[0], 2 * batch[1]) if "grouped" in features else batch
    case = strategies.case(features, seed=seed + number, batch=batch, **sizes)
    return relation, case


@pytest.mark.parametrize("block", range(RANDOM_BLOCKS))
def test_random_relations(exact_backend, block, seed):
    for number in range(block, 200, RANDOM_BLOCKS):
        relation, case = random_relation(number, seed)
        compare(relation, call_of(case), (number, str(case)))


@pytest.mark.long
def test_two_thousand_random_relations(exact_backend, seed):
    """Contract point 1 at length: two thousand cases in which some pair of calls was compared."""
    cases = pairs = number = 0
    while cases < 2000:
        relation, case = random_relation(number, seed)
        number += 1
        compared = compare(relation, call_of(case), (number - 1, str(case)))
        cases += compared > 0
        pairs += compared
    print(f"\n{cases} random cases, {pairs} pairs of calls, 0 differences in bits")


@pytest.mark.parametrize("shape", SHAPES)
def test_serial_twin_gives_the_bits_of_the_parallel_driver(exact_backend, shape, seed, monkeypatch):
    if exact_backend != "numba":
        pytest.skip("the drivers are those of the numba backend")
    from fastattn._numba.compiler import launch

    case = strategies.case(["causal_bottom_right"], seed=seed, **SHAPES[shape])
    call = call_of(case).having(threads=2)
    counts = {"parallel": 0, "serial": 0}

    class Counting:
        def __init__(self, name, driver):
            self.name, self.driver = name, driver

        def run(self, *arguments):
            counts[self.name] += 1
            return self.driver.run(*arguments)

    monkeypatch.setattr(launch, "_parallel", Counting("parallel", launch._parallel))
    monkeypatch.setattr(launch, "_serial", Counting("serial", launch._serial))
    parallel = call.run(), call.lean()
    if launch.serial_reason() is None:
        assert counts["parallel"], "this shape should have been worth two threads"
    counts["parallel"] = 0
    monkeypatch.setattr(launch._layer, "refusal", "the test asks for the serial twin")
    serial = call.run(), call.lean()
    assert counts["serial"]
    assert not counts["parallel"]
    for ours, theirs in zip(sum(parallel, ()), sum(serial, ()), strict=True):
        oracle.assert_same_bits(ours, theirs, about=case)


def test_calls_from_many_threads_at_once(exact_backend, seed):
    calls = [
        call_of(strategies.case(FEATURES[name], seed=seed, **SHAPES[shape]))
        for shape in SHAPES
        for name in ("plain", "causal")
    ]
    calls = [call.having(backend=exact_backend) for call in calls]
    expected = [call.run() for call in calls]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            results = list(pool.map(lambda call: call.run(), calls))
            for ours, theirs in zip(sum(results, ()), sum(expected, ()), strict=True):
                oracle.assert_same_bits(ours, theirs)


def test_inputs_are_never_written(exact_backend, seed):
    for features in FEATURES.values():
        case = strategies.case(features, seed=seed, rows=25, keys=600)
        arrays = [*case.arrays, *(x for x in case.options.values() if isinstance(x, np.ndarray))]
        before = [array.tobytes() for array in arrays]
        call_of(case).run()
        assert [array.tobytes() for array in arrays] == before, str(case)


@pytest.mark.parametrize("operand", ["query", "value"])
@pytest.mark.parametrize("features", [(), ("causal_top_left",)], ids=["plain", "causal"])
def test_out_may_overlap_an_input(exact_backend, operand, features, seed):
    """Under a causal mask the last rows go first, and rarely write what another task reads."""
    case = strategies.case(features, seed=seed, rows=600, keys=600, features=16, value_features=16)
    expected = fastattn.attention(*case.arrays, **case.options)
    out = getattr(case, operand)
    result = fastattn.attention(*case.arrays, **case.options, out=out)
    assert result is out
    oracle.assert_same_bits(out, expected)


# --- the stages on their own ---------------------------------------------------------------------


def stage_results(x, y, *axes):
    """All stages on arrays (..., L, E) and (..., S, E), softmax and its kin on each axis."""
    for metric in ("scaled_dot", "cosine", "euclidean"):
        yield metric, fastattn.similarity(x, y, metric=metric)
    yield "fuse", fastattn.fuse(np.swapaxes(x, -1, -2), y[..., : x.shape[-2], :])
    for name, axis in itertools.product(("softmax", "log_softmax", "logsumexp"), axes):
        yield f"{name} {axis}", getattr(fastattn, name)(y, axis)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("layout", strategies.LAYOUTS)
def test_stages_of_any_layout(exact_backend, layout, dtype, seed):
    rng = np.random.default_rng(seed)
    x, y = (strategies.draw(rng, (2, 3, n, 33), dtype) for n in (70, 600))
    laid = [strategies.lay_out(array, layout) for array in (x, y)]
    axes = (-1, -2, 0, (1, 3))
    plain = stage_results(*map(strategies.plain, laid), *axes)
    for (name, here), (_, there) in zip(stage_results(*laid, *axes), plain, strict=True):
        oracle.assert_same_bits(here, there, about=(name, layout))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_stages_of_a_part_or_on_other_threads(exact_backend, dtype, seed):
    rng = np.random.default_rng(seed)
    x, y = (strategies.draw(rng, (3, n, 40), dtype) for n in (130, 1100))
    whole = dict(stage_results(x, y, -1))
    for element in range(3):
        for name, part in stage_results(x[element], y[element], -1):
            oracle.assert_same_bits(whole[name][element], part, about=name)
    for row in (0, 63, 129):
        for name in ("scaled_dot", "cosine", "euclidean"):
            alone = fastattn.similarity(x[:, row : row + 1], y[:, :700], metric=name)
            together = fastattn.similarity(x, y, metric=name)
            oracle.assert_same_bits(together[:, row : row + 1, :700], alone, about=name)
    columns = dict(stage_results(x, np.asfortranarray(y), -1))
    fastattn.set_threads(1)
    try:
        for name, serial in stage_results(x, y, -1):
            oracle.assert_same_bits(whole[name], serial, about=name)
            oracle.assert_same_bits(columns[name], serial, about=name)
    finally:
        fastattn.set_threads(None)
