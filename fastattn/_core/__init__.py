"""What all backends share: the description of a call, the choice of backend, threads.

A call becomes a frozen `Problem`: canonical array views, sizes, dtype, options, and visibility as
*key ranges* per row, plus a mask array if the caller made one. A backend takes it and fills the
result. Validation is over before a kernel starts; kernels never validate, raise, or allocate per
tile. Nothing in here imports another room; backends are imported by name.

Arrays and options:

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
ragged.py       the same of a ragged call             pages.py    the pages of a cache
kept.py         calls kept under their options and layouts
steps.py        steps of a decoder, planned once a page

The machine:

constants.py    what alone decides bits, and sizes of blocks
backends.py     choice of backend, refusals           execution.py  what a backend offers
threads.py      how many threads                      config.py     versions, show_config
environment.py  the float environment of NumPy's work on the face, as kernels have it

**Small calls** skip validation: what shapes, strides, dtypes and options decide is kept under them
(``kept.py``), so a repeated call is a lookup, an allocation and one compiled call. The compiled
kernels bring a memo of their own, which does all of that without the interpreter. The first call
of a signature takes 30 µs of face. A step of decoding on a cache is planned once a page, as if the
page were full, and takes the lengths and addresses of its own call: (1, 8, 1, 64) on 64 keys takes
23 µs instead of 140.

**Add an option to `attention`**, room by room:

1. ``reference/attention.py``: what it means, in a line or two; ``tiled.py``: in which of the seven
   steps it happens.
2. ``recipe.py`` (`spelt`, `Signature`, which stays flat, `Recipe`) if shapes and options decide
   it; a small array goes into `Extras` of ``problem.py``, and `bind` checks and lays it out; its
   check in ``visibility.py`` or ``arrays.py``; a field of `Problem`, and of `RaggedProblem`.
3. ``attention.py``: parameter and docstring of `attention`, parameter of `explain`; ``varlen.py``,
   ``cache.py``; ``state.py`` where it makes sense for parts.
4. ``_engine/layouts.py``: a word of the record, which ``_engine/describe.py`` fills; ``_numba``: a
   run-time branch per tile in the step that does it; a reason in `refusal` of any backend that
   cannot.
5. ``batch`` and ``cli.py``: the option of the offline job.
6. ``tests/support/strategies.py``: a draw of it; then conformance, bits and properties cover it,
   alone and in pairs. ``tests/face/test_face_errors.py``: each wrong value. A seeded fault that the
   suite must catch.
7. ``bench/cases.py``: a case, if it can cost time. ``config.py``: raise `NUMERICS_VERSION` if any
   bit of an older call may change.

**Add an operation**: its meaning in ``reference`` and its ``backend.py``, its type in
``execution.py``, a row in ``_engine/operations.py`` with its function and its record, its kernels
in ``_numba``, its face in a file of its own, its name in ``fastattn/__init__.py`` and README.md,
and the same tests. Backends, warm-up and the build follow the row.
"""
