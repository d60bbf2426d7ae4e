"""Why no case reaches some places of the kernels. Whatever else is missed fails the tests.

By file and function: the text of the line, and which outcome of its test (None: the statement).
"""

__all__ = ["NOT_LOADED", "NOT_TWINNED", "REASONS", "key_of", "without_reason", "without_use"]

# Files with compiled functions that are not loaded.
NOT_LOADED = {"launch.py": "drives Numba's threads; `plain.workers` takes turns instead"}
# Machine functions that no plain kernel calls.
NOT_TWINNED = dict.fromkeys(
    ("call_entry", "default_float_environment", "restore_float_environment"),
    "of the launchers of threads: who calls an entry, in which float environment",
)

_IN_PLACE = "results of the tag's own type without gaps are written where they lie, by the caller"
_APART = "no two bounds that differ are as near as two pairs of floats"
_FINITE = "the face keeps factors so small that a sum of finite terms is finite"

REASONS: dict[tuple[str, str, str, bool | None], str] = {
    (
        "allocation.py",
        "find_theta",
        "if not (below(low, low_rest, theta, rest) and below(theta, rest, high, high_rest)):",
        True,
    ): _APART,
    ("allocation.py", "find_theta", "break (3)", None): _APART,
    ("storage.py", "round_row", "if stride == item:", True): _IN_PLACE,
    ("storage.py", "round_row", "while i < whole:", True): _IN_PLACE,
    ("storage.py", "round_row", "while i < whole:", False): _IN_PLACE,
    ("storage.py", "round_row", "while i < whole:", None): _IN_PLACE,
    (
        "storage.py",
        "round_row",
        "store(target + i * item, load(tag, source + i * item))",
        None,
    ): _IN_PLACE,
    ("storage.py", "round_row", "i += LANES", None): _IN_PLACE,
    ("softmax.py", "settle_factors", "if seen and not infinite:", True): _FINITE,
    (
        "softmax.py",
        "settle_factors",
        "total = np.nan  # sums of finite terms that overflow both ways",
        None,
    ): _FINITE,
    (
        "softmax.py",
        "normalise_block",
        "if settle_rows(tag, call, x, mask, given, group, count, keys, own, block, parts):",
        False,
    ): _FINITE,
}


def key_of(place):
    return place.file.rpartition("/")[2], place.function, place.text, place.outcome


def without_reason(missed):
    return [place for place in missed if key_of(place) not in REASONS]


def without_use(missed):
    """Reasons for what is reached after all, or no longer there."""
    return sorted(set(REASONS) - {key_of(place) for place in missed}, key=repr)
