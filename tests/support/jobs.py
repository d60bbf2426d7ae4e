"""Small jobs on files for the tests of the offline room."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fastattn.batch import Job, Summary, run_job

ROLES = (
    "query", "key", "value", "mask", "query_offset", "key_lengths",
    "query_segments", "key_segments", "scale", "alibi_slopes", "sinks",
)  # fmt: skip


def arrays(
    query=(3, 4, 37, 8), key=(3, 4, 45, 8), value_features=5, dtype=np.float32, seed=0
) -> dict[str, np.ndarray]:
    """Query, key and value of these shapes."""
    random = np.random.default_rng(seed)
    value = (*key[:-1], value_features)
    shapes = {"query": query, "key": key, "value": value}
    return {role: random.standard_normal(shape).astype(dtype) for role, shape in shapes.items()}


def save(folder: Path, inputs: dict[str, Any], **options: Any) -> Job:
    """Write the inputs as files and describe the job on them."""
    paths: dict[str, Any] = {}
    for role, value in inputs.items():
        if isinstance(value, np.ndarray):
            paths[role] = os.path.join(folder, f"{role}.npy")
            np.save(paths[role], value)
        else:
            paths[role] = value
    options.setdefault("out", os.path.join(folder, "out.npy"))
    return Job(**paths, **options)


def finished(job: Job, **overrides: Any) -> tuple[Summary, list[np.ndarray]]:
    """Run a job and load what it wrote."""
    summary = run_job(job, **overrides)
    paths = [job.out] if job.lse_out is None else [job.out, job.lse_out]
    return summary, [np.load(path) for path in paths]


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Shape, dtype and every bit."""
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and left.tobytes() == right.tobytes()
    )


def names(folder: Path) -> set[str]:
    """What lies in a folder beside the inputs."""
    return {name for name in os.listdir(folder) if name.removesuffix(".npy") not in ROLES}


def line_of(entry: Any) -> bytes:
    """Write an entry as a manifest has it, with the right checksum, whatever it is."""
    text = entry if isinstance(entry, bytes) else json.dumps(entry).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)
