"""The table of options holds whoever offers them: signatures, docstrings, jobs, the reference."""

import argparse
import dataclasses
import functools
import inspect
import itertools
import re

import numpy as np
import pytest

import fastattn
from fastattn import cli
from fastattn._core import names, options
from fastattn._core.options import OPTIONS, RUN, STATIC, rows_of
from fastattn.batch import Job
from fastattn.batch.job import FILES, INTEGERS, PER_HEAD
from fastattn.batch.schema import _OPTIONS as RECORDED
from fastattn.reference import attention as reference_attention
from fastattn.reference import scores as reference_scores
from fastattn.reference import tiled
from fastattn.reference.varlen import attention_varlen as reference_varlen

FORMS = {
    "attention": fastattn.attention,
    "explain": fastattn.explain,
    "attention_varlen": fastattn.attention_varlen,
    "KVCache.attend": fastattn.KVCache.attend,
    "attention_state": fastattn.attention_state,
}
OTHERS = {
    "MultiHeadAttention.__call__": fastattn.MultiHeadAttention.__call__,
    "attention_allocation": fastattn.attention_allocation,
}
# What they have beside options, and what an option is there where it is not neutral.
OWN = {
    "attention_varlen": ("key_indices", "partial"),
    "attention_state": ("key_start",),
    "MultiHeadAttention.__call__": ("rotate", "average_weights"),
    "attention_allocation": ("budget", "lower", "upper", "unit", "method", "on_unspent"),
}
DEFAULTS = {
    ("KVCache.attend", "causal"): "bottom_right",
    ("attention_allocation", "similarity"): "cosine",
}
# What the reference's functions lack: how a call is done, and what only the whole of it has.
OUTER = ("sinks", "enable_gqa", "return_lse", "return_weights")


def parameters_of(function):
    """The keyword-only parameters, by name."""
    found = inspect.signature(function).parameters.values()
    return {x.name: x for x in found if x.kind is x.KEYWORD_ONLY}


def assert_same(found, expected, about):
    """0, 0.0 and False are equal, and are not the same default."""
    assert found == expected, about
    assert type(found) is type(expected), about


def offered_by(name):
    """What the table says that a face offers, in order."""
    if name in FORMS:
        return [option for option in OPTIONS if name not in option.lacks]
    return [option for option in OPTIONS if name in option.offered]


@pytest.mark.parametrize("name", [*FORMS, *OTHERS])
def test_signatures_are_those_of_the_table(name):
    written = parameters_of({**FORMS, **OTHERS}[name])
    own = OWN.get(name, ())
    assert set(own) <= set(written)
    assert [x for x in written if x not in own] == [option.name for option in offered_by(name)]
    for option in offered_by(name):
        expected = DEFAULTS.get((name, option.name), option.neutral)
        assert_same(written[option.name].default, expected, option.name)
        annotation = parameters_of(fastattn.attention)[option.name].annotation
        assert written[option.name].annotation == annotation, option.name


@pytest.mark.parametrize("name", [*FORMS, *OTHERS])
def test_docstrings_tell_every_option(name):
    text = inspect.getdoc({**FORMS, **OTHERS}[name])
    told = re.search(r"\nParameters\n-+\n(.*?)\n\n(?:Returns|Raises)\n-", text, re.S)[1]
    headings = re.findall(r"^(\w+(?:, \w+)*)(?: : .*)?$", told, re.M)
    words = [word for heading in headings for word in heading.split(", ")]
    for parameter in parameters_of({**FORMS, **OTHERS}[name]):
        assert parameter in words, f"{name} does not document {parameter}"


def test_every_form_that_lacks_an_option_is_there():
    assert {form for option in OPTIONS for form in option.lacks} <= set(FORMS)
    known = {*OTHERS, "Job"}
    assert {face for option in OPTIONS for face in option.offered} <= known


@pytest.mark.parametrize(
    ("form", "option"),
    [(form, option) for option in OPTIONS for form in option.lacks],
    ids=lambda x: getattr(x, "name", x),
)
def test_what_a_form_lacks_it_says_with_a_way_out(form, option):
    with pytest.raises(TypeError, match=re.escape(option.lacks[form])):
        names.refuse(FORMS[form], {option.name: 1})


