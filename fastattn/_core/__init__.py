"""What all backends share: the description of a call, the choice of backend, threads.

A call becomes a frozen `Problem`: canonical array views, the options (`Options`, checked and
resolved), the small arrays (`Extras`, laid out), dtypes, and the *place* where keys lie: in arrays
of their own, in rows of a table, in pages of a cache, or end to end with those of other sequences.
A backend takes it and fills the result. Validation is over before a kernel starts; kernels never
validate, raise, or allocate per tile. Nothing in here imports another room; backends are imported
by name.

Arrays and options:

annotations.py  what signatures say: the words of each option, arrays of any library
options.py      every option of attention, a row each, and what is made of the rows
arrays.py       what is an array: acceptance, compute dtype, views, `out`
foreign.py      arrays of other libraries             masks.py    what a mask may be
names.py        arguments by the names that other libraries give them
scales.py       one scale, or one per head, as part of a signature
layouts.py      arrays over the batch, as (batch, key heads, groups, ...)
visibility.py   causal, window, lengths, offsets: checked, as ranges; ids of documents
stored.py       what a cache is asked, checked in its own words
reduced.py      axes summed over, joined last

Calls:

recipe.py       all that follows from shapes, dtypes and options alone; kept per signature
problem.py      one call, validated and canonical (and the story of small calls)
ragged.py       the same of a ragged call             places.py   where keys and values lie
pages.py        the pages of a cache
kept.py         calls kept under their options and layouts
steps.py        steps of a decoder, planned once a page

The machine:

constants.py    what alone decides bits, and sizes of blocks
backends.py     choice of backend, refusals           execution.py  what a backend offers
threads.py      how many threads, and whose           config.py     versions, show_config
sharing.py      one pool with NumPy's BLAS
environment.py  the float environment of NumPy's work on the face, as kernels have it

**Small calls** skip validation: what shapes, strides, dtypes and options decide is kept under them
(``kept.py``), so a repeated call is a lookup, an allocation and one compiled call. The compiled
kernels bring a memo of their own, which does all of that without the interpreter. To describe and
plan a call takes 24 µs. A step of decoding on a cache is planned once a page, as if the page were
full, and takes the lengths and addresses of its own call.

**Options stand in one table**, ``options.py``, and whatever only passes them along goes by its
rows. What numbers and words say is *static*: one flat tuple, which is the memo's key, the middle of
a signature and, named, the `Options` of recipe and problem. What an array says of each sequence,
head, query or key is one of the `Extras`; a row's kind tells how it is checked and laid out. The
named tuples and the signatures are written out beside the table, since types, help and editors need
them, and so are the two calls that are repeated most, `attention` and `KVCache.attend`, which would
lose a microsecond to names; ``tests/core/test_options.py`` holds all of them to it.

**Add an option to `attention`**, room by room:

1. ``reference/attention.py``: what it means, in a line or two, and in the signatures there;
   ``tiled.py``: in which of the seven steps it happens.
2. ``options.py``: its row, with its check, and a field of `Options` or `Extras`. Recipe, problem,
   ragged calls, steps of a decoder, states and the reference's backend take it from there.
3. ``attention.py`` (`attention`, `explain`), ``varlen.py``, ``cache.py``, ``state.py``, each unless
   the row says why not: parameter and docstring; ``python tests/static_face.py`` then writes the
   stub that checkers of types read.
4. ``_engine/layouts.py``: a word of the record, which ``_engine/describe.py`` fills (of an array:
   its row in `EXTRA_WORDS`); ``_numba``: a run-time branch per tile in the step that does it; a
   reason in `refusal` of any backend that cannot.
5. ``batch/job.py``, if the row says that jobs offer it: a field; ``cli.py``: its argument. Manifest
   and error texts follow.
6. ``tests/support/strategies.py``: a draw of it; then conformance, bits and properties cover it,
   alone and in pairs. ``tests/face/test_face_errors.py``: each wrong value. A seeded fault that the
   suite must catch.
7. ``bench/cases.py``: a case, if it can cost time. ``config.py``: raise `NUMERICS_VERSION` if any
   bit of an older call may change.

**Add an operation**: its meaning in ``reference`` and its ``backend.py``, its type in
``execution.py``, a row in ``_engine/operations.py`` with its function and its record, its kernels
in ``_numba``, its face in a file of its own, its name in ``fastattn/__init__.py`` and README.md,
and the same tests. Backends, warm-up and the build follow the row.

**Add a way to multiply**: a file in ``_numba/steps`` that makes its `VariantSteps`, an entry of it
in ``_numba/stages/attention.py``, a row in ``_engine/variants.py`` that says which calls take it.
What it reads otherwise than others is decided in ``_engine/way.py``.
"""
