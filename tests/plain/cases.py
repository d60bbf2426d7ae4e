"""Small calls of every operation and option, and of every way that kernels take through them."""

from . import attention_cases, budget_cases, stage_cases, storage_cases

__all__ = ["CASES"]

CASES = [
    case
    for room in (attention_cases, storage_cases, stage_cases, budget_cases)
    for group in room.GROUPS
    for case in group()
]
