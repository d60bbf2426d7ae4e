"""One block of rows through attention: score, shape, reveal, normalise, fuse, fold, finish.

A step takes what it works on, and is used by whatever drives it (`stages.attention`,
`stages.similarity`). May import `operands`, `machine` and `compiler`.

score.py        scores of a block, shaped and revealed    normalise.py  weights, fused and folded
blocks.py       what happens to a block over a segment    finish.py    divided, written, the lse
spans.py        which stretch of a segment a block sees    shown.py     what a mask shows of it
score_again.py  what the power of two of a scale would round, or lets overflow

Few rows are scored and fused otherwise:

decode.py       few rows against keys never packed        decode_small.py  against halves and int8

A variant is a way to multiply: a file that names the steps that depend on it (`operands.variant`).
A new one is such a file, an entry in `stages.attention` that runs it, and a row that says which
calls take it (`fastattn._engine.variants`).

floats.py       float32 and float64       bfloat16_pairs.py  bfloat16 multiplied as it is
"""
