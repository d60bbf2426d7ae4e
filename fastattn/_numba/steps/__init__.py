"""One block of rows through attention: score, shape, reveal, normalise, fuse, fold, finish.

A step takes what it works on, and is used by whatever drives it (`stages.attention`,
`stages.similarity`). The files of a variant (`decode`, `decode_small`, `bfloat16_pairs`) have those
steps that it does otherwise. May import `operands`, `machine` and `compiler`.
"""
