"""Every advice in every error text is pasted and run: a text that quotes code is code."""

import advice
import pytest
from advice_calls import WRONG
from advice_commands import COMMANDS

TEXTS = advice.all_texts()
# What was said in this process, by the name of the call or command.
said = {}


def wording(name):
    wrong = WRONG[name]
    scope = advice.scope_of(wrong.variables)
    with wrong.refused():
        said[name] = advice.answer(wrong.call, scope)
    return said[name]


@pytest.mark.parametrize("name", WRONG)
def test_what_a_text_advises_works(name):
    wrong, message = WRONG[name], wording(name)
    for number, piece in enumerate(advice.quoted(message)):
        scope = advice.scope_of(wrong.variables)
        try:
            advice.follow(message, number, wrong, scope)
        except Exception as error:
            raise AssertionError(
                f"{wrong.call} said: {message}\n  `{piece}` was pasted, and raised "
                f"{type(error).__name__}: {error}"
            ) from error


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_advises_works(name, tmp_path, capsys):
    said[name] = COMMANDS[name](tmp_path, capsys)


def test_every_text_that_quotes_code_is_among_them(tmp_path_factory, capsys):
    messages = [said.get(name) or wording(name) for name in WRONG]
    for name, command in COMMANDS.items():
        messages.append(said.get(name) or command(tmp_path_factory.mktemp("command"), capsys))
    # What bridges say is asked for where their libraries are: tests/bridges.
    own = [text for text in TEXTS if not text.place.startswith("bridges/")]
    missing = advice.missing(own, messages)
    assert not missing, (
        "these texts quote code that no test pastes: add a wrong call that is answered with each "
        "to WRONG in tests/advice_calls.py (or to COMMANDS in tests/advice_commands.py, if the "
        "code is an option of the command line):\n"
        + "\n".join(f"  fastattn/{text.place}  {text.template}" for text in missing)
    )


def test_code_in_texts_stands_in_backticks():
    bare = [text for text in TEXTS if text.has_bare_code()]
    assert not bare, (
        "these strings look like code for users: write what can be pasted in `backticks`, and name "
        "options without = where nothing is to be pasted; what is no text for people goes into "
        "NO_TEXTS of tests/advice.py:\n"
        + "\n".join(f"  fastattn/{text.place}  {text.template}" for text in bare)
    )


SOURCE = '''
"""Docstrings may quote `f(x)`, and mask=."""
def f(name, n):
    raise ValueError(f"{name} is wrong: " + (f"pass `{name}[:, None]`" if n else "or mask=None"))
'''


def test_the_reader_of_texts_sees_them():
    """The tests above hold nothing if texts go unseen."""
    found = {text.template: text for text in advice.texts(SOURCE, "there.py")}
    quoting = found.pop("pass `{}[:, None]`")
    assert set(found) == {"{} is wrong: ", "or mask=None"}
    assert quoting.quotes_code()
    assert not any(text.quotes_code() for text in found.values())
    assert [text.has_bare_code() for text in found.values()] == [
        text.template == "or mask=None" for text in found.values()
    ]
    assert quoting.pattern.search("x is wrong: pass `x[:, None]`")
    assert not quoting.pattern.search("pass `x[None]`")
    assert sum(text.quotes_code() for text in TEXTS) > 100


@pytest.mark.parametrize(
    "template",
    [
        "write mask=None here",
        "pass {}.detach() instead",
        "or {}.astype(np.float64)",
        "one row is {}[:, None] then",
        "or pip install numba",
        "hide with ~mask then",
    ],
)
def test_bare_code_is_seen(template):
    assert advice.Text("there.py", template).has_bare_code()


@pytest.mark.parametrize(
    "template", ["shape () of array(s)", "L = 5 and (2, 3)", "as in (..., L, E)", "2**53 == 3"]
)
def test_prose_is_no_code(template):
    assert not advice.Text("there.py", template).has_bare_code()
