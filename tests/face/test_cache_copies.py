"""Copies of a cache, in this process or another: they have pages of their own."""

import copy
import pickle

import children
import numpy as np
import pytest
import strategies
from kv import STORAGE, Model, new_cache, tokens


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
@pytest.mark.parametrize("storage", STORAGE)
def test_copies_go_their_own_way(backend, storage, copied, seed):
    """Also where the first had been attended to and appended to, so that it knows its pages."""
    rng = np.random.default_rng(seed)
    cache, model = new_cache((2,), storage), Model((2,), storage)
    for step in (130, 1, 1):
        new = tokens(rng, (2,), step)
        cache.append(*new)
        model.append(*new)
        model.check(cache, rng)
    other, theirs = copied(cache), copy.deepcopy(model)
    for one, beside in ((other, theirs), (cache, model), (other, theirs)):
        new = tokens(rng, (2,), 1)
        one.append(*new)
        beside.append(*new)
        model.check(cache, rng)
        theirs.check(other, rng)


def test_another_process_goes_on(exact_backend, seed, tmp_path):
    """Where the pages of this one are not."""
    rng = np.random.default_rng(seed)
    cache = new_cache((2,), "int8")
    cache.append(*tokens(rng, (2,), 150))
    query = strategies.draw(rng, (2, 4, 1, 24), "float32")
    expected = cache.attend(query)
    (tmp_path / "cache").write_bytes(pickle.dumps((cache, query)))
    children.run(
        f"""
import pickle
cache, query = pickle.loads(open({str(tmp_path / "cache")!r}, "rb").read())
with open({str(tmp_path / "output")!r}, "wb") as file:
    pickle.dump(cache.attend(query, backend={exact_backend!r}), file)
""",
        **children.WITH_KERNELS,
    )
    np.testing.assert_array_equal(pickle.loads((tmp_path / "output").read_bytes()), expected)