def test_options_and_extras_are_the_rows_of_the_table():
    assert options.Options._fields == tuple(row.name for row in rows_of(STATIC))
    arrays = rows_of(options.SEQUENCE, options.QUERY, options.KEY, options.HEAD)
    assert options.Extras._fields == tuple(row.name for row in arrays)
    assert all(x is row.neutral is None for x, row in zip(options.NO_EXTRAS, arrays, strict=True))
    checked = {row.kind for row in OPTIONS if row.check is not options._later}
    assert checked == {STATIC, options.QUERY, options.KEY, options.HEAD}
    kinds = {row.kind for row in OPTIONS}
    assert kinds == {STATIC, options.SCORES, RUN, *(row.kind for row in arrays)}


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def test_the_written_check_is_the_loop_over_the_rows():
    static = rows_of(STATIC)
    neutral = [row.neutral for row in static]
    assert options.spelt() == options.spelt(*neutral) == tuple(neutral)
    values = (None, False, True, 0, 1, 1.0, 0.25, -2.0, "cosine", "top_left", (3, None), np.True_)
    for (at, row), x in itertools.product(enumerate(static), values):
        given = [*neutral[:at], x, *neutral[at + 1 :]]
        known = x is row.neutral or (row.neutral is False and x is True)
        expected = x if known else outcome(row.check, x)
        found = outcome(options.spelt, *given)
        if isinstance(expected, tuple) and expected[:1] in ((TypeError,), (ValueError,)):
            assert found == expected
        else:
            assert found[at] == expected
            assert type(found[at]) is type(expected)


@pytest.fixture(scope="module")
def faces():
    """Each face that takes options, as a function of these alone."""
    x = np.zeros((1, 4, 8), np.float32)
    cache = fastattn.KVCache(1, 1, 8)
    cache.append(x[None], x[None])
    module = fastattn.MultiHeadAttention(8, 2, seed=0)
    return {
        "attention": functools.partial(fastattn.attention, x, x, x),
        "explain": functools.partial(fastattn.explain, x, x, x),
        "attention_varlen": functools.partial(
            fastattn.attention_varlen, x[0], x[0], x[0], [0, 4], [0, 4]
        ),
        "KVCache.attend": functools.partial(cache.attend, x[None]),
        "attention_state": functools.partial(fastattn.attention_state, x, x, x),
        "MultiHeadAttention.__call__": functools.partial(module, x),
        "attention_allocation": functools.partial(fastattn.attention_allocation, x[0], x[0]),
    }


@pytest.mark.parametrize(
    ("form", "option"),
    [(form, option) for form in (*FORMS, *OTHERS) for option in offered_by(form)],
    ids=lambda x: getattr(x, "name", x),
)
def test_every_form_looks_at_every_option(faces, form, option):
    """A signature that takes an option and forgets it would let anything pass."""
    with pytest.raises((TypeError, ValueError), match=option.name):
        faces[form](**{option.name: object()})


def test_jobs_offer_what_the_table_says():
    fields = {field.name: field for field in dataclasses.fields(Job)}
    offered = offered_by("Job")
    assert {option.name for option in offered} <= set(fields)
    known = {*(option.name for option in offered), "out"}
    assert {option.name for option in OPTIONS} & set(fields) == known
    for option in offered:
        assert_same(fields[option.name].default, option.neutral, option.name)
        told = rf"^    ([\w]+, )*{option.name}\b(, [\w]+)*( :|$)"
        assert re.search(told, Job.__doc__, re.M), option.name
    static = {option.name for option in offered if option.kind == STATIC}
    assert {"scale"} == static & {*FILES, *INTEGERS, *PER_HEAD}
    assert set(RECORDED) == {
        option.name for option in offered if option.kind != RUN and option.name not in FILES
    }
    assert set(Job("q", "k", "v", "o").options()) == set(RECORDED)


def test_the_command_line_offers_what_a_job_does():
    parser = argparse.ArgumentParser()
    cli._add_run(parser)
    actions = {action.dest: action for action in parser._actions}
    for field in dataclasses.fields(Job):
        action = actions[field.name]
        assert f"--{field.name.replace('_', '-')}" in action.option_strings
        if field.default is not dataclasses.MISSING:
            assert action.default == field.default
    assert actions["similarity"].choices == options.SIMILARITIES
    job = cli._job(parser.parse_args(["--query=q", "--key=k", "--value=v", "--out=o"]))
    assert job == Job("q", "k", "v", "o")


def test_the_reference_takes_the_same():
    meaning = [option for option in OPTIONS if option.kind != RUN]
    inner = [option for option in meaning if option.name not in OUTER]
    ragged = [x for x in meaning if "attention_varlen" not in x.lacks]
    for function, offered, own in (
        (reference_attention, meaning, ()),
        (reference_scores, inner, ()),
        (reference_varlen, ragged, ("key_indices",)),
        (tiled.attention_state, inner, ("key_start",)),
    ):
        written = parameters_of(function)
        assert [x for x in written if x not in own] == [option.name for option in offered]
        for option in offered:
            assert_same(written[option.name].default, option.neutral, option.name)
