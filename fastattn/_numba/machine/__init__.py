"""What a CPU does: vectors, loads and stores, storage types, register tiles, elementary functions.

Each function stands for instructions; nothing here knows a record or an operation. May import
`compiler`.

emit.py         the vector type, LLVM building blocks     memory.py    loads, stores, transposing
simd.py         arithmetic and lanes of vectors           elementary.py  exp2, exp, tanh
tile.py         the register tile                         tile_small.py  that of few rows
storage.py      halves and int8, widened and rounded
halves.py       lines of halves, in and out of the stages bfloat16.py  vectors of pairs of bfloat16
sums.py         sums over more features than a tile takes logarithm.py  of sums, right near 0
two_floats.py   numbers as the sum of two                 exponential.py  of such numbers
flags.py        bits of a word, some from bytes
"""
