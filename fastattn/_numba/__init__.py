"""The Numba backend: kernels compiled on first use, and the little that launches and keeps them."""
