"""bfloat16 multiplied as it is: bits, accuracy, edges and memory, on CPUs that can.

Where the CPU does so by itself, the tests run here, and the whole suite is a test of it. Elsewhere
`test_these_tests_with_the_dot` runs them in a process with FASTATTN_BFLOAT16_DOT=1; the rest of the
suite that knows bfloat16 follows at length.
"""

import ctypes
import itertools

import numpy as np
import oracle
import pytest
import ragged
import strategies
import test_bits
import test_varlen_bits
import tolerances
from conftest import EXACT
from cut import call_of
from kv import Model, new_cache, tokens
from pairs import SWITCH, backend_of, can_multiply, multiplies, run, run_tests, taken, takes_pairs
from places import SUPPORT
from relations import RELATIONS

import fastattn
from fastattn import reference
from fastattn._engine import bfloat16
from fastattn._engine.layouts import ATTENTION

BFLOAT16 = strategies.dtype_of("bfloat16")

with_the_dot = pytest.mark.skipif(
    not all(map(multiplies, EXACT)), reason=f"this process widens bfloat16: {SWITCH} is not 1"
)
needs_two = pytest.mark.skipif(len(EXACT) < 2, reason="there is one exact backend here")
needs_the_dot = pytest.mark.skipif(
    not all(map(can_multiply, EXACT)), reason="this CPU does not multiply bfloat16"
)


def random(rng, *shape, spread=1.0):
    return (rng.standard_normal(shape) * spread).astype(BFLOAT16)


def alike(call, about):
    """Return the results of a call, which are the same bits from every exact backend."""
    results = []
    for backend in EXACT:
        with fastattn.use_backend(backend):
            results.append(call())
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            oracle.assert_same_bits(ours, theirs, about=about)
    return results[0]


def attend(*arrays, **options):
    return fastattn.attention(*arrays, **options, return_lse=True, return_weights=True)


# --- who multiplies ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "able", "faster", "taken"),
    [
        ("", True, True, True),
        ("", True, False, False),
        ("", False, True, False),
        ("0", True, True, False),
        (" 1 ", True, False, True),
        ("1", False, False, False),
    ],
)
def test_who_takes_pairs(monkeypatch, asked, able, faster, taken):
    monkeypatch.setenv(SWITCH, asked)
    monkeypatch.setattr(bfloat16, "_is_faster", lambda: faster)
    assert bfloat16.takes_pairs(able) is taken


def test_another_word_is_refused(monkeypatch):
    monkeypatch.setenv(SWITCH, "yes")
    with pytest.raises(ValueError, match=r"must be 1 .* 0 .* not 'yes'"):
        bfloat16.takes_pairs(True)


def test_amd_is_faster_and_intel_and_the_unknown_are_not(monkeypatch, tmp_path):
    cpus = tmp_path / "cpuinfo"
    monkeypatch.setattr(bfloat16, "_CPUS", cpus)
    assert not bfloat16._is_faster()
    for vendor, faster in (("AuthenticAMD", True), ("GenuineIntel", False)):
        cpus.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: 25\n")
        assert bfloat16._is_faster() is faster


@with_the_dot
def test_dtypes_and_options_decide_and_no_size_does(exact_backend, seed):
    rng = np.random.default_rng(seed)
    for rows, keys, features in itertools.product((1, 70), (1, 1100), (1, 64)):
        arrays = [random(rng, n, features) for n in (rows, keys, keys)]
        assert takes_pairs(*arrays)
        assert takes_pairs(*arrays, similarity="dot", scale=-3.0, softcap=2.0)
        assert takes_pairs(*arrays, scale=0.0)
        for options in ({"similarity": "cosine"}, {"similarity": "euclidean"}):
            assert not takes_pairs(*arrays, **options)
            wide = fastattn.attention(*(x.astype(np.float32) for x in arrays), **options)
            ours = fastattn.attention(*arrays, **options)
            oracle.assert_same_bits(ours, wide.astype(BFLOAT16), about=options)
        for operand in range(3):
            mixed = list(arrays)
            mixed[operand] = mixed[operand].astype(np.float32)
            assert not takes_pairs(*mixed)


