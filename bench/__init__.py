"""The bench: fastattn and its peers on the same arrays, in the same rounds, against the same judge.

``python -m bench`` prints the sheet and keeps it as JSON under ``bench/results/``, which git
ignores; ``--write-readme`` publishes the figures, and says how to add what stands behind them.
``pytest bench`` runs the same cases under pytest-benchmark with its own flags.

cases.py        what is measured: named cases, their FLOPs and bytes
draw.py         seeded inputs: numbers, masks, heavy-tailed lengths, documents
contender.py    what a contender is, and one way of it to do a case
contenders.py   who takes part: one table, each library at its best settings
own.py          fastattn's adapter
peer_*.py       the adapters of NumPy, and of PyTorch, onnxruntime and OpenVINO, imported to play
forms.py        equal calls in other forms, for libraries that need them or do them faster
ragged.py       rectangles of ragged sequences, for libraries that know nothing else
allocation.py multihead.py shared.py   one operation each: ours, others', and what the judge asks
truth.py        float64 NumPy, asked for sampled rows; every output passes it before it is timed
ceilings.py     what the machine can do at most: multiply-adds, bfloat16 dots, memory read and copy
interleave.py   rounds in which every contender takes a turn, and ratios within a round
sheet.py        one run: prepares, checks, plays the rounds, collects what report.py prints
startup.py      import time, first call, scratch memory: measured in child processes
company.py      attention by turns with NumPy's products and with PyTorch, for those with threads
report.py       the printed sheet and the JSON
readme.py       the tables of README.md, the bench's and the project's
models.py       whole models by the bridges, a command of its own: ``python -m bench.models``
__main__.py     the command line
test_*.py       the same cases, ceilings and start-up under pytest-benchmark (conftest.py)
"""
