"""The displays: what is drawn, with what numbers and words, and that nobody else notices."""

import io
import itertools
import subprocess
import sys
import textwrap

import children
import numpy as np
import pytest
import tolerances

import fastattn
from fastattn.plot import AllocationDisplay, AttentionDisplay
from fastattn.plot.blocks import block_means, vector_means

matplotlib = pytest.importorskip("matplotlib")


def soft(*shape, seed=0):
    return fastattn.softmax(np.random.default_rng(seed).normal(size=shape), backend="reference")


def words(figure):
    """All texts of a figure, as they stand on the page."""
    from matplotlib.text import Text

    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def legend_of(display):
    (legend,) = display.figure_.legends
    return [text.get_text() for text in legend.get_texts()]


def png(display):
    buffer = io.BytesIO()
    display.figure_.savefig(buffer, format="png")
    return buffer.getvalue()


def test_one_head_with_labels_and_numbers():
    weights = soft(2, 3)
    display = AttentionDisplay(weights, query_labels=["der", "Hund $5"], key_labels=list("abc"))
    assert display.plot() is display
    assert display.axes_.shape == display.im_.shape == (1,)
    np.testing.assert_array_equal(display.im_[0].get_array(), weights)
    assert display.im_[0].get_clim() == (0.0, weights.max())
    shown = words(display.figure_)
    assert {"der", "Hund $5", "a", "b", "c", "query", "key", "weight"} <= set(shown)
    assert [text.get_text() for text in display.text_[0]] == [f"{w:.2f}" for w in weights.flat]
    assert display.block_ == (1, 1)
    assert display.figure_.legends == []
    small = AttentionDisplay.from_weights([[1e-9, 0.5]])
    assert [text.get_color() for text in small.text_[0]] == ["black", "white"]
    assert [text.get_text() for text in small.text_[0]] == ["0.00", "0.50"]


