"""What stands where in the records that kernels read, and the codes in them.

A record is one array of 8-byte words, so that a call costs one small copy of a template and a few
addresses. Addresses and strides are in bytes. The three words in front belong to the launcher.

Pure tables, which import nothing: kernels of every backend are made from them.
"""

__all__ = [
    "ALLOCATION",
    "ATTENTION",
    "FACTORS",
    "FORM",
    "FORM_PLACES",
    "FUSE",
    "KEY_WAYS",
    "LINEAR",
    "PANEL_WAYS",
    "SHARED",
    "SIMILARITY",
    "SOFTMAX",
    "STORAGE_CODES",
    "SWAPPED",
    "VALUE_WAYS",
    "Layout",
]


class Layout:
    """The named words of one operation's record: integers and addresses, then float64 numbers.

    Attributes
    ----------
    word : dict
        At which word each field stands.
    """

    def __init__(self, name: str, integers: str, floats: str = "") -> None:
        self.name = name
        self.integers = tuple(integers.split())
        self.floats = tuple(floats.split())
        self.word = {field: i for i, field in enumerate((*self.integers, *self.floats))}


# What a scale is divided into: see `describe.split_scale`. In a record where a call has one scale,
# else one table entry for each head.
FACTORS = Layout(
    "Factors",
    "",
    """
    query_first query_second key_factor difference_factor
    power_first power_second rest late_rest
    """,
)
ATTENTION = Layout(
    "AttentionCall",
    """
    next_task stop_task workers
    groups_of_heads queries keys features value_features
    entries first_entry entry_rank entry_shape entry_strides
    tasks bundle task_rows row_tasks first_segment stop_segment split segment_tasks
    query query_head query_row query_feature query_code
    key key_row key_feature key_code
    value value_row value_feature value_code
    key_way panel_way value_way value_columns
    indices index_bytes listed table_rows
    key_pages value_pages key_scales value_scales
    mask mask_head mask_row mask_key mask_code mask_kind
    lengths lengths_head offsets offsets_head left right
    query_ids query_ids_head key_ids key_ids_head
    alibi alibi_head sinks sinks_head factors factors_head
    output output_head output_row output_feature output_code
    lse lse_head lse_row weights
    entry_key entry_value entry_key_pages entry_value_pages entry_key_scales entry_value_scales
    entry_mask entry_query_ids entry_key_ids entry_alibi entry_offsets entry_lengths entry_factors
    ragged sequences borders first_task query_splits key_splits offsets_step
    metric rescaled enlarged
    state_output state_max state_sum state_rest resume suspend
    partial_output partial_max partial_sum partial_rest keeps_rest
    scratch scratch_stride
    at_query at_scores at_block at_running at_panels at_values at_rows at_packed at_state
    at_stage at_chunks at_ids at_spans at_record at_ahead
    """,
    " ".join((*FACTORS.floats, "softcap")),
)
SIMILARITY = Layout(
    "SimilarityCall",
    """
    next_task stop_task workers
    queries keys features metric rescaled enlarged factors
    entry_rank entry_shape entry_strides
    task_rows row_tasks task_keys key_tasks key_shift streamed
    query query_row query_feature query_code
    key key_row key_feature key_code
    output output_row output_key output_code
    scratch scratch_stride at_query at_exact at_panel at_tile
    """,
    " ".join(ATTENTION.floats),
)
SOFTMAX = Layout(
    "SoftmaxCall",
    """
    next_task stop_task workers
    phase operation sideways streamed direct scaled late
    rows padded_rows keys entry_rank entry_shape entry_strides
    block_rows row_blocks row_shift blocks task_blocks chunk_keys chunks
    x x_row x_key x_line x_lane x_code
    mask mask_row mask_step mask_line mask_key mask_code mask_kind
    factors factors_row factors_key factors_code
    output output_row output_key output_line output_lane output_code sign
    maxima sums rests sums_stride state_max state_sum state_rest
    near near_sums first_again stop_again
    scratch scratch_stride
    at_stats at_parts at_lanes at_weights at_block at_turned at_factors block_stride
    """,
    "rest power_first power_second",
)
FUSE = Layout(
    "FuseCall",
    """
    next_task stop_task workers
    rows keys features reduced
    entry_rank entry_shape entry_strides
    task_rows row_tasks task_columns column_tasks
    weights weights_row weights_key weights_code weights_in_place
    value value_row value_feature value_code value_in_place
    output output_row output_key output_feature output_code
    scratch scratch_stride at_weights at_values at_block at_running
    """,
)
LINEAR = Layout(
    "LinearCall",
    """
    next_task stop_task workers
    rows depth columns stretch weight_way
    entry_rank entry_shape entry_strides
    task_rows row_tasks task_columns column_tasks
    x x_row x_feature x_code
    weight weight_row weight_feature weight_code
    bias bias_step bias_code
    output output_row output_column output_code
    scratch scratch_stride
    x_stride sums_stride at_x at_panel at_bias at_sums at_run
    """,
)
ALLOCATION = Layout(
    "AllocationCall",
    """
    next_task stop_task workers
    rows receivers task_rows block_rows weights_line
    entry_rank entry_shape entry_strides
    method bounded whole_numbers unit_whole
    weights weights_step weights_code
    budget
    lower lower_step upper upper_step
    allowed allowed_step
    output output_step
    unspent
    scratch scratch_stride
    at_weights at_lower at_upper at_amounts at_rests at_errors at_heap at_spare at_totals
    """,
    "unit sum_first sum_second sum_third",
)
SHARED = Layout(
    "SharedCall",
    """
    next_task stop_task workers
    phase rows columns block_rows blocks block_columns width
    source matrix budgets capacities spent
    row_factors column_factors next_row_factors next_column_factors
    sums rests changes
    scratch scratch_stride
    """,
)

