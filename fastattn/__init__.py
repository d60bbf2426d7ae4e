"""Attention on NumPy arrays: fused, fast on CPUs, and equal to the last bit however it is cut.

Importing this package loads NumPy and nothing heavier; a backend is imported by the first call.

A tour
------
>>> import numpy as np, fastattn
>>> rng = np.random.default_rng(0)
>>> query = rng.standard_normal((2, 8, 100, 64), dtype=np.float32)   # batch, heads, L, E
>>> key = rng.standard_normal((2, 8, 300, 64), dtype=np.float32)     # batch, heads, S, E
>>> value = rng.standard_normal((2, 8, 300, 32), dtype=np.float32)   # batch, heads, S, Ev
>>> output = fastattn.attention(query, key, value)
>>> output.shape, output.dtype
((2, 8, 100, 32), dtype('float32'))

Who sees whom is said in ranges, so it costs no memory; they and a mask intersect:

>>> past = fastattn.attention(query, key, value, causal="bottom_right")       # the last sees all
>>> near = fastattn.attention(query, key, value, causal=True, query_offset=200, window=(64, 0))
>>> short = fastattn.attention(query, key, value, key_lengths=np.array([[300], [120]]))
>>> some = fastattn.attention(query, key, value, mask=rng.random((100, 300)) < 0.5)

Grouped heads share keys without repeating them; more results can be asked for:

>>> output, lse, weights = fastattn.attention(query, key[:, :2], value[:, :2], enable_gqa=True,
...                                           return_lse=True, return_weights=True)
>>> lse.shape, weights.shape
((2, 8, 100), (2, 8, 100, 300))

A scale is one number, or one per head as models with normalised queries and keys learn it:

>>> logit_scale = np.log(rng.uniform(5, 200, (8, 1, 1)))                      # as Swin v2 keeps it
>>> scale = np.exp(np.minimum(logit_scale, np.log(100.0)))[None, :, 0, 0]     # batch, heads
>>> cosine = fastattn.attention(query, key, value, similarity="cosine", scale=scale)
>>> size = np.sqrt(np.mean(query**2, axis=-1, keepdims=True))                 # QK norm
>>> normed = fastattn.attention(query / size, key, value, scale=np.full((1, 8), 0.3))

Biases of position, sinks, and documents packed into one row are small arrays, never L × S:

>>> slopes, sinks = 2.0 ** -np.arange(1, 9), np.zeros(8)                      # one per head
>>> biased = fastattn.attention(query, key, value, alibi_slopes=slopes, sinks=sinks)
>>> apart = fastattn.attention(query, key, value, query_segments=np.arange(100) // 40,
...                            key_segments=np.arange(300) // 120)            # ids of documents

Sequences of different lengths lie end to end, as in Arrow's lists; or keys are rows of a table, say
of items, and each sequence names the rows it sees. No padding, no gathered copy:

>>> items = rng.standard_normal((1000, 64), dtype=np.float32)        # a table of keys and values
>>> users = rng.standard_normal((3, 64), dtype=np.float32)           # one query each
>>> seen = rng.integers(0, 1000, 60)                                 # row numbers, user by user
>>> splits = np.array([0, 50, 50, 60])                               # 50 items, none, 10
>>> ours = fastattn.attention_varlen(users, items, items, np.arange(4), splits, key_indices=seen)
>>> packed = fastattn.attention_varlen(users, items[seen], items[seen], np.arange(4), splits)
>>> alone = fastattn.attention(users[:1], items[seen[:50]], items[seen[:50]])
>>> np.array_equal(ours, packed), np.array_equal(ours[:1], alone)
(True, True)

A cache holds sequences that grow. It stores float32, float16, bfloat16 or int8, in pages of 128
tokens: `128 * heads * (E + Ev)` numbers, and for int8 8 bytes more per token and head:

>>> cache = fastattn.KVCache(2, heads=8, head_dim=64, value_dim=32, dtype=np.float16)
>>> cache.append(key, value)                                  # (batch, heads, tokens, features)
>>> cache.append(key[:, :, :1], value[:, :, :1], lengths=np.array([1, 0]))
>>> cache.lengths
array([301, 300])
>>> step = cache.attend(query[:, :, :1])                      # the newest query sees every key
>>> cache.truncate(300)                                       # drafts that were rejected
>>> cache.reorder(np.array([1, 1]))                           # both beams go on from the second

Halves go in and come out as such, computed in float32 and rounded once:

>>> half = fastattn.attention(query.astype(np.float16), key.astype(np.float16),
...                           value.astype(np.float16))
>>> half.dtype
dtype('float16')

The module of that name in PyTorch, with its weights and its options, for inference. Here a mask
says who *may* attend (`help(fastattn.MultiHeadAttention)` has the table), and rows keep their bits:

>>> module = fastattn.MultiHeadAttention(64, num_heads=8, seed=0)     # or with weights:
>>> module = fastattn.MultiHeadAttention.from_state_dict(module.state_dict(), num_heads=8)
>>> x = rng.standard_normal((2, 100, 64), dtype=np.float32)           # batch, length, features
>>> output, weights = module(x, key_lengths=[100, 60], return_weights=True, average_weights=True)
>>> np.array_equal(module(x[1, :60]), output[1, :60])
True

Keys may come in parts, cut at multiples of 512. The parts give the very bits of one call:

>>> query, key, value = (rng.standard_normal((n, 16)) for n in (5, 2000, 2000))
>>> state = fastattn.attention_state(query, key[:1024], value[:1024])
>>> rest = fastattn.attention_state(query, key[1024:], value[1024:], key_start=1024)
>>> np.array_equal(state.merge(rest).finish(), fastattn.attention(query, key, value))
True

A budget is handed out in proportion to weights, within bounds, and in whole units where it comes in
such: hours, cents, seats. `on_unspent="keep"` tells what the caps leave, otherwise an error:

>>> fastattn.allocate([0.5, 0.3, 0.2], 100.0, upper=[40, 100, 100])
array([40., 36., 24.])
>>> fastattn.allocate([53_000, 24_000, 23_000], 7, unit=1, method="dhondt")     # votes to seats
array([4, 2, 1])
>>> hours, left = fastattn.allocate([[3, 1], [2, 2]], [8, 20], upper=9, unit=1, on_unspent="keep")
>>> hours.tolist(), left.tolist()
([[6, 2], [9, 9]], [0, 2])

Attention hands out what is limited. Eight hours of review among four tickets: how much each
concerns the present need decides, a cap keeps one from taking all, and whole hours add up to the
budget:

>>> need = np.array([1.0, 0.2, 0.0])                          # security, money, comfort
>>> tickets = np.array([[0.9, 0.1, 0.0], [0.7, 0.6, 0.1], [0.1, 0.9, 0.2], [0.0, 0.1, 1.0]])
>>> harm = np.array([[90.0], [60.0], [20.0], [5.0]])
>>> plan = fastattn.attention_allocation(need, tickets, harm, scale=3.0,
...                                      budget=8, unit=1, upper=4)
>>> plan.weights.round(2), plan.allocation
(array([0.54, 0.37, 0.07, 0.03]), array([4, 3, 1, 0]))
>>> plan.output                                               # hours times harm: what is covered
array([560.])

The three stages stand on their own too, batched, over any axis, with `out=`:

>>> scores = fastattn.similarity(query, key, metric="cosine", scale=10.0)
>>> weights = fastattn.softmax(scores)                     # also log_softmax, logsumexp
>>> output = fastattn.fuse(weights, value)                 # reduce=False keeps w_j * v_j apart
>>> same = fastattn.attention(query, key, value, similarity="cosine", scale=10.0)
>>> np.allclose(output, same)
True

Linear maps, each row with the bits that it has alone; weights used again and again are packed once:

>>> x, weight = (rng.standard_normal((n, 64), dtype=np.float32) for n in (100, 256))
>>> bias = np.zeros(256, np.float32)
>>> mapped = fastattn.linear(x, weight, bias)                         # x @ weight.T + bias
>>> packed = fastattn.pack_linear(weight)
>>> np.array_equal(fastattn.linear(x[7], packed, bias), mapped[7])
True

Many requesters can share receivers of limited capacity. Rows stay within budgets, columns within
capacities, as close to the weights as that allows, and nothing else would spend more: in tens of
rounds, also where supply just fits demand.

>>> hours = fastattn.allocate_shared([[3, 1], [1, 1]], budgets=[8, 4], capacities=[6, np.inf])
>>> hours.allocation.round(2).tolist(), hours.converged
([[4.71, 3.29], [1.29, 2.71]], True)

Files larger than memory: ``fastattn run --help`` and `fastattn.batch`. Pictures of weights and of
allocations: `fastattn.plot`. Programs that use all of this: `fastattn.examples`.
"""

