"""From problems to the records that native kernels read, for every backend of such kernels.

A backend brings its kernels, and what runs their tasks; everything between a problem and a launch
is here, once. A kernel sees one *record*: named words that say where operands lie, how large they
are and what is to be done. Imports `_core` and nothing above it.

operations.py   every operation: what does it, and the kernels it runs
engine.py       the functions of a backend, made of its kernels (kernels.py says what those are)
layouts.py      what stands where in a record: pure tables, of which kernels are made too
describe.py record.py addresses.py   records: what they say, their words, where arrays begin
way.py          how keys and values are read: decided here, obeyed by kernels, told by `explain`
plan.py plan_ragged.py   tiles, segments, task grid; work balanced by keys: pure functions
launcher.py     threads, and slices short enough that Ctrl-C is answered
company.py      the threads of other libraries
attention.py states.py ragged.py     planned and run
stages.py normalize.py   the stages      linear.py   linear maps
allocation.py   rows of receivers            shared.py   rounds of a whole matrix
saturation.py newton.py  maximum flows and Newton's method, where rounds are slow
template.py     planned calls on other arrays
variants.py     how operands may be multiplied: the first that a backend has and a call may take
bfloat16.py     which CPUs and calls multiply bfloat16 as it is
apart.py        heads that cannot share packed keys

**Ragged calls and caches** change where an entry begins, not what is done with it: a worker
rewrites its own copy of the call's record for each sequence, and tasks are bundled by equal cost
in keys. A sequence too long for one thread becomes a call of its own, its segments shared.

**Repeated calls** need no new record: ``template.py`` puts the addresses of other arrays into a
copy of one that is ready, in one compiled call.
"""
