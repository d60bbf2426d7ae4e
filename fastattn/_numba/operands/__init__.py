"""What a call works on: its record, where rows lie, how they are packed, and what is read ahead.

May import `machine` and `compiler`.

record.py       the record of a call, as kernels see it   heads.py     where those of an entry begin
places.py       rows in arrays, in tables, in pages       pack.py      what the tiles read
prefetch.py     what the next task needs, asked for line by line
variant.py      how a call multiplies: what steps ask of it
tasks.py        taking tasks, and rows of scratch stored
"""
