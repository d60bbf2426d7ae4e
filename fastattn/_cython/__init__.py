"""Kernels in C, compiled when the package is built: nothing compiles at run time."""
