"""What a ragged call needs beside tables, splits and output: never a gathered copy."""

import time
import tracemalloc

import numpy as np

import fastattn

MOST = 64 << 20


def test_a_gather_copies_no_keys(exact_backend):
    """300,000 histories of 20 items: gathered they would be 3 GiB, a hundred times the tables."""
    rng = np.random.default_rng(0)
    users, items, features = 300_000, 20, 64
    table = rng.standard_normal((50_000, features), dtype=np.float32)
    query = rng.standard_normal((users, features), dtype=np.float32)
    indices = rng.integers(0, len(table), users * items, dtype=np.int32)
    query_splits, key_splits = np.arange(users + 1), np.arange(0, users * items + 1, items)
    tracemalloc.start()
    try:
        output = fastattn.attention_varlen(
            query, table, table, query_splits, key_splits, key_indices=indices
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - output.nbytes < MOST
    last = table[indices[-items:]]
    np.testing.assert_array_equal(output[-1], fastattn.attention(query[-1], last, last))


def test_a_table_of_columns_costs_what_is_gathered(exact_backend):
    """Not what lies between the features of a row: 16 MB each, of memory that nobody touches."""
    items, rows, features = 80, 1 << 22, 16
    indices = np.arange(items) * (rows // items)

    def seconds(table):
        start = time.perf_counter()
        fastattn.attention_varlen(
            np.zeros((1, features), np.float32), table, table, [0, 1], [0, items],
            key_indices=indices,
        )  # fmt: skip
        return time.perf_counter() - start

    columns = np.zeros((features, rows), np.float32).T
    seconds(columns)  # compiles, and touches the pages
    assert min(seconds(columns) for _ in range(5)) < 0.1
