"""The kernels of attention and of its stages: tasks, and the steps that each of them goes through.

May import `steps` and all below; `fastattn._numba.entry_points` collects what stands here.

attention.py    pack, score, shape, reveal, normalise, fuse, finish      fold.py    of parts
similarity.py   every query with every key                fuse.py      weights times values
linear.py       rows times the transpose of weights, plus a bias
softmax.py      softmax and its relatives: gather.py brings scores into scratch, weigh.py finds
                maxima and sums, softmax_finish.py stores results, near_zero.py computes those
                again where maximum and logarithm cancel
"""
