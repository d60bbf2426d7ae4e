"""Kernels ahead of time: the machine code of every entry, as object files that need nothing.

``python -m fastattn._numba.objects FOLDER`` compiles all entries for each kind of machine in
`KINDS` and writes one object file each into the folder, with one visible symbol: a C function
``void(int64_t call_address, int64_t worker)``. Beside them it writes ``kernels.json``, which says
what each is. `setup.py` links them into `_cython._native`.

The code is what Numba lowers for a call at run time, so the bits are those of the Numba backend:
no flag lets LLVM change any. It is taken linked, before anything of it became machine code, and
optimised as one program of which nobody sees more than the entry. So functions with one caller
become part of it: short calls, of a microsecond a task, are 3 % faster than at run time. Code that
LLVM has written already is not to be optimised again: for the machine it splits addresses into two
numbers and calls either one a pointer, which is null where that number is a constant 0, and what
is read from there counts as never reached.

Each kind is compiled in a process of its own, since Numba takes its processor from the environment
once. Name and features are both spelled out: with the name alone the kernels would have the tiles
of a narrow machine, a third slower.
"""

import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

__all__ = ["KINDS", "Kind", "symbol_of", "write_all"]

_V3 = (
    "64bit avx avx2 bmi bmi2 cmov crc32 cx16 cx8 f16c fma fxsr lzcnt mmx movbe popcnt sahf sse "
    "sse2 sse3 sse4.1 sse4.2 ssse3 xsave"
).split()
_V4 = [*_V3, *"avx512f avx512bw avx512cd avx512dq avx512vl".split()]


class Kind(NamedTuple):
    """A kind of machine: its level, what LLVM knows it by, and which entries it has."""

    level: str
    cpu: str
    features: str
    beyond: str = ""  # the features that it has beside its level's; its entries need just those


def _spell(features: list[str]) -> str:
    return ",".join(f"+{feature}" for feature in features)


KINDS = {
    "v4": Kind("x86-64-v4", "x86-64-v4", _spell(_V4)),
    "v4_pairs": Kind("x86-64-v4", "x86-64-v4", _spell([*_V4, "avx512bf16"]), "avx512bf16"),
    "v3": Kind("x86-64-v3", "x86-64-v3", _spell(_V3)),
}
if platform.machine().lower() not in ("x86_64", "amd64"):
    KINDS = {"base": Kind("base", "generic", "")}

# The return value and the exception of Numba's calling convention: kernels have neither.
_ENTRY = """
target triple = "{triple}"
target datalayout = "{layout}"
declare i32 @"{kernel}"(ptr, ptr, i64, i64)
define void @{symbol}(i64 %call, i64 %worker) {{
  %result = alloca ptr
  %exception = alloca ptr
  %status = call i32 @"{kernel}"(ptr %result, ptr %exception, i64 %call, i64 %worker)
  ret void
}}
"""


def symbol_of(kind: str, name: str) -> str:
    """The name that an entry has among all that is linked."""
    return f"fastattn_{kind}_{name}"


def write_all(folder: Path) -> None:
    """Compile every entry for every kind of machine, as many kinds at once as there are cores.

    Raises
    ------
    RuntimeError
        If one of them cannot be compiled; what its process said is the text.
    """
    with ThreadPoolExecutor(os.cpu_count()) as processes:
        found = [*processes.map(lambda kind: _in_process(folder, kind), KINDS)]
    kernels = [kernel for kernels in found for kernel in kernels]
    (folder / "kernels.json").write_text(json.dumps(kernels, indent=1), encoding="utf-8")


def _in_process(folder: Path, name: str) -> list[dict[str, str]]:
    """Compile for one kind in a process of its own, without the disk cache; list what was made."""
    kind = KINDS[name]
    child = {
        **{key: text for key, text in os.environ.items() if not key.startswith("NUMBA_")},
        "NUMBA_CPU_NAME": kind.cpu,
        "NUMBA_CPU_FEATURES": kind.features,
        "FASTATTN_CACHE": "0",
    }
    command = [sys.executable, "-m", __spec__.name, str(folder), name]
    done = subprocess.run(command, env=child, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        told = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RuntimeError(f"compiling for {name} failed: {told[0]}")
    return json.loads(done.stdout)


def _write_kind(folder: Path, name: str) -> list[dict[str, str]]:
    """Compile every entry of one kind, for which this process was started."""
    import llvmlite.binding as llvm

    from .entry_points import ENTRIES

    target = llvm.Target.from_triple(llvm.get_process_triple())
    machine = target.create_target_machine(
        cpu=KINDS[name].cpu, features=KINDS[name].features, opt=3, reloc="pic", codemodel="default"
    )
    made = []
    for entry, value in ENTRIES.items():
        if value.features != KINDS[name].beyond:
            continue
        symbol, path = symbol_of(name, entry), folder / f"{name}_{entry}.o"
        path.write_bytes(machine.emit_object(_module(value, symbol, machine)))
        kind = {"kind": name, "level": KINDS[name].level, "features": KINDS[name].features}
        made.append({**kind, "name": entry, "symbol": symbol, "object": path.name})
    return made


def _module(entry, symbol, machine):
    """The optimised code of an entry and all that it calls, under one visible name."""
    import llvmlite.binding as llvm

    from .compiler.compile import ENTRY_SIGNATURE, device
    from .compiler.linking import linked_code

    code, kernel = linked_code(device(entry.function), ENTRY_SIGNATURE)
    module = llvm.parse_assembly(code)
    module.data_layout = str(machine.target_data)
    wrapper = _ENTRY.format(
        triple=module.triple, layout=module.data_layout, kernel=kernel, symbol=symbol
    )
    module.link_in(llvm.parse_assembly(wrapper))
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name != symbol:
            value.linkage = "internal"
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    foreign = {
        function.name
        for function in module.functions
        if function.is_declaration and not function.name.startswith("llvm.")
    }
    if foreign - {"sqrt"}:  # the C library's, which LLVM takes for numbers that may be negative
        raise RuntimeError(f"{entry.name} calls {', '.join(sorted(foreign))}")
    return module


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if len(sys.argv) > 2:
        print(json.dumps(_write_kind(place, sys.argv[2])))
    else:
        write_all(place)
