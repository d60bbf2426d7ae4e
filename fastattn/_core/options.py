"""What a call of attention may be told beside query, key and value: each option once.

A row of `OPTIONS` is an option, in the order of `fastattn.attention`'s signature: of which kind it
is, what it is where nobody says anything, what checks it, which of the four forms of attention lack
it, with what they answer whoever asks for it there, and who else hands it on. All that only passes
options along goes by these rows: the signature of a call, its recipe and its problem, ragged calls,
caches, states, the reference. Signatures and docstrings of the face are written out all the same,
for those who read them, editors and type checkers; ``tests/core/test_options.py`` holds them to the
table, and the command line, `Job` and the reference too.

An option that numbers or words say is *static*: checked and brought to one spelling, it is part of
the signature of a call (`Options`). What an array says of each sequence, head, query or key is one
of the `Extras`, which only a call with its arrays can check.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from operator import attrgetter, itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

from fastattn._core import names
from fastattn._core.annotations import Causal, Similarity, Window
from fastattn._core.arrays import finite_number, flag, per_head
from fastattn._core.scales import is_positive, scale_of
from fastattn._core.visibility import check_causal, check_window, segment_ids

__all__ = [
    "ALLOCATION",
    "HEAD",
    "JOB",
    "KEY",
    "MODULE",
    "NO_EXTRAS",
    "OPTIONS",
    "QUERY",
    "RUN",
    "SCORES",
    "SEQUENCE",
    "SIMILARITIES",
    "STATIC",
    "Extras",
    "Option",
    "Options",
    "asked",
    "check_similarity",
    "heads",
    "rows_of",
    "spelt",
]

SIMILARITIES: tuple[str, ...] = get_args(Similarity)

# Kinds. An array over the batch dims has integers for each *sequence*, or numbers for each *head*.
STATIC, SEQUENCE, HEAD, QUERY, KEY = "static", "sequence", "head", "query", "key"
SCORES, RUN = "scores", "run"  # an operand over (..., L, S); and how a call is done, not what
# Who offers options beside the four forms, which offer all but what they lack.
MODULE, ALLOCATION, JOB = "MultiHeadAttention.__call__", "attention_allocation", "Job"
_VARLEN, _CACHE, _STATE = "attention_varlen", "KVCache.attend", "attention_state"


class Options(NamedTuple):
    """The static options, in the order of the table: as asked, or as a recipe resolves them."""

    similarity: str
    scale: Any  # asked: float, `Scales` or None; resolved: float, or float64 (*batch, Hkv, G)
    causal: Causal  # resolved: whether, since `query_offset` says where
    window: Window | None  # resolved: never None
    softcap: float | None
    enable_gqa: bool
    return_lse: bool
    return_weights: bool


class Extras(NamedTuple):
    """The small arrays of one call: as the caller gave them, or as a problem has them laid out."""

    query_offset: Any = None  # laid out: int64 (*batch, Hkv, G), or one int; 0 where nobody asks
    key_lengths: Any = None  # int64 (*batch, Hkv, G), within 0..S
    query_segments: Any = None  # int64 (*batch, Hkv, G, L)
    key_segments: Any = None  # int64 (*batch, Hkv, G, S)
    alibi_slopes: Any = None  # (*batch, Hkv, G), compute dtype
    sinks: Any = None  # (*batch, Hkv, G), compute dtype

    def given(self) -> tuple[bool, bool, bool]:
        """Tell a signature what it needs to know of them: what moves positions, or asks for one."""
        return (
            self.key_lengths is not None,
            self.query_offset is not None,
            self.alibi_slopes is not None,
        )


NO_EXTRAS = Extras()


def _later(*_: Any) -> Any:
    """Stand in for a check that the option alone does not allow."""
    raise NotImplementedError


class Option(NamedTuple):
    """One option.

    Attributes
    ----------
    name
        As signatures spell it.
    kind
        `STATIC`, or what it is an array over, or `RUN`.
    neutral
        What it is where nobody says anything.
    check
        Refuses what it cannot be, and returns the rest in one spelling: of a static option
        ``check(x)``; of heads ``check(x, batch, dtype)``, of queries and keys ``check(x, batch,
        length)``, copies both. What others may be depends on the call (`problem`).
    lacks
        The forms of attention that have no such option on purpose, and the way out.
    offered
        By whom beside the forms of attention.
    """

    name: str
    kind: str
    neutral: Any = None
    check: Callable[..., Any] = _later
    lacks: Mapping[str, str] = MappingProxyType({})
    offered: tuple[str, ...] = ()


def check_similarity(name: str, similarity: Any) -> None:
    """Raise ValueError unless `similarity` is one of the known words."""
    if type(similarity) is not str or similarity not in SIMILARITIES:
        raise ValueError(
            f"unknown {name} {similarity!r}: one of {', '.join(map(repr, SIMILARITIES))}"
        )


def _similarity(x: Any) -> Any:
    check_similarity("similarity", x)
    return x


def _softcap(x: Any) -> float:
    cap = finite_number("softcap", x, "None means no cap")
    if not is_positive(cap):
        raise ValueError(f"softcap must be positive, not {cap!r}; None means no cap")
    return cap


OPTIONS = (
    Option("similarity", STATIC, "scaled_dot", _similarity, offered=(ALLOCATION, JOB)),
    Option("scale", STATIC, None, scale_of, offered=(ALLOCATION, JOB)),
    Option(
        "mask",
        SCORES,
        lacks={
            _VARLEN: "hide keys with key_splits, or with ids of documents (query_segments and "
            "key_segments); a mask of one sequence goes into a call of attention"
        },
        offered=(MODULE, ALLOCATION, JOB),
    ),
    Option("causal", STATIC, False, check_causal, offered=(MODULE, ALLOCATION, JOB)),
    Option("query_offset", SEQUENCE, offered=(MODULE, ALLOCATION, JOB)),
    Option("window", STATIC, None, check_window, offered=(MODULE, ALLOCATION, JOB)),
    Option(
        "key_lengths",
        SEQUENCE,
        lacks={
            _VARLEN: "key_splits say how many keys each sequence has",
            _CACHE: "a cache knows its lengths: leave it out",
        },
        offered=(MODULE, ALLOCATION, JOB),
    ),
    Option(
        "query_segments",
        QUERY,
        None,
        functools.partial(segment_ids, "query_segments"),
        offered=(ALLOCATION, JOB),
    ),
    Option(
        "key_segments",
        KEY,
        None,
        functools.partial(segment_ids, "key_segments"),
        offered=(ALLOCATION, JOB),
    ),
    Option("softcap", STATIC, None, _softcap, offered=(JOB,)),
    Option("alibi_slopes", HEAD, None, functools.partial(per_head, "alibi_slopes"), offered=(JOB,)),
    Option(
        "sinks",
        HEAD,
        None,
        functools.partial(per_head, "sinks", lowest_hides=True),
        lacks={_STATE: "sinks belong to the end, `state.finish(sinks=sinks)`"},
        offered=(JOB,),
    ),
    Option(
        "enable_gqa",
        STATIC,
        False,
        functools.partial(flag, "enable_gqa"),
        lacks={_CACHE: "heads are grouped by themselves: leave it out"},
        offered=(JOB,),
    ),
    Option(
        "return_lse",
        STATIC,
        False,
        functools.partial(flag, "return_lse"),
        lacks={_STATE: "the end gives it, `state.finish(return_lse=True)`"},
    ),
    Option(
        "return_weights",
        STATIC,
        False,
        functools.partial(flag, "return_weights"),
        lacks={
            _VARLEN: "call attention for the sequences whose weights are wanted",
            _STATE: "weights are those of one call: see attention",
        },
        offered=(MODULE,),
    ),
    Option(
        "out",
        RUN,
        lacks={_STATE: "the end makes the output: leave it out"},
        offered=(MODULE,),
    ),
    Option("backend", RUN, offered=(MODULE, ALLOCATION, JOB)),
    Option("threads", RUN, offered=(MODULE, ALLOCATION, JOB)),
)
names.LACKING.update(
    {(form, option.name): way for option in OPTIONS for form, way in option.lacks.items()}
)


@functools.cache
def rows_of(*kinds: str) -> tuple[Option, ...]:
    """Return the options of some kinds."""
    return tuple(option for option in OPTIONS if option.kind in kinds)


# heads(extras): those of the small arrays that have a number for each head.
heads: Callable[[Extras], tuple[Any, ...]] = attrgetter(*(row.name for row in rows_of(HEAD)))


def _write_spelt(rows: tuple[Option, ...]) -> Callable[..., tuple[Any, ...]]:
    """Write the function that checks the static options, given in their order.

    It is written out, as `namedtuple` writes its own: a loop over the rows costs a small call of 6
    µs another 0.3. What an option is by default is let pass, and of flags both.
    """
    known: dict[str, Any] = {}
    spelt = []
    for name, _, neutral, check, *_ in rows:
        known |= {f"neutral_{name}": neutral, f"check_{name}": check}
        default = str(neutral) if neutral is None or neutral is False else f"neutral_{name}"
        passes = f"{name} is {default}" + f" or {name} is True" * (neutral is False)
        spelt.append(f"{name} if {passes} else check_{name}({name})")
    parameters = ", ".join(f"{row.name}=neutral_{row.name}" for row in rows)
    text = f"lambda {parameters}: ({', '.join(spelt)},)"
    return eval(text, known)  # type: ignore[no-any-return]


# spelt(similarity, scale, ...): check the options of a call that no array decides, and bring them
# to one spelling each. 1, 1.0 and True are equal and hash alike, so an unchecked ``scale=True``
# would slip through on the entry of ``scale=1.0``.
spelt = _write_spelt(rows_of(STATIC))


_NEUTRAL = {option.name: option.neutral for option in OPTIONS}
_static, _arrays = itemgetter(*Options._fields), itemgetter(*Extras._fields)


def asked(arguments: Mapping[str, Any]) -> tuple[Options, Extras]:
    """Take the options out of a function's arguments: static ones checked, arrays as they are.

    `arguments` are the function's ``locals()``, so that it cannot forget one; what it lacks is
    neutral. This costs two microseconds more than to pass them on.
    """
    found = {**_NEUTRAL, **arguments}
    return Options._make(spelt(*_static(found))), Extras._make(_arrays(found))
