"""The kernels of `_numba`, compiled when the package is built: nothing compiles at run time."""
