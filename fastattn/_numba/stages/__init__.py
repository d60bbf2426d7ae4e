"""The kernels of attention and of its stages: tasks, and the steps that each of them goes through.

May import `steps` and all below; `fastattn._numba.entry_points` collects what stands here.
"""
