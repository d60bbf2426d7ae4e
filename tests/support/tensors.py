"""What tests of the bridge to torch share: tensors in any layout, models as people write them.

Who imports this is skipped where torch is missing.
"""

import numpy as np
import pytest

# Of a part: a folder of that name would pass for the package.
pytest.importorskip("torch.nn", reason="PyTorch is missing: the extra `torch` of fastattn")

import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as bound_early

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def numpy_name(dtype):
    """The dtype as NumPy and the tolerances know it."""
    return str(dtype).removeprefix("torch.")


def normal(rng, *shape, dtype=torch.float32):
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype)


def laid_out(rng, x):
    """The same numbers, strided in one of the ways that models make."""
    way = rng.integers(4)
    if way == 1 and x.dim() > 2:
        x = x.transpose(-2, -3).contiguous().transpose(-2, -3)
    elif way == 2 and x.dim() > 1:
        x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    elif way == 3:
        x = torch.stack([x, torch.full_like(x, 7)], -1)[..., 0]
    return x


def same_bits(one, other):
    if one.dtype is not other.dtype or one.shape != other.shape:
        return False
    size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    one, other = (x.detach().contiguous().view(size) for x in (one, other))
    return bool(torch.equal(one, other))


class Mixed(nn.Module):
    """Attention by every name: the module's attribute, a name bound early, torch's own modules."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, x):
        heads = self.linear(x).unflatten(-1, (2, 4)).transpose(1, 2)
        heads = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        heads = bound_early(heads, heads, heads, scale=0.3)
        x = heads.transpose(1, 2).flatten(2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.encoder(x)

    CALLS = 4


def made(model, seed=0):
    """A model in its mode for inference, with weights that are the same every time."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(normal(rng, *parameter.shape) * 0.2)
    return model.eval()
