"""What is asked of a job, and what it tells about itself at the end."""

import inspect
from dataclasses import asdict, dataclass, fields
from typing import Any

import fastattn

Window = tuple[int | None, int | None]
Numbers = float | tuple[float, ...]

# Read piece by piece, as each chunk needs them ...
SEGMENTS = ("query_segments", "key_segments")
FILES = ("query", "key", "value", "mask", *SEGMENTS)
# ... and whole, at the start.
INTEGERS = ("query_offset", "key_lengths")
NOT_RECORDED = ("threads", "backend")  # no bit depends on them; the resolved backend is recorded
PER_HEAD = ("scale", "alibi_slopes", "sinks")


@dataclass(frozen=True)
class Job:
    """One offline call of `fastattn.attention` from files to a file.

    Parameters
    ----------
    query, key, value, out : str
        Paths of `.npy` files; `out` is written.
    lse_out : str, optional
        Where the rows' log-sum-exp goes; None: it is not computed.
    mask : str, optional
        Path of a bool or float mask that broadcasts to (..., L, S).
    query_segments, key_segments : str, optional
        Paths of integer ids that broadcast to (..., L) and (..., S).
    query_offset, key_lengths : int or str, optional
        A number, or the path of a `.npy` file of integers over the batch dims.
    scale, alibi_slopes, sinks : float or tuple of float or str, optional
        Numbers, one per head, or the path of a `.npy` file of them over the batch dims.
    similarity, causal, window, softcap, enable_gqa, threads, backend
        As in `fastattn.attention`.
    bfloat16 : bool
        Read items of two raw bytes, as which NumPy saves bfloat16, as bfloat16 (needs ml_dtypes).
    max_memory : int
        Bytes that the arrays of the job may take at once; the interpreter and the libraries
        (some 150 MB) come on top.
    chunk_rows : int, optional
        At most so many rows of the output per chunk, for finer progress and less to repeat after
        a kill; None: some seconds of work.
    overwrite : bool
        Replace `out` and `lse_out` where they exist, and discard an unfinished job on them.
    resume : bool
        Go on where a killed job on the same output stopped.
    """

    query: str
    key: str
    value: str
    out: str
    lse_out: str | None = None
    mask: str | None = None
    query_segments: str | None = None
    key_segments: str | None = None
    similarity: str = "scaled_dot"
    scale: Numbers | str | None = None
    causal: bool | str = False
    query_offset: int | str | None = None
    window: Window | None = None
    key_lengths: int | str | None = None
    softcap: float | None = None
    alibi_slopes: Numbers | str | None = None
    sinks: Numbers | str | None = None
    enable_gqa: bool = False
    threads: int | None = None
    backend: str | None = None
    bfloat16: bool = False
    max_memory: int = 1 << 30
    chunk_rows: int | None = None
    overwrite: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("max_memory", "chunk_rows"):
            n = getattr(self, name)
            if type(n) is not int and not (n is None and name == "chunk_rows"):
                raise TypeError(f"{name} must be an integer, not {n!r}")

    def options(self) -> dict[str, Any]:
        """Collect the options that the result depends on.

        Files count among the inputs: what matters is what they hold, not where they lie.
        """
        options = {name: getattr(self, name) for name in OPTIONS if name not in NOT_RECORDED}
        for name in (*INTEGERS, *PER_HEAD):
            given = getattr(self, name)
            options[name] = None if isinstance(given, str) else given
        return options


# The options of `fastattn.attention` that are passed on as they are given.
OPTIONS = tuple(
    field.name
    for field in fields(Job)
    if field.name in inspect.signature(fastattn.attention).parameters
    and field.name not in (*FILES, *INTEGERS, *PER_HEAD, "out")
)


@dataclass(frozen=True)
class Summary:
    """What a finished job tells about itself.

    Attributes
    ----------
    out, lse_out : str
        The files written (`lse_out` may be None).
    shapes : dict
        Of every input and output.
    dtype : str
        Of the output; bfloat16 is saved as NumPy saves it, two raw bytes an item.
    chunks, resumed_chunks : int
        All chunks of the job, and those of them that an earlier run had finished.
    part_keys : int or None
        Keys per streamed part; None where keys were read whole.
    seconds, compute_seconds : float
        Time of the whole job, and of it that of reading and computing, without the writing.
    rows_per_second : float
        Rows computed in this run, per second of the whole job.
    threads : int
        At most so many were used.
    backend : str
    numerics_version : int
    checksum, lse_checksum : str
        SHA-256 of the files, as ``sha256sum`` prints it (`lse_checksum` may be None).
    """

    out: str
    lse_out: str | None
    shapes: dict[str, list[int]]
    dtype: str
    chunks: int
    resumed_chunks: int
    part_keys: int | None
    max_memory: int
    seconds: float
    compute_seconds: float
    rows_per_second: float
    threads: int
    backend: str
    numerics_version: int
    checksum: str
    lse_checksum: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as JSON has it."""
        return asdict(self)
