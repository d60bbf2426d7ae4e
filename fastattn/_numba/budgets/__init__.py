"""The kernels that hand out budgets: one row by itself, whole units, and rows that share columns.

May import `operands`, `machine` and `compiler`.
"""
