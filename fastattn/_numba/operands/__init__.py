"""What a call works on: its record, where rows lie, how they are packed, and what is read ahead.

May import `machine` and `compiler`.
"""
