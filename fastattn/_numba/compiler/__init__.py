"""How kernels come to be and are run: compile options, linking, the disk, threads.

The lowest room: it imports none of the others, and knows no operation.
"""
