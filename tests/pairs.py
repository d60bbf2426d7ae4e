"""Whether calls multiply bfloat16 as it is, and what that takes for 0.

Decided by the CPU, or by FASTATTN_BFLOAT16_DOT: the suite passes with 0 and with 1.
"""

import numpy as np

import fastattn


def in_pairs(*arrays, **options):
    """Whether a call multiplies its bfloat16 operands as they are."""
    return fastattn.explain(*arrays, **options).problem.in_pairs


def taken(numbers):
    """The numbers as the dot of pairs takes them: subnormal ones are 0."""
    exponent = numbers.view(np.uint16) & 0x7F80
    return np.where(exponent == 0, np.zeros((), numbers.dtype), numbers)
