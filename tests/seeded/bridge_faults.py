"""Faults to seed into bridges: weights that go stale, rows that depend on their batch."""

_LINEAR = "tests/bridges/test_torch_linear.py"
_LAYOUTS = "tests/bridges/test_torch_layouts.py"

BRIDGE_FAULTS = {
    "kept_weights_are_believed_in_a_new_block": (
        "bridges/torch/packs.py",
        "        if self.number not in looked:\n",
        "        if False:\n",
        f"{_LINEAR} -k 'between_blocks and fused'",
    ),
    "a_checksum_does_not_tell_places_apart": (
        "bridges/torch/packs.py",
        "(block + _ADDED[: block.size]).view(np.uint64)",
        "block.view(np.uint64).copy()",
        f"{_LINEAR} -k 'between_blocks and swapped'",
    ),
    "what_a_block_writes_into_weights_is_not_noted": (
        "bridges/torch/packs.py",
        "            _block.looked.clear()\n",
        "            pass\n",
        f"{_LINEAR} -k 'within_a_block and fused'",
    ),
    "channels_lie_side_by_side_in_what_is_convolved": (
        "bridges/torch/products.py",
        "    if last is None or (dims == 3 and x.dtype is torch.float64):\n",
        "    return output\n    if last is None or (dims == 3 and x.dtype is torch.float64):\n",
        f"{_LAYOUTS} -k convol",
    ),
    "rows_are_reduced_as_they_lie": (
        "bridges/torch/rows.py",
        "    if reduced == [*range(len(kept), x.dim())] and x.is_contiguous():\n",
        "    if True:\n",
        f"{_LAYOUTS} -k 'last_have and mean'",
    ),
}
