"""PyTorch on fastattn: attention and linear maps of models as they are, on the CPU.

    import fastattn

    with torch.inference_mode(), fastattn.bridges.torch.patch() as counted:
        output = model(tokens)             # every scaled_dot_product_attention runs here
    print(counted)                         # how many did, how many did not, and why

Tensors are read where they lie, and results are written into tensors' memory. Nothing here records
a gradient: under `torch.no_grad` or `torch.inference_mode` Parameters are taken like any tensor,
elsewhere they are refused.

tensors.py      tensors as arrays, without copies
threads.py      torch's own threads, on which calls run
operators.py    what torch knows by name: ``fastattn::attention``, ``fastattn::linear``
attention.py    scaled_dot_product_attention, by torch's rules
maps.py         linear                                    packs.py      weights kept packed
routing.py      patch                                     counting.py   what was taken and left
invariant.py    batch_invariant                           products.py   what is computed for it
operations.py   what torch computes row by row            rows.py       how rows are laid for it
check.py        check_batch_invariance
"""

from fastattn.bridges.extras import needed

needed("torch", "torch")

from fastattn.bridges.torch.attention import scaled_dot_product_attention  # noqa: E402
from fastattn.bridges.torch.check import check_batch_invariance  # noqa: E402
from fastattn.bridges.torch.counting import Counted  # noqa: E402
from fastattn.bridges.torch.invariant import batch_invariant  # noqa: E402
from fastattn.bridges.torch.maps import linear  # noqa: E402
from fastattn.bridges.torch.packs import forget_weights  # noqa: E402
from fastattn.bridges.torch.routing import patch  # noqa: E402

__all__ = [
    "Counted",
    "batch_invariant",
    "check_batch_invariance",
    "forget_weights",
    "linear",
    "patch",
    "scaled_dot_product_attention",
]