# Rows of the stride table `entry_strides`, one stride a batch dim each: of attention; the stages
# have their operands in the order of the record.
OPERANDS = (
    "query", "key", "value", "mask", "lengths", "offsets", "output", "lse",
    "query_ids", "key_ids", "alibi", "sinks", "pages", "factors",
)  # fmt: skip

# What stands in front of a record that is copied and filled for each call: how many words it has,
# which of them tells where scratch begins, how far behind the record, and which ones are the
# addresses of a call's arrays.
FORM_PLACES = 6
FORM = Layout(
    "Form",
    "words scratch_word record_bytes " + " ".join(f"place_{i}" for i in range(FORM_PLACES)),
)
# NumPy's public ways to an array's address cost 1.3 microseconds each, five of them a fifth of a
# small call. In CPython the address stands in the array object itself, right after the object's
# head (`PyArrayObject_fields.data`, part of NumPy's ABI). Used only where a look confirms it.
DATA_OFFSET = object.__basicsize__

# A visible range may reach this far beyond any position.
UNBOUNDED = 1 << 60

DOT, COSINE, EUCLIDEAN = range(3)
NO_MASK, BOOL_MASK, FLOAT_MASK = range(3)
# How keys and values are read, by name and by word (`way` chooses, and says what each means).
KEY_WAYS = "packed", "decode", "decode_small"
KEYS_PACKED, KEYS_DECODE, KEYS_DECODE_SMALL = range(3)
PANEL_WAYS = "in place", "widened", "staged"
PANELS_IN_PLACE, PANELS_WIDENED, PANELS_STAGED = range(3)
VALUE_WAYS = "in place", "staged", "late", "decode_small"
VALUES_IN_PLACE, VALUES_STAGED, VALUES_LATE, VALUES_DECODE_SMALL = range(4)
# How the weights of a linear map are read: packed by each task, in panels packed before, or where
# they lie by few rows.
WEIGHTS_IN_ROWS, WEIGHTS_IN_PANELS, WEIGHTS_DECODE = range(3)
# What the kernel of softmax and its relatives makes, and which part of the work it does.
SOFTMAX_RESULT, LOG_SOFTMAX_RESULT, LOGSUMEXP_RESULT = range(3)
WHOLE, FIND_MAX, FIND_SUM, FINISH, LOOK_AGAIN = range(5)
# How amounts are rounded: not at all, or to whole units.
REAL_AMOUNTS, LARGEST_REMAINDER, SAINTE_LAGUE, DHONDT, HUNTINGTON_HILL = range(5)
# Which part of a round of shared allocation its kernel does.
MEASURE, SPEND, FIT, JUDGE, APPLY = range(5)
# Bytes from one block's numbers in `changes` to the next: cache lines come in pairs.
CHANGE_STRIDE = 128
# Columns of values that meet the rows of a task of `fuse` together.
STRIP = 64

# Storage codes of the element types that kernels read in place; +16 for swapped byte order.
STORAGE_CODES = {
    name: code
    for code, name in enumerate(
        "float32 float64 bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 "
        "float16 bfloat16".split()
    )
}
SWAPPED = 16
