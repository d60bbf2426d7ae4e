"""A job keeps below --max-memory, on inputs several times as large."""

import json
import subprocess
import sys
import textwrap

import children
import numpy as np
import pytest

CHILD = """
    import json, os, sys
    import numpy as np
    import fastattn
    from fastattn.batch import Job, run_job

    def peak():
        with open("/proc/self/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        return [int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")]

    folder, limit, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    files = {role: f"{folder}/{role}.npy" for role in ("query", "key", "value", "mask", "out")}
    if not os.path.exists(files["mask"]):
        del files["mask"]
    small = {role: f"{folder}/small-{role}.npy" for role in files}
    for role in ("query", "key", "value"):
        np.save(small[role], np.load(files[role], mmap_mode="r")[..., :1100, :])
    small.pop("mask", None)
    # The compiler, the threads and what they hold for good come before the measurement.
    run_job(Job(**small, overwrite=True, threads=2))
    query, key, value = (np.load(small[role]) for role in ("query", "key", "value"))
    if query.ndim == 2:
        later = key[:600], value[:600]
        stop = len(key) // 512 * 512
        state = fastattn.attention_state(query, key[:stop], value[:stop], threads=2)
        state.merge(fastattn.attention_state(query, *later, key_start=stop, threads=2)).finish()
        del state, later
    del query, key, value
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before, _ = peak()
    summary = run_job(Job(**files, max_memory=limit, threads=2, **options))
    _, highest = peak()
    print(json.dumps({"used": highest - before} | summary.as_dict()))
"""

CASES = {
    "rows": ((80_000, 64), (2000, 64), None, {}),
    "batch": ((400, 500, 16), (400, 500, 16), None, {"causal": True}),
    "streamed keys": ((3000, 64), (60_000, 64), None, {}),
    "mask": ((4000, 16), (4000, 16), (4000, 4000), {}),
    "fortran order": ((150_000, 32), (1000, 32), None, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_stays_below_the_limit(case, tmp_path):
    query, key, mask, options = CASES[case]
    limit = 8 << 20
    random = np.random.default_rng(0)
    arrays = {"query": query, "key": key, "value": key}
    total = 0
    for role, shape in arrays.items():
        array = random.random(shape, np.float32)
        np.save(tmp_path / f"{role}.npy", np.asfortranarray(array) if "fort" in case else array)
        total += array.nbytes
    if mask:
        np.save(tmp_path / "mask.npy", random.random(mask) < 0.5)
        total += mask[0] * mask[1]
    assert total > 1.7 * limit
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(CHILD),
            str(tmp_path),
            str(limit),
            json.dumps(options),
        ],
        env=children.environment(),
        capture_output=True,
        text=True,
        timeout=children.PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["chunks"] > 1
    assert (report["part_keys"] is not None) == (case == "streamed keys")
    # What the allocator keeps and the interpreter takes meanwhile is not the job's.
    assert report["used"] <= limit + (1 << 20), report
