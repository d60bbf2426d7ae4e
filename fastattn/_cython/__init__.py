"""The kernels of `_numba`, compiled when the package is built: nothing compiles at run time.

Numba compiles them ahead of time to object files (``_numba/objects.py``), for each kind of
machine; a C compiler links them into the module that drives them. The CPU decides at import which
kind runs.

levels.h        kinds of machine: AVX2, AVX-512           words.py     records and kernels, as C
pool.h team.h   threads: our own, another library's       _native.pyx  drivers, and kept calls
blas.h blas.py  NumPy's BLAS on our threads               arrays.h     what an array of NumPy is,
backend.py      the engine on these kernels                            without its headers

``setup.py`` builds it, in one to two minutes on two cores, once for the same sources. The package
then depends on NumPy alone: Numba and llvmlite, 208 MB, take part in the build and are not
installed. Where a compiler is missing the kernels are left out, which the build says
(``pip install -v``) and ``fastattn info`` too, and the package depends on Numba. The extra ``jit``
brings it where both are wanted, or where the CPU has no AVX2, which compiled kernels need.
``FASTATTN_REQUIRE_CYTHON=1`` makes kernels that are left out an error, ``FASTATTN_CYTHON=0``
leaves them out unasked. ``CFLAGS`` are honoured, ``-Ofast`` too, and change no bit. Kernels that
are there and cannot be loaded, or are older than their sources, are left out with a warning.
``FASTATTN_CYTHON_LEVEL=x86-64-v3`` holds them to AVX2. Python started in a clone imports its
sources: where those have no kernels and hide installed ones, a warning says so, once.

``.ci/run`` builds a wheel for each CPython of one compilation of the kernels, tags it with the
oldest glibc that it runs with, and tries it without Numba: all give the same bits. One wheel for
all, by Python's limited API, would make the smallest calls 5 % slower.
"""
