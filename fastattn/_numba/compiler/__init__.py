"""How kernels come to be and are run: compile options, linking, the disk, threads.

The lowest room of the kernels: it imports none of the others, and knows no operation.

compile.py      every compile option, in one place    linking.py   device functions, linked
disk.py         compiled code kept on the disk        store.py     its files
native.py       the task counter, a call by address, the float environment
launch.py       Numba's threads, or this one          repeat.py    a small call once more

What was compiled is kept in ``~/.cache/fastattn`` (or under ``XDG_CACHE_HOME``);
``FASTATTN_CACHE_DIR`` names another folder, ``FASTATTN_CACHE=0`` keeps nothing on disk.
"""
