"""From problems to the records that native kernels read, for every backend of such kernels."""
