"""Commands that are refused with options in the text: run as advised, they must end well.

Each entry makes its files in a fresh folder and names the arguments and the exit code; options
that a text names go onto the command line, in place of what is there. `VALUES` fill in what a text
leaves open. Everything happens in this process.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import advice
import jobs
import numpy as np

from fastattn.batch import runner, writers
from fastattn.cli import main

VALUES = {"--max-memory": "64M", "--batch": "1"}


class Refused(NamedTuple):
    """A command that is refused: its arguments, its exit code, what else is different then.

    `scope` is for quoted code, `values` for options that are named without one.
    """

    arguments: list[str]
    code: int
    meanwhile: Any = contextlib.nullcontext()
    scope: dict[str, Any] = {}  # noqa: RUF012
    values: dict[str, str] = VALUES


def run(folder: Path, *more: str, **changes: Any) -> list[str]:
    """Files of a small job, and the arguments that run it chunk by chunk."""
    inputs = jobs.arrays() | changes
    job = jobs.save(folder, inputs)
    roles = [role for role in inputs if role in ("query", "key", "value", "mask")]
    files = [word for role in roles for word in (f"--{role}", getattr(job, role))]
    small = [
        word
        for role in inputs
        if role not in roles
        for word in (f"--{role.replace('_', '-')}", getattr(job, role))
    ]
    return ["run", *files, *small, "--out", job.out, "--chunk-rows", "37", *more]


def meanwhile(act: Any, after: int = 2) -> Any:
    """Do something to the files, once, when so many chunks are recorded."""
    attend, left = runner.attend_whole, [after]

    def attend_some(*given: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            act()
        return attend(*given)

    return mock.patch.object(runner, "attend_whole", attend_some)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def interrupted() -> Any:
    return meanwhile(interrupt)


def unfinished(folder: Path, *more: str, **changes: Any) -> list[str]:
    arguments = run(folder, *more, **changes)
    with interrupted():
        assert main(arguments) == 130
    return arguments


def output_is_there(folder: Path) -> Refused:
    arguments = run(folder)
    assert main(arguments) == 0
    return Refused(arguments, 2)


def broken_off(folder: Path) -> Refused:
    return Refused(run(folder), 130, interrupted())


def unfinished_job(folder: Path) -> Refused:
    return Refused(unfinished(folder), 2)


def another_job(folder: Path) -> Refused:
    return Refused([*unfinished(folder), "--scale", "0.5", "--resume"], 1)


def less_memory(folder: Path) -> Refused:
    rows = np.ones((3, 4, 5000, 8), np.float32)
    arguments = unfinished(folder, "--chunk-rows", "5000", query=rows)
    return Refused([*arguments, "--resume", "--max-memory", "1400K"], 2)


def too_little_memory(folder: Path) -> Refused:
    return Refused(run(folder, "--max-memory", "1000"), 2)


def out_of_memory(folder: Path) -> Refused:
    return Refused(
        run(folder), 1, mock.patch.object(runner, "attend_whole", side_effect=MemoryError("full"))
    )


def cut_between_runs(folder: Path) -> Refused:
    arguments = unfinished(folder)
    os.truncate(folder / "out.npy.part", 300)
    return Refused([*arguments, "--resume"], 1)


def cut_meanwhile(folder: Path) -> Refused:
    reopen = writers.PartialFile.reopen

    def cut(file: Any) -> None:
        reopen(file)
        os.truncate(file.temporary, 300)

    arguments = [*unfinished(folder), "--resume"]
    return Refused(arguments, 1, mock.patch.object(writers.PartialFile, "reopen", cut))


def damaged_after_the_last_chunk(folder: Path) -> Refused:
    publish, published = writers.PartialFile.publish, []

    def once(file: Any, overwrite: bool) -> None:
        if published:
            raise KeyboardInterrupt
        published.append(file)
        publish(file, overwrite)

    arguments = run(folder, "--lse-out", str(folder / "lse.npy"))
    with mock.patch.object(writers.PartialFile, "publish", once):
        main(arguments)
    with open(folder / "out.npy.part", "r+b") as file:
        file.seek(500)
        file.write(b"\x55\x55")
    return Refused([*arguments, "--resume"], 1)


def appeared_meanwhile(folder: Path) -> Refused:
    publish = writers.PartialFile.publish

    def appear(file: Any, overwrite: bool) -> None:
        if not overwrite:
            Path(file.path).write_bytes(b"somebody else's")
        publish(file, overwrite)

    return Refused(run(folder), 2, mock.patch.object(writers.PartialFile, "publish", appear))


def discarded_in_part(folder: Path) -> Refused:
    arguments = [*unfinished(folder), "--overwrite"]
    return Refused(arguments, 130, mock.patch.object(writers.PartialFile, "discard", interrupt))


def folder_is_moved(folder: Path) -> Refused:
    place, elsewhere = folder / "place", folder / "elsewhere"
    place.mkdir()

    @contextlib.contextmanager
    def moved() -> Iterator[None]:
        with meanwhile(lambda: place.rename(elsewhere)):
            yield
        elsewhere.rename(place)  # as the text says

    return Refused(run(folder, "--out", str(place / "out.npy")), 1, moved())


def removed_meanwhile(folder: Path) -> Refused:
    return Refused(run(folder), 1, meanwhile((folder / "out.npy.part").unlink))


def written_meanwhile(folder: Path) -> Refused:
    def write() -> None:
        with open(folder / "out.npy.part", "r+b") as file:
            file.write(b"?")

    return Refused(run(folder), 1, meanwhile(write))


def forged(folder: Path, **fields: Any) -> Refused:
    """An unfinished job with other things in its manifest, under a right checksum."""
    arguments, path = unfinished(folder), folder / "out.npy.part.manifest"
    first, *records = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(jobs.line_of(json.loads(first[9:]) | fields) + b"".join(records))
    return Refused([*arguments, "--resume"], 1)


def of_another_version(folder: Path) -> Refused:
    return forged(folder, format="fastattn job manifest 1")


def not_written_so(folder: Path) -> Refused:
    return forged(folder, backend=7)


def two_outputs_in_one(folder: Path) -> Refused:
    names = {name: str(folder / f"other{name}.npy") for name in ("--out", "--lse-out")}
    arguments = run(folder, "--lse-out", str(folder / "out.npy"))
    return Refused(arguments, 2, values=names)


def too_many_numbers(folder: Path) -> Refused:
    heads = 20_000
    numbers, path = np.full(heads, 1 / 3), str(folder / "numbers.npy")
    np.save(path, numbers.astype(np.float32))
    words = ",".join(map(str, numbers.tolist()))
    rows = dict.fromkeys(("query", "key", "value"), np.ones((heads, 1, 1), np.float32))
    values = dict.fromkeys(("--scale", "--alibi-slopes", "--sinks"), path)
    more = [word for name in values for word in (name, words)]
    arguments = run(folder, *more, "--chunk-rows", str(heads), "--causal", **rows)
    return Refused(arguments, 2, values=values)


def saved_otherwise(folder: Path, array: np.ndarray, content: Any, role: str = "key") -> Refused:
    """An input that is no array of numbers, while the array it was meant to be is at hand."""
    arguments = run(folder)
    path = str(folder / f"{role}.npy")
    content(path)
    return Refused(arguments, 1, scope={"path": path, "array": array})


KEY = jobs.arrays()["key"]


def pickled_objects(folder: Path) -> Refused:
    return saved_otherwise(folder, KEY, lambda path: np.save(path, KEY.astype(object)))


def several_arrays(folder: Path) -> Refused:
    def save(path: str) -> None:
        with open(path, "wb") as file:
            np.savez(file, key=KEY)

    return saved_otherwise(folder, KEY, save)


def raw_halves(folder: Path) -> Refused:
    import ml_dtypes

    halves = KEY.astype(ml_dtypes.bfloat16)
    return saved_otherwise(folder, halves, lambda path: np.save(path, halves))


def halves_without_their_type(folder: Path) -> Refused:
    refused = raw_halves(folder)
    missing = mock.patch.dict("sys.modules", {"ml_dtypes": None})
    return refused._replace(arguments=[*refused.arguments, "--bfloat16"], code=2, meanwhile=missing)


def lengths_of_floats(folder: Path) -> Refused:
    lengths = np.full((3, 1), 40.0)
    arguments = run(folder, key_lengths=lengths)
    path = str(folder / "key_lengths.npy")
    return Refused(arguments, 1, scope={"path": path, "array": lengths})


def causal_of_unequal_lengths(folder: Path) -> Refused:
    return Refused(run(folder, "--causal"), 2)


def picture(folder: Path, shape: tuple[int, ...], *more: str) -> list[str]:
    np.save(folder / "weights.npy", np.full(shape, 0.5))
    return ["plot", str(folder / "weights.npy"), str(folder / "heads.png"), *more]


def heads_of_a_matrix(folder: Path) -> Refused:
    return Refused(picture(folder, (2, 3), "--head", "0"), 2)


def several_batches(folder: Path) -> Refused:
    return Refused(picture(folder, (2, 2, 2, 3)), 2)


def too_many_heads(folder: Path) -> Refused:
    return Refused(picture(folder, (65, 2, 3)), 2)


def digits_are_there(folder: Path) -> Refused:
    (folder / "query.npy").write_bytes(b"")
    return Refused(["example", "digits", "--dir", str(folder)], 2)


def pieces(message: str) -> list[str]:
    """What a text tells to do: not what it tells to leave, nor the option that it speaks of."""
    options = advice.OPTION.findall(advice.QUOTED.sub("", message))
    spoken_of = [f"instead of {option}" for option in options]
    spoken_of += [f"{option} is" for option in options]
    said = [
        option
        for option in options
        if not any(option in part and part in message for part in spoken_of)
    ]
    return list(dict.fromkeys((*said, *advice.quoted(message))))


def advised(refused: Refused, message: str, piece: str) -> list[str]:
    """The command with options as the text says: added, or in place of what is there."""
    words = ["8" if word == "n" else word for word in piece.split()]
    arguments = [word for word in refused.arguments if f"{piece} instead of {word}" not in message]
    for name in (word for word in piece.split() if word.startswith("--")):
        if name in arguments:
            at = arguments.index(name)
            after = arguments[at + 1 :]
            arguments = arguments[:at] + after[bool(after) and not after[0].startswith("--") :]
    if f"leave {piece} out" in message:
        return arguments
    if len(words) == 1 and words[0] in refused.values:
        words.append(refused.values[words[0]])
    return [*arguments, *words]


def said(refused: Refused, capsys: Any) -> str:
    capsys.readouterr()
    with refused.meanwhile:
        assert main(refused.arguments) == refused.code
    return str(capsys.readouterr().err)


def check(make: Any, folder: Path, capsys: Any) -> str:
    """Provoke the text once for every piece of code in it, and do what the piece says."""
    (folder / "first").mkdir()
    message = said(make(folder / "first"), capsys)
    count = len(pieces(message))
    assert count, message
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        refused = make(place)
        text = said(refused, capsys)
        arguments, piece = refused.arguments, pieces(text)[number]
        if piece.startswith("--"):
            arguments = advised(refused, text, piece)
        elif "pip install" in piece:
            advice.installed(piece)
        else:
            eval(piece, advice.scope_of({}) | refused.scope)
            if "save" not in piece:
                continue  # it shows what is there; another piece says what to do with it
        assert main(arguments) == 0, (
            f"{' '.join(arguments)}: {capsys.readouterr().err}\nafter: {text}"
        )
    return message


COMMANDS = {
    function.__name__: lambda folder, capsys, function=function: check(function, folder, capsys)
    for function in (
        output_is_there,
        broken_off,
        unfinished_job,
        another_job,
        less_memory,
        too_little_memory,
        out_of_memory,
        cut_between_runs,
        cut_meanwhile,
        damaged_after_the_last_chunk,
        appeared_meanwhile,
        discarded_in_part,
        folder_is_moved,
        removed_meanwhile,
        written_meanwhile,
        of_another_version,
        not_written_so,
        two_outputs_in_one,
        too_many_numbers,
        pickled_objects,
        several_arrays,
        raw_halves,
        halves_without_their_type,
        lengths_of_floats,
        causal_of_unequal_lengths,
        heads_of_a_matrix,
        several_batches,
        too_many_heads,
        digits_are_there,
    )
}
