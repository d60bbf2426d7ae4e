"""The Numba backend: kernels compiled on first use, and the little that launches and keeps them.

The same kernels, compiled ahead as object files, are those of `_cython`. Numba is imported in
this room alone.

**Seven words**, the same in the reference (``reference/tiled.py`` has them as numbered steps),
the kernels and this text: **pack** (dtype, strides, norms, the exact part of scale; what does not
lie in plain rows, gathered, paged, half or int8, is *staged* first: copied and widened, a panel
at a time; for up to four rows, as in decoding, halves and int8 are widened in registers instead,
within the products) → **score** (tile product) → **shape** (rest of scale, softcap, float mask,
ALiBi) → **reveal** (ranges, documents and masks clip the loop, a mask and ids select) →
**normalise** (running maximum, weights, row sum) → **fuse** (weights × values) → **finish** (sink,
divide, lse, empty rows, output dtype).

**Where the bits come from.** A score is a sum over features in chains of fused multiply-adds, 64
features each (squares of distances: 16); sixteen chains are a run, and runs are added with what
each sum loses kept beside it, so that errors do not grow with E. Norms of queries and of keys
have the same bits: similarities are symmetric. A linear map has runs of 64 chains, and adds both in
order, with nothing kept beside them. Keys are reduced in segments of 512, counted from
key 0, on 16 virtual lanes with a written-out tree, whatever the machine's vector width; the
output of a segment is a sum of chains over 128 keys each. Every segment starts from nothing, and
segments fold left in index order. Block rows, the register tile, the order of tasks and the
number of threads are free, since they change no bit; a `State` is that fold made public.

Rooms, each of which may import those before it (budgets needs no steps):

compiler/   how kernels come to be and are run
machine/    what a CPU does: vectors, tiles, storage types, elementary functions
operands/   what a call works on: its record, where rows lie, what is packed and read ahead
steps/      one block of rows through the seven words, and the variants of it
stages/     the kernels: attention, similarity, fuse, softmax and its relatives, linear maps
budgets/    the kernels that hand out budgets

entry_points.py every kernel, by name                     backend.py   the engine on these kernels
objects.py      the same kernels as object files, for each kind of machine
"""
