"""The kernels that hand out budgets: one row by itself, whole units, and rows that share columns.

May import `operands`, `machine` and `compiler`.

allocation.py   proportional amounts within bounds        receivers.py  their rows in scratch
apportion.py    whole units                               shared.py     a round of shared allocation
"""
