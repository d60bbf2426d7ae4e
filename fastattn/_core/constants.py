"""The constants of the algorithm: what alone decides bits, and the sizes of blocks, which do not.

Bits depend on how sums are cut: keys in segments of 512, reduced from nothing and folded left, on
sixteen virtual lanes; values in chains; features in chains and runs. Blocks, tiles and panels are
what fits registers and caches.
"""

SEGMENT_KEYS = 512
BLOCK_ROWS = 24
TILE_ROWS = 6
PANEL_KEYS = 64
# Scores of a row stand 16 elements further apart than a segment is long: rows a power of two apart
# would fall into the same few cache sets.
SCORE_STRIDE = SEGMENT_KEYS + 16
LANES = 16
# A segment's output is a sum of chains over this many keys each, counted from its first key. A
# chain over the whole segment loses accuracy (the error of attention in float32 is then 1.01 times
# that of NumPy, and 0.92 times with 128). And values of 128 keys stay in the first-level cache
# while all rows of a block read them.
FUSE_KEYS = 128
# The keys of a page (`pages.py`): neither a chain over values nor a panel of keys crosses one.
PAGE_KEYS = FUSE_KEYS
# A task of up to so many rows reads keys where they lie, and halves and int8 values too.
DECODE_ROWS = 4
# Of halves and int8 it takes so many bytes of a key at a time, and so many features of values.
DECODE_BYTES = 16
DECODE_FEATURES = 64
# A score is a sum over features, and one chain over all of them would err the more the longer it
# is. A chain is of this many features (of pairs of them where bfloat16 is multiplied as it is), a
# run is the sum of sixteen chains, and runs are added with what each sum loses kept beside it: so
# the error does not grow with E. Beside chains of 128 these cost 1 % of attention from 65 features
# on, and scores of 128 err by 0.7 times as much, positive ones by 0.5 times; where all products are
# equal, 3 ulp and not 5. Chains of 32 would cost 2 to 3 %, those of 16 5 %.
FEATURE_CHAIN = 64
FEATURE_RUN = 16 * FEATURE_CHAIN
# In a linear map so many features are a run, and both chains and runs are added one after another,
# nothing kept beside them: up to a million features that errs no more than 2 ulp beyond 1.5 times
# as much as NumPy does.
LINEAR_RUN = 64 * FEATURE_CHAIN
# Squares do not cancel, and distances have registers to spare: a chain of theirs is itself a sum of
# chains as short as those of NumPy's pairwise sum.
SQUARE_CHAIN = 16


def padded(length: int, multiple: int = LANES) -> int:
    """Round up to a multiple."""
    return -(-length // multiple) * multiple
