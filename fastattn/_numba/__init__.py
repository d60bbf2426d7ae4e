"""The Numba backend: kernels compiled on first use, and the little that launches and keeps them.

The same kernels, compiled ahead as object files, are those of `_cython`. Numba is imported in
this room alone.

**Seven words**, the same in the reference (``reference/tiled.py`` has them as numbered steps),
the kernels and this text: **pack** (dtype, strides, norms, the exact part of scale; what does not
lie in plain rows, gathered, paged, half or int8, is *staged* first: copied and widened, a panel
at a time; for up to four rows, as in decoding, halves and int8 are widened in registers instead,
within the products) → **score** (tile product) → **shape** (rest of scale, softcap, float mask,
ALiBi) → **reveal** (ranges and documents clip the loop, a mask and ids select) → **normalise**
(running maximum, weights, row sum) → **fuse** (weights × values) → **finish** (sink, divide, lse,
empty rows, output dtype).

**Where the bits come from.** A score is a sum over features in chains of fused multiply-adds, 128
features each (squares of distances: 16); eight chains are a run, and runs are added with what
each sum loses kept beside it, so that errors do not grow with E. Norms of queries and of keys
have the same bits: similarities are symmetric. Keys are reduced in segments of 512, counted from
key 0, on 16 virtual lanes with a written-out tree, whatever the machine's vector width; the
output of a segment is a sum of chains over 128 keys each. Every segment starts from nothing, and
segments fold left in index order. Block rows, the register tile, the order of tasks and the
number of threads are free, since they change no bit; a `State` is that fold made public.

From the machine upwards:

emit.py         the vector type, LLVM building blocks     memory.py    loads, stores, transposing
simd.py         arithmetic and lanes of vectors           elementary.py  exp2, exp, tanh
tile.py         the register tile                         native.py    counter, float environment
sums.py         sums over more features than a tile takes
record.py       the record of a call, as kernels see it
storage.py      halves and int8, widened and rounded      places.py    strides, tables, pages
pack.py scores.py rows.py blocks.py finish.py             the seven words, on rows and blocks
again.py        rows that the power of two of a scale would round, scored again
few.py direct.py   few rows against halves and int8, read where they lie, and the tiles for it
unpacked.py     scores of few rows against keys never packed
documents.py    stretches of foreign keys, skipped        entries.py   where an entry begins
ahead.py        what the next task needs, asked for line by line
bfloat16.py paired.py   bfloat16 multiplied as it is: vectors of pairs, and the steps that differ
attention.py similarity.py softmax.py weigh.py fuse.py    the kernels' entries (tasks.py: shared)
halves.py       lines of halves, in and out of the stages softmax_finish.py  its results, stored
gather.py       the scores of softmax, into scratch       logarithm.py   of sums, right near 0
backend.py      the engine on these kernels               repeat.py    a small call once more
allocation.py receivers.py apportion.py   budgets, their rows in scratch, whole units
pairs.py        numbers in two parts
shared.py       the steps of a round of shared allocation
launch.py       Numba's threads                           compile.py linking.py  compilation
cache.py store.py   its disk cache: private to the user, one folder per version of everything
objects.py      the same kernels as object files, for each kind of machine (entry_points.py)

What was compiled is kept in ``~/.cache/fastattn`` (or under ``XDG_CACHE_HOME``);
``FASTATTN_CACHE_DIR`` names another folder, ``FASTATTN_CACHE=0`` keeps nothing on disk.
"""
