"""Whether a process of its own finds compiled kernels on the disk."""

import json

import children

# Runs the toy entry in a child and prints whether each compiled thing came from the disk.
REPORT = """
import json, sys
import toy_kernels as toy
from fastattn._numba.compiler import disk as cache, launch
toy.Call(5).run(1e-9, 1).assert_done()
print(json.dumps([toy.count.from_cache, launch._serial.from_cache]))
"""
MISS, HIT = [False, False], [True, True]


def report(folder, before="", **variables):
    variables = {"FASTATTN_CACHE_DIR": folder, **variables}
    return json.loads(children.run(before + REPORT, **variables))