# ruff: noqa: E402
from fastattn.start import guard_start as _guard_start

_guard_start()  # before anything that takes time

from fastattn._core.backends import use_backend, warmup
from fastattn._core.config import NUMERICS_VERSION as numerics_version
from fastattn._core.config import VERSION as __version__
from fastattn._core.config import show_config
from fastattn._core.sharing import share_threads
from fastattn._core.threads import set_threads, threads
from fastattn.allocation import allocate
from fastattn.attention import attention, explain
from fastattn.attention_allocation import AllocationResult, attention_allocation
from fastattn.cache import KVCache
from fastattn.fusion import fuse
from fastattn.linear import PackedWeight, linear, pack_linear
from fastattn.multihead import MultiHeadAttention
from fastattn.normalize import log_softmax, logsumexp, softmax
from fastattn.shared_allocation import SharedAllocation, allocate_shared
from fastattn.similarity import similarity
from fastattn.state import State, attention_state, merge_states
from fastattn.varlen import attention_varlen

__all__ = [
    "AllocationResult",
    "KVCache",
    "MultiHeadAttention",
    "PackedWeight",
    "SharedAllocation",
    "State",
    "__version__",
    "allocate",
    "allocate_shared",
    "attention",
    "attention_allocation",
    "attention_state",
    "attention_varlen",
    "explain",
    "fuse",
    "linear",
    "log_softmax",
    "logsumexp",
    "merge_states",
    "numerics_version",
    "pack_linear",
    "set_threads",
    "share_threads",
    "show_config",
    "similarity",
    "softmax",
    "threads",
    "use_backend",
    "warmup",
]


def __getattr__(name: str) -> object:
    # Loaded when somebody asks for it: neither is needed to compute.
    if name in ("bridges", "reference"):
        from importlib import import_module

        return import_module(f"fastattn.{name}")
    raise AttributeError(f"module 'fastattn' has no attribute {name!r}")
