"""Which statements and branches of the kernels ran: a mark before each, and one around each test.

Marked are the functions that Numba compiles (`device`, `entry`, `driver`); what runs while they are
compiled is not a kernel. A branch is one outcome of the test of an `if`, a `while` or a choice
within an expression.
"""

import ast
from typing import NamedTuple

__all__ = ["Coverage", "Place", "compiled_functions"]

_COMPILED = {"device", "entry", "driver"}
_INTRINSIC = "intrinsic"


class Place(NamedTuple):
    """A statement, or one outcome of a test, of a kernel."""

    file: str  # within the folder of the kernels
    function: str
    line: int
    text: str  # of the line; the second of the same text in a function has a (2) behind it
    outcome: bool | None  # None: a statement

    def __str__(self):
        told = "" if self.outcome is None else f", when {str(self.outcome).lower()}"
        return f"{self.file}:{self.line} {self.function}: {self.text}{told}"


class Coverage:
    """The places of all files loaded so far, and which of them ran."""

    def __init__(self):
        self.places = []
        self.ran = []
        self.machine = {}  # file -> names of its machine functions, which have twins

    def took(self, place, test):
        """Note an outcome; the test's own value decides as before."""
        outcome = bool(test)
        self.ran[place + (not outcome)] = 1
        return outcome

    def marked(self, file, source):
        """The syntax tree of a file with marks in it; `names` are what the marks call."""
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                names = {_name(one) for one in node.decorator_list}
                if names & _COMPILED:
                    _Marker(self, file, node, source).mark()
                elif _INTRINSIC in names:
                    self.machine.setdefault(file, []).append(node.name)
        return ast.fix_missing_locations(tree)

    def names(self):
        return {"__ran__": self.ran, "__took__": self.took}

    def new(self, place):
        self.places.append(place)
        self.ran.append(0)
        return len(self.ran) - 1

    def missed(self):
        return [place for place, ran in zip(self.places, self.ran, strict=True) if not ran]


def compiled_functions(source):
    """The functions of a file that Numba compiles for kernels."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and {_name(x) for x in node.decorator_list} & _COMPILED
    ]


def _name(decorator):
    """The last word of a decorator, called or not."""
    if isinstance(decorator, ast.Call):
        decorator = decorator.func
    return decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")


class _Marker(ast.NodeTransformer):
    """Puts marks into one function."""

    def __init__(self, coverage, file, function, source):
        self.coverage, self.file, self.function = coverage, file, function
        self.lines = source.splitlines()
        self.alike = {}  # text -> lines of the function that have it

    def mark(self):
        self._mark_body(self.function, "body", docstring=True)

    def _place(self, node, outcome=None):
        line = node.lineno
        text = self.lines[line - 1].strip()
        alike = self.alike.setdefault(text, [])
        if line not in alike:
            alike.append(line)
        if alike.index(line):
            text = f"{text} ({alike.index(line) + 1})"
        return self.coverage.new(Place(self.file, self.function.name, line, text, outcome))

    def _mark_body(self, node, field, docstring=False):
        marked = []
        for number, statement in enumerate(getattr(node, field)):
            if docstring and number == 0 and ast.get_docstring(node) is not None:
                marked.append(statement)
                continue
            mark = ast.parse(f"__ran__[{self._place(statement)}] = 1").body[0]
            for part in ast.walk(mark):
                ast.copy_location(part, statement)
            marked += [mark, self._marked(statement)]
        setattr(node, field, marked)

    def _marked(self, statement):
        for field in ("body", "orelse"):
            if getattr(statement, field, None):
                self._mark_body(statement, field)
        if isinstance(statement, ast.If | ast.While):
            statement.test = self.visit(statement.test)
            statement.test = self._asked(statement.test)
        elif isinstance(statement, ast.For):
            statement.iter = self.visit(statement.iter)
        else:
            statement = self.visit(statement)
        return statement

    def visit_IfExp(self, node):
        self.generic_visit(node)
        node.test = self._asked(node.test)
        return node

    def _asked(self, test):
        if isinstance(test, ast.Constant):
            return test
        place = self._place(test, True)
        self._place(test, False)
        call = ast.Call(ast.Name("__took__", ast.Load()), [ast.Constant(place), test], keywords=[])
        return ast.copy_location(call, test)
