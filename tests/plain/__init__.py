"""The kernels as plain Python, on memory that knows what belongs to whom.

The files of `fastattn/_numba` are loaded once more, as they stand (`loader`). `device` and `entry`
leave ordinary functions, and each machine function, which LLVM code makes elsewhere, has a plain
twin of the same bits: numbers (`floats`), vectors (`lanes`, `elementary`), tiles (`tiles`), small
storage types (`storage`), words and records (`words`). The twins' loads and stores go to a
`Memory`, which knows the elements of every operand, the words of the record and the parts of each
worker's scratch (`memory`, `arrays`), so that one byte beyond is an error with the name of the
array. Memory that nobody wrote may be loaded, as padding is, but not decided by nor handed out; and
no worker meets what another one wrote. A backend named "plain" runs them under the engine as it is
(`backend`); which lines and branches ran is counted on the way (`measure`).

This is a tool of the tests, hundreds of times slower than what is compiled, and no part of what is
installed: it may look into private names of the engine. `python tests/plain_coverage.py` says what
of the kernels the short tests reach.
"""