def test_cells_numbers_and_hatching_stand_where_the_weights_do():
    weights = soft(4, 6)
    hidden = np.zeros((4, 6), bool)
    hidden[:2, 2:4] = True
    for options, block in (({}, 1), ({"max_cells": 3, "include_values": True}, 2)):
        display = AttentionDisplay.from_weights(weights, hidden=hidden, **options)
        (ax,) = display.axes_
        assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first query is not on top"
        means = display.im_[0].get_array()
        for text in display.text_[0]:
            column, row = (int(at // block) for at in text.get_position())
            assert text.get_position() == tuple((n + 0.5) * block - 0.5 for n in (column, row))
            assert text.get_text() == f"{means[row, column]:.2f}"
        (hatched,) = (patch for patch in ax.patches if patch.get_label() == "hidden")
        assert hatched.get_path().get_extents().bounds == (1.5, -0.5, 2, 2)
        display.figure_.canvas.draw()
        shown = np.asarray(display.figure_.canvas.buffer_rgba())[::-1, :, :3].astype(int)
        for x, y, grey in ((2.5, 0.5, True), (0.5, 0.5, False), (2.5, 2.5, False)):
            across, up = ax.transData.transform((x + 0.3, y + 0.3)).astype(int)
            pixel = shown[up, across]
            assert (np.ptp(pixel) == 0) == grey, (x, y, pixel)


def test_heads_share_one_scale_and_one_bar():
    weights = soft(1, 8, 16, 16)
    display = AttentionDisplay.from_weights(weights)
    assert len(display.axes_) == len(display.im_) == 8
    assert {image.get_clim() for image in display.im_} == {(0.0, weights.max())}
    assert len(display.figure_.axes) == 9
    assert [ax.get_title() for ax in display.axes_] == [f"head {n}" for n in range(8)]
    two = AttentionDisplay.from_weights(weights[0, :2], head_labels=["x", "y"], colorbar=False)
    assert [ax.get_title() for ax in two.axes_] == ["x", "y"]
    assert len(two.figure_.axes) == 2
    assert two.colorbar_ is None


def test_hidden_cells_are_those_of_the_options_and_not_small_weights():
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=(2, 5, 4)) * 2000, rng.normal(size=(2, 7, 4))
    mask = np.where(rng.random((5, 7)) < 0.3, -np.inf, rng.normal(size=(5, 7)))
    mask[2] = -np.inf
    display = AttentionDisplay.from_attention(
        query, key, mask=mask, causal="bottom_right", alibi_slopes=[0.5, 1], sinks=[0, 1000]
    )
    visible = np.tril(np.ones((5, 7), bool), 2) & np.isfinite(mask)
    for head in range(2):
        np.testing.assert_array_equal(display.hidden[head], ~visible)
        np.testing.assert_array_equal(np.ma.getmaskarray(display.im_[head].get_array()), ~visible)
    assert (display.weights[:, visible] == 0).any()  # small, and seen all the same
    assert legend_of(display) == ["hidden"]


def test_hidden_may_be_zeros_or_a_masked_array():
    weights = np.array([[0.5, 0.5, 0.0]])
    for hidden in (
        AttentionDisplay(weights, hidden="zeros").hidden,
        AttentionDisplay(np.ma.array(weights, mask=weights == 0)).hidden,
        AttentionDisplay(weights, hidden=[False, False, True]).hidden,
    ):
        np.testing.assert_array_equal(hidden, weights == 0)


def test_long_axes_are_means_of_visible_cells_and_the_title_says_so():
    weights = soft(50, 90)
    hidden = np.arange(90) > np.arange(50)[:, None] + 40
    display = AttentionDisplay.from_weights(weights, hidden=hidden, max_cells=20)
    assert display.block_ == (3, 5)
    shown = display.im_[0].get_array()
    assert shown.shape == (17, 18)
    for row, column in ((0, 0), (16, 17), (5, 9), (0, 8)):
        cells = np.s_[3 * row : 3 * row + 3, 5 * column : 5 * column + 5]
        expected = np.mean(weights[cells][~hidden[cells]])
        np.testing.assert_allclose(shown[row, column], expected, rtol=1e-13)
    assert shown.mask[0, 17]
    assert "50 by 90 weights, each cell the mean of 3 by 5" in display.axes_[0].get_title()
    assert display.axes_[0].get_xlim() == (-0.5, 89.5)


def test_blocks_average_in_float64_whatever_is_given():
    ones = np.full((5, 5), 2048, np.float16)
    blocks = block_means(ones, np.zeros((5, 5), bool), 2, 2)
    np.testing.assert_array_equal(blocks.means, np.full((2, 2), 2048.0))
    np.testing.assert_array_equal(vector_means(np.arange(5), 2), [0.5, 2.5, 4.0])


def test_what_is_not_finite_is_marked_and_spoils_no_scale():
    weights = np.array([[np.nan, 0.25], [np.inf, 0.75]])
    display = AttentionDisplay.from_weights(weights)
    assert display.im_[0].get_clim() == (0.0, 0.75)
    assert legend_of(display) == ["NaN or infinite"]
    assert len(display.text_[0]) == 2


@pytest.mark.parametrize(
    ("limits", "extend"),
    [
        ({}, "neither"),
        ({"vmax": 0.5}, "max"),
        ({"vmin": 0.2}, "min"),
        ({"vmin": 0.2, "vmax": 0.5}, "both"),
    ],
)
def test_the_colour_bar_shows_that_cells_lie_beyond_it(limits, extend):
    display = AttentionDisplay.from_weights([[0.1, 0.3, 0.6]], **limits)
    assert display.colorbar_.extend == extend


def test_numbers_of_a_flat_colour_bar_stand_apart():
    display = AttentionDisplay.from_weights(soft(3, 1500, 2500))
    display.figure_.canvas.draw()
    boxes = [tick.get_window_extent() for tick in display.colorbar_.ax.get_xticklabels()]
    assert len(boxes) >= 3
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_labels_are_thinned_where_they_do_not_fit():
    names = [f"item number {n}" for n in range(200)]
    display = AttentionDisplay.from_weights(soft(100, 200), key_labels=names)
    (ax,) = display.axes_
    shown = [tick.get_text() for tick in ax.get_xticklabels()]
    step = len(names) // len(shown)
    assert 1 < step < 20
    assert shown == names[:: round(200 / len(shown))]
    assert "labelled)" in ax.get_xlabel()
    display.figure_.canvas.draw()
    boxes = [tick.get_window_extent() for tick in ax.get_xticklabels()]
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 3, 3), (1, 1), (1, 400), (400, 1), (5,)])
def test_every_shape_is_a_picture(shape):
    display = AttentionDisplay.from_weights(soft(*shape) if 0 not in shape else np.zeros(shape))
    assert png(display).startswith(b"\x89PNG\r\n\x1a\n")
    assert ("nothing to show" in " ".join(words(display.figure_))) == (0 in shape)


def test_pandas_brings_labels():
    pandas = pytest.importorskip("pandas")
    days = pandas.date_range("2026-01-01", periods=2)
    frame = pandas.DataFrame(soft(2, 3), index=days, columns=pandas.Index(["x", "y", "z"]))
    display = AttentionDisplay.from_weights(frame)
    assert display.query_labels == ["2026-01-01", "2026-01-02"]
    assert display.key_labels == ["x", "y", "z"]
    rows = AllocationDisplay.from_allocation(frame)
    assert rows.labels == ["x", "y", "z"]
    assert rows.row_labels == ["2026-01-01", "2026-01-02"]
    assert AllocationDisplay(frame["x"]).labels == ["2026-01-01", "2026-01-02"]