@with_the_dot
def test_pairs_are_not_widened(exact_backend, seed):
    """Otherwise all of the tests below would look at something else."""
    rng = np.random.default_rng(seed)
    arrays = [random(rng, 2, n, 64) for n in (30, 700, 700)]
    wide = fastattn.attention(*(x.astype(np.float32) for x in arrays)).astype(BFLOAT16)
    assert (fastattn.attention(*arrays) != wide).mean() > 0.05


# --- bits ----------------------------------------------------------------------------------------


def bfloat16_cases(seed):
    """Every option alone and some together, on many rows and on few, which take other tiles."""
    names = [name for name in strategies.FEATURES if strategies.compatible(name, "bfloat16")]
    names.remove("bfloat16")
    for number, name in enumerate(names):
        yield strategies.case((name, "bfloat16"), seed=seed)
        if strategies.compatible(name, "one_row") and name not in strategies.SHAPING:
            sizes = {"rows": 1 + number % 5, "features": 64, "value_features": 64}
            yield strategies.case((name, "bfloat16"), seed=seed, keys=700, **sizes)
    for number in range(40):
        rng = np.random.default_rng([seed, number])
        drawn = strategies.random_features(rng, 5)
        drawn = [name for name in drawn if strategies.compatible(name, "bfloat16")]
        yield strategies.case((*drawn, "bfloat16"), seed=seed + number)


@with_the_dot
def test_every_option_has_the_same_bits_of_all_backends_and_is_right(seed):
    count = 0
    for case in bfloat16_cases(seed):
        count += takes_pairs(*case.arrays, **case.options)
        results = alike(lambda case=case: attend(*case.arrays, **case.options), case)
        oracle.attention(*case.arrays, **case.options).check(*results, about=case)
    assert count > 80