def test_given_axes_are_drawn_on_and_pyplot_is_left_alone():
    from matplotlib import pyplot

    before = pyplot.get_fignums(), matplotlib.get_backend()
    own = AttentionDisplay.from_weights(soft(3, 3))
    assert (pyplot.get_fignums(), matplotlib.get_backend()) == before
    assert own._repr_png_().startswith(b"\x89PNG")
    figure = matplotlib.figure.Figure()
    axes = figure.subplots(1, 2)
    display = AttentionDisplay.from_weights(soft(2, 3, 3), hidden=np.eye(3, dtype=bool), ax=axes)
    assert list(display.axes_) == list(axes)
    assert display.figure_ is figure
    assert display._repr_png_() is None
    figure.canvas.draw()
    title, legend = axes[1]._left_title, axes[1].get_legend()
    assert title.get_text() == "head 1"
    assert not title.get_window_extent().overlaps(legend.get_window_extent())
    with pytest.raises(ValueError, match=r"3 heads are to be drawn, and ax holds 2"):
        AttentionDisplay.from_weights(soft(3, 3, 3), ax=axes)


ERRORS = {
    "labels": (lambda: AttentionDisplay([[1, 2]], key_labels=["a"]), ValueError, "each of the 2 k"),
    "hidden dtype": (lambda: AttentionDisplay([[1.0]], hidden=[[1]]), TypeError, "must be bool"),
    "hidden word": (lambda: AttentionDisplay([[1.0]], hidden="ones"), ValueError, "'ones'"),
    "hidden": (lambda: AttentionDisplay([[1.0]], hidden=[True, True]), ValueError, r"\(2,\)"),
    "complex": (lambda: AttentionDisplay([[1j]]), TypeError, "complex128"),
    "number": (lambda: AttentionDisplay(1.0), ValueError, "single number"),
    "heads": (lambda: AttentionDisplay(np.ones((65, 1, 1))).plot(), ValueError, "65 heads"),
    "lse": (
        lambda: AttentionDisplay.from_attention([[1.0]], [[1.0]], return_lse=True),
        ValueError,
        "return_lse has no part",
    ),
    "NaN": (lambda: AllocationDisplay([[1.0], [np.nan]]), ValueError, r"nan at \(1, 0\)"),
    "debt": (lambda: AllocationDisplay([-1]), ValueError, r"-1 at \(0,\)"),
    "upper": (lambda: AllocationDisplay([1, 2], upper=[1, 2, 3]), ValueError, r"upper of shape"),
    "size": (lambda: AllocationDisplay([1e308, 1e308]), ValueError, "holds 1e\\+308.*larger unit"),
    "rest": (lambda: AllocationDisplay([1], unspent=1.7e308), ValueError, "unspent holds 1.7e"),
    "rows": (lambda: AllocationDisplay(np.ones((65, 1))).plot(), ValueError, "65 rows"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_finding(case):
    call, kind, text = ERRORS[case]
    with pytest.raises(kind, match=text):
        call()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e300, 1e-300])
def test_amounts_and_weights_of_any_size(size):
    largest = np.finfo(float).max
    display = AllocationDisplay(
        [size, size / 2], upper=[largest, np.inf], weights=[largest, largest / 2], unspent=0
    ).plot()
    display.figure_.canvas.draw()
    np.testing.assert_allclose(
        paths_at(display.figure_.axes[0], "share"),
        [size, size / 2],
        rtol=tolerances.epsilon(np.float32),
    )


def paths_at(ax, label):
    """The x positions of the marks with a label."""
    (found,) = (c for c in ax.collections if c.get_label() == label)
    if label == "share":
        return [float(path.vertices[0, 0]) for path in found.get_paths()]
    return found.get_offsets()[:, 0].tolist()


def test_bars_caps_shares_and_what_is_left():
    display = AllocationDisplay.from_allocation(
        [5, 3, 0, 2],
        lower=[0, 1, 0, 2],
        upper=[9, 3, np.inf, 100],
        weights=[6, 2, np.nan, 4],
        labels=["a", "b", "c", "d"],
        unspent=2,
        xlabel="hours",
    )
    (ax,) = display.axes_
    assert [bar.get_width() for bar in display.bars_[0]] == [5, 3, 0, 2]
    assert [text.get_text() for text in ax.texts] == ["5", "3", "0", "2", "2"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first receiver is not on top"
    assert paths_at(ax, "lower") == [1, 2]
    assert paths_at(ax, "upper") == [9, 3]
    assert paths_at(ax, "share") == [6, 2, 4]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b", "c", "d", "unspent"]
    assert ax.patches[-1].get_width() == 2
    assert ax.get_title() == "10 spent, 2 unspent"
    assert ax.get_xlabel() == "hours"
    assert legend_of(display) == [
        "lower cap",
        "upper cap (1 beyond the edge)",
        "share by weight",
        "unspent",
    ]
    assert png(display).startswith(b"\x89PNG")


def test_results_are_drawn_as_they_are():
    result = fastattn.attention_allocation(
        [1.0, 0.0], np.eye(2), budget=5, upper=2, on_unspent="keep", backend="reference"
    )
    display = AllocationDisplay.from_allocation(result, upper=2)
    (ax,) = display.axes_
    assert [bar.get_width() for bar in display.bars_[0]] == [2, 2]
    assert paths_at(ax, "share") == (5 * result.weights).tolist()
    assert ax.get_title() == "4 spent, 1 unspent"
    shared = fastattn.allocate_shared([[1.0, 1.0]], [4.0], [1.0, 1.0])
    assert [bar.get_width() for bar in AllocationDisplay.from_allocation(shared).bars_[0]] == [1, 1]


def test_operands_are_judged_as_attention_judges_them():
    masked = np.ma.array(np.eye(2), mask=np.eye(2))
    with pytest.raises(TypeError, match="masked array"):
        AttentionDisplay.from_attention(masked, np.eye(2))


def test_rows_are_panels_sorted_stably():
    allocation = np.array([[1.5, 4, 1.5], [0, 0, 7]])
    display = AllocationDisplay.from_allocation(allocation, sort=True, unspent=[0, 3])
    assert [order.tolist() for order in display.order_] == [[1, 0, 2], [2, 0, 1]]
    assert [bar.get_width() for bar in display.bars_[0]] == [4, 1.5, 1.5]
    assert len({ax.get_xlim() for ax in display.axes_}) == 1
    assert display.axes_[0].get_yticklabels()[-1].get_text() == "unspent"  # the second has some
    titles = [ax.get_title() for ax in display.axes_]
    assert titles == ["row 0: 7 spent, 0 unspent", "row 1: 7 spent, 3 unspent"]


def test_many_receivers_are_drawn_in_blocks():
    allocation = np.arange(1000.0)
    display = AllocationDisplay.from_allocation(allocation, upper=2000.0, max_bars=100)
    assert display.block_ == 10
    widths = [bar.get_width() for bar in display.bars_[0]]
    assert widths == allocation.reshape(100, 10).mean(axis=1).tolist()
    assert "1000 receivers, each bar the mean of 10" in display.axes_[0].get_title()
    assert len(display.axes_[0].get_yticklabels()) < 100
    assert display.axes_[0].get_ylabel() == "every 2nd bar labelled"
    assert display.axes_[0].get_title().endswith("499500 spent")


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 2), (1,), (3, 1)])
def test_allocations_of_every_shape(shape):
    display = AllocationDisplay.from_allocation(np.zeros(shape), unspent=0.0)
    assert png(display).startswith(b"\x89PNG")
    assert ("nothing to show" in " ".join(words(display.figure_))) == (0 in shape)


def test_no_pyplot_and_a_word_on_the_extra_without_matplotlib():
    code = """
        import sys
        from fastattn.plot import AllocationDisplay, AttentionDisplay
        assert "matplotlib" not in sys.modules
        AttentionDisplay.from_weights([[1.0]])
        AllocationDisplay.from_allocation([1.0])
        assert "matplotlib.pyplot" not in sys.modules
        for name in [name for name in sys.modules if name.startswith("matplotlib")]:
            sys.modules[name] = None
        for draw in (AttentionDisplay([[1.0]]).plot, AllocationDisplay([1.0]).plot):
            try:
                draw()
            except ImportError as error:
                assert "`pip install matplotlib`" in str(error)
            else:
                raise AssertionError
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=children.environment(),
        timeout=children.PATIENCE,
        check=True,
    )


def test_tensorboard_takes_the_figures_as_they_are(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    display = AttentionDisplay.from_weights(soft(2, 3, 3))
    with tensorboard.SummaryWriter(tmp_path) as writer:
        writer.add_figure("attention", display.figure_, close=False)
    (event,) = tmp_path.iterdir()
    assert event.stat().st_size > len(png(display)) // 4