@with_the_dot
@needs_two
@pytest.mark.parametrize("rows", [1, 4, 5, 31])
def test_sizes_have_the_same_bits_of_both_backends(rows, seed):
    """Odd and even, in whole vectors and not: tiles that read in place, panels, what is left."""
    rng = np.random.default_rng([seed, rows])
    for features, value_features, keys in itertools.product(
        (1, 8, 15, 32, 64), (3, 64, 80), (1, 2, 31, 129, 530)
    ):
        sizes = (rows, features), (keys, features), (keys, value_features)
        arrays = [random(rng, 2, *size) for size in sizes]
        options = {"window": (keys // 2, 0), "query_offset": keys - rows, "causal": True}
        for chosen in ({}, options):
            about = [x.shape for x in arrays], chosen
            alike(lambda a=arrays, o=chosen: attend(*a, **o), about)


@with_the_dot
@pytest.mark.parametrize("relation", RELATIONS)
def test_a_row_is_a_function_of_its_own_inputs(exact_backend, relation, seed):
    compared, few = 0, ("window_both", "documents", "softcap")
    many = ("grouped", "causal_offsets", "key_mask", "sinks")
    for shape, names in (("few_rows", few), ("many_heads", many)):
        case = strategies.case((*names, "bfloat16"), seed=seed, **test_bits.SHAPES[shape])
        assert takes_pairs(*case.arrays, **case.options)
        compared += test_bits.compare(relation, call_of(case), case)
    assert compared


@with_the_dot
@pytest.mark.parametrize("names", [(), ("causal_bottom_right",), ("gathered", "sinks")], ids=str)
def test_ragged_sequences(names, seed):
    """Each as it is alone, the same of all backends, and right."""
    case = test_varlen_bits.case_of(names, seed=seed, dtype="bfloat16")
    results = alike(lambda: test_varlen_bits.attend(case), case)
    oracle.attention_varlen(*case.arguments, **case.options).check(*results, about=case)
    for backend in EXACT:
        with fastattn.use_backend(backend):
            test_varlen_bits.compare_alone(case)
    order = np.random.default_rng(seed).permutation(len(case.lengths))
    moved = ragged.shuffled(case, order)
    moved_results = test_varlen_bits.attend(moved)
    for new, old in enumerate(order):
        for ours, theirs in zip(moved_results, results, strict=True):
            oracle.assert_same_bits(ours[moved.rows(new)], theirs[case.rows(old)], about=old)


@with_the_dot
def test_caches_and_states(exact_backend, seed):
    """Pages and parts of the keys have the bits of one call over all of them."""
    rng = np.random.default_rng(seed)
    for sizes in ({"features": 64, "value_features": 64}, {"features": 23, "value_features": 17}):
        cache, model = new_cache((3,), "bfloat16", **sizes), Model((3,), "bfloat16", **sizes)
        for lengths in ([500, 130, 1], [29, 0, 600], [1, 1, 1]):
            new = tokens(rng, (3,), max(lengths), **sizes)
            cache.append(*new, lengths=np.array(lengths))
            model.append(*new, lengths)
            for rows in (1, 9):
                model.check(cache, rng, rows=rows)
    for rows, features in ((1, 64), (30, 33)):
        query, key, value = (random(rng, 2, n, features) for n in (rows, 1100, 1100))
        parts = [
            fastattn.attention_state(query, key[:, a:b], value[:, a:b], key_start=a)
            for a, b in ((0, 512), (512, 1024), (1024, 1100))
        ]
        merged = parts[0].merge(parts[1]).merge(parts[2]).finish(return_lse=True)
        whole = fastattn.attention(query, key, value, return_lse=True)
        for ours, theirs in zip(merged, whole, strict=True):
            oracle.assert_same_bits(ours, theirs, about=(rows, features))


# --- accuracy ------------------------------------------------------------------------------------


@with_the_dot
@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_error_is_that_of_one_rounding(exact_backend, spread, offset, seed):
    """1.5 times what rounding the exact result costs, in the root mean square."""
    for keys, count in ((2, 100), (5, 100), (64, 40), (600, 8), (5000, 1)):
        rng = np.random.default_rng([seed, keys])
        query, key, value = (random(rng, count, n, 64, spread=spread) for n in (25, keys, keys))
        value = (value.astype(np.float32) + offset).astype(BFLOAT16)
        exact, lse = reference.attention(
            *(x.astype(float) for x in (query, key, value)), return_lse=True
        )
        ours, our_lse = fastattn.attention(query, key, value, return_lse=True)
        error = ours.astype(float) - exact
        rounding = exact.astype(BFLOAT16).astype(float) - exact
        ratio = np.sqrt(np.mean(error**2) / np.mean(rounding**2))
        assert ratio <= tolerances.SMALL_ROUNDINGS, (keys, ratio)
        # Weights are rounded, their sum is not.
        np.testing.assert_allclose(our_lse, lse, rtol=2e-6, atol=2e-6)


@with_the_dot
def test_constant_values_stay_what_they_are(exact_backend, seed):
    """Whatever the weights round to, their mean is taken by the sum of what they became."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0x1000, 0x7000, 640) | rng.integers(0, 2, 640) << 15
    constants = bits.astype(np.uint16).view(BFLOAT16)
    for rows, keys in ((2, 7), (30, 700), (1, 3000)):
        query, key = random(rng, rows, 24), random(rng, keys, 24)
        output = fastattn.attention(query, key, np.broadcast_to(constants, (keys, 640)))
        oracle.assert_same_bits(output, np.broadcast_to(constants, (rows, 640)), about=keys)


# --- numbers at the ends -------------------------------------------------------------------------


@with_the_dot
def test_subnormal_numbers_count_as_0(exact_backend, seed):
    rng = np.random.default_rng(seed)
    for rows, features in ((2, 64), (40, 31)):
        arrays = [random(rng, n, features) for n in (rows, 130, 130)]
        for x in arrays:
            chosen = rng.random(x.shape) < 0.3
            small = rng.integers(1, 0x80, x.shape) | rng.integers(0, 2, x.shape) << 15
            x[chosen] = small.astype(np.uint16).view(BFLOAT16)[chosen]
        # Large factors would show any that does not.
        arrays[0][:, 0], arrays[1][:, 0] = 2.0**126, np.uint16(0x7F).view(BFLOAT16)
        flushed = [taken(x) for x in arrays]
        # A scale that is no power of two is applied otherwise where it would lose a subnormal.
        found = attend(*arrays, scale=1.0)
        for ours, theirs in zip(found, attend(*flushed, scale=1.0), strict=True):
            oracle.assert_same_bits(ours, theirs, about=(rows, features))


@with_the_dot
@pytest.mark.parametrize("power", [-124, -60, 60, 120])
def test_sizes_of_queries_and_keys_that_cancel(power, seed):
    """The power of two of the scale goes onto the query where that loses no bit of bfloat16."""
    rng = np.random.default_rng(seed)
    for rows, features in ((3, 64), (30, 20)):
        query, key = random(rng, rows, features), random(rng, 300, features)
        value = random(rng, 300, features)
        query[np.abs(query.astype(np.float32)) < 0.3] = 1
        query = (query.astype(np.float32) * np.float32(2.0**power)).astype(BFLOAT16)
        key = (key.astype(np.float32) * np.float32(2.0**-power)).astype(BFLOAT16)
        for scale in (None, 0.7, 2.0**-9, 2.0**6):
            options = {} if scale is None else {"scale": scale}
            arrays, about = (query, taken(key), value), (power, rows, options)
            results = alike(lambda a=arrays, o=options: attend(*a, **o), about)
            oracle.attention(*arrays, **options).check(*results, about=about)


@with_the_dot
def test_queries_that_a_scale_would_round_are_scored_again(seed):
    """In float32: here the products with the query as it is overflow. Few rows and many blocks."""
    rng = np.random.default_rng(seed)
    for rows, features in ((3, 64), (70, 21)):
        query, key, value = (random(rng, n, features) for n in (rows, 300, 300))
        query[::2, 0], query[::2, -1] = 2.0**-125, 2.0**125
        key[:, -1] = rng.uniform(5, 9, 300)
        # Other rows of the same block meet the same keys in pairs.
        query[1::2, -1] = 0

        def call(chosen, query=query, key=key, value=value):
            return attend(query[chosen], key, value, scale=0.7 / 16, threads=1)  # one task

        found, others = call(slice(None)), call(slice(1, None, 2))
        assert all(np.isfinite(x.astype(np.float32)).all() for x in found)
        best = found[2].astype(np.float32).argmax(axis=-1)[::2]
        assert (best == key[:, -1].astype(np.float32).argmax()).all()
        for ours, theirs in zip(alike(lambda c=call: c(slice(None)), rows), found, strict=True):
            oracle.assert_same_bits(ours, theirs, about=(rows, features))
        for ours, theirs in zip(found, others, strict=True):
            oracle.assert_same_bits(ours[1::2], theirs, about=(rows, features))


@with_the_dot
def test_panels_that_rows_were_scored_again_with_lie_in_the_place_of_others(seed):
    """Which are packed anew for the rows of the next head, that see more keys."""
    rng = np.random.default_rng(seed)
    query, key, value = (random(rng, heads, n, 64) for heads, n in ((3, 24), (1, 512), (1, 512)))
    query[1, :, 0] = 2.0**-126
    options = {"scale": 2.0**-6, "threads": 1}
    found = fastattn.attention(
        query, key, value, key_lengths=np.array([512, 64, 512]), enable_gqa=True, **options
    )
    for h in (0, 2):
        alone = fastattn.attention(query[h], key[0], value[0], **options)
        oracle.assert_same_bits(found[h], alone, about=h)


@with_the_dot
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_hidden_numbers_do_nothing_and_visible_nan_reaches_who_sees_it(poison, seed):
    """Either half of a pair, the last key, which is alone in its pair; few rows and many."""
    rng = np.random.default_rng(seed)
    for rows, features, keys in ((1, 64, 301), (3, 64, 302), (30, 23, 301)):
        for hidden in ([0], [7], [keys - 1], [10, 11], [128, 129, 299]):
            query, key, value = (random(rng, n, features) for n in (rows, keys, keys))
            # A tenth is hidden besides, so that of pairs both, one and none are taken.
            mask = rng.random((rows, keys)) < 0.9
            mask[:, hidden] = False
            clean = alike(lambda a=(query, key, value), m=mask: attend(*a, mask=m), "clean")
            key[hidden] = value[hidden] = poison
            found = alike(lambda a=(query, key, value), m=mask: attend(*a, mask=m), "hidden")
            for ours, theirs in zip(found, clean, strict=True):
                oracle.assert_same_bits(ours, theirs, about=(rows, features, hidden))
            key[hidden], value[hidden, 2] = 0, np.nan
            mask[-1, hidden] = True
            seen = alike(lambda a=(query, key, value), m=mask: attend(*a, mask=m), "seen")
            assert np.isnan(seen[0][-1, 2])
            for ours, theirs in zip(seen, clean, strict=True):
                oracle.assert_same_bits(ours[:-1], theirs[:-1], about=(rows, features, hidden))


@with_the_dot
@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_what_scratch_holds_does_nothing(exact_backend, byte, seed, monkeypatch):
    """Padding of odd numbers of features and keys is written, before anything reads it as NaN."""
    launcher = backend_of(exact_backend).backend.kernels.launcher
    run, filled = launcher.run, []

    def on_full_scratch(entry, words, *plan):
        place, size = (int(words[ATTENTION.word[x]]) for x in ("scratch", "scratch_stride"))
        ctypes.memset(place, byte, size)
        filled.append(size)
        run(entry, words, *plan)

    rng = np.random.default_rng(seed)
    for rows, keys, features in itertools.product((1, 5, 30), (1, 101, 129), (1, 7, 33)):
        arrays = [random(rng, n, features) for n in (rows, keys, keys)]
        expected = fastattn.attention(*arrays)
        execution = fastattn.explain(*arrays, threads=1)
        output = np.full((1, 1, rows, features), np.nan, BFLOAT16)
        with monkeypatch.context() as patch:
            patch.setattr(launcher, "run", on_full_scratch)
            execution.run(output, None, None)
        oracle.assert_same_bits(output[0, 0], expected, about=(rows, keys, features))
    assert len(filled) == 27


@with_the_dot
def test_rows_that_see_nothing(exact_backend, seed):
    rng = np.random.default_rng(seed)
    for rows, features in ((2, 64), (30, 9)):
        query, key, value = (random(rng, n, features) for n in (rows, 600, 600))
        mask = np.ones((rows, 600), bool)
        mask[1], mask[0, :520] = False, False
        output, lse, weights = attend(query, key, value, mask=mask)
        assert not output[1].any()
        assert not weights[1].any()
        assert lse[1] == -np.inf
        alone = attend(query[:1], key, value, mask=mask[:1])
        for ours, theirs in zip((output, lse, weights), alone, strict=True):
            oracle.assert_same_bits(ours[:1], theirs, about=(rows, features))


# --- in processes of their own -------------------------------------------------------------------


@needs_the_dot
@pytest.mark.skipif(all(map(multiplies, EXACT)), reason="they run here")
def test_these_tests_with_the_dot():
    run_tests(__file__, "not with_the_dot and not outside", timeout=300)


@needs_the_dot
def test_nothing_outside_the_arrays_is_read(exact_backend):
    """A sweep on guarded arrays, which ends with a signal where anything strays."""
    assert len(run(SUPPORT / "pairs.py", exact_backend, timeout=300).splitlines()) == 1560


FILES = {
    "contract/test_halves.py": "bfloat16",
    "operands/test_decode_small.py": "bfloat16",
    "contract/test_conformance.py": "not float64",
    "contract/test_varlen.py": "not float64",
    "contract/test_varlen_bits.py": "bfloat16",
    "face/test_cache_kv.py": "bfloat16",
    "engine/test_steps.py": "bfloat16",
    "operands/test_guard_pages.py": "bfloat16",
    "operands/test_cache_guard_pages.py": "bfloat16",
    "operands/test_varlen_guard_pages.py": "bfloat16",
}


@pytest.mark.long
@needs_the_dot
@pytest.mark.parametrize("file", FILES)
def test_the_suite_with_the_dot(file):
    run_tests(file, FILES[file], timeout=600)
