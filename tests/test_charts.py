"""Charts of an evaluation: what is drawn equals the numbers that were given, in both themes, whatever the names."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vit_hf.inspection.charts import NUMBERED, draw_classes, draw_confusion, draw_reliability, draw_speed
from vit_hf.inspection.style import DARK, LIGHT, shortened, to_png

BINS = [[0, None, None], [4, 0.3, 0.25], [50, 0.5, 0.64], [146, 0.9, 0.875]]


def heights(ax) -> list[float]:
    return [bar.get_height() for bar in ax.patches if isinstance(bar, Rectangle)]


def ink(figure: Figure) -> set[str]:
    """All words in a figure."""
    figure.draw_without_rendering()
    return {text.get_text() for ax in figure.axes for text in ax.findobj(lambda it: hasattr(it, "get_text"))}


# ---------------------------------------------------------------------------------------------- calibration
def test_bars_are_accuracies_and_shares_of_the_pictures():
    upper, lower = draw_reliability(BINS).axes
    assert heights(upper) == [0.25, 0.64, 0.875]
    assert heights(lower) == pytest.approx([0, 4 / 200, 50 / 200, 146 / 200])
    assert [bar.get_alpha() for bar in upper.patches] == [0.35, 1.0, 1.0]  # four pictures tell little
    marks = [line.get_ydata()[0] for line in upper.lines[:-1]]
    assert marks == [0.3, 0.5, 0.9]
    assert {text.get_text() for text in upper.get_legend().get_texts()} == {"named rightly", "mean confidence"}


def test_points_after_the_temperature_are_those_of_bins_that_hold_enough():
    upper, _ = draw_reliability(BINS, [[0, None, None], [9, 0.2, 0.3], [31, 0.55, 0.5], [160, 0.8, 0.9]]).axes
    (points,) = [line for line in upper.lines if line.get_marker() == "D"]
    assert points.get_xydata().tolist() == [[0.55, 0.5], [0.8, 0.9]]


def test_bins_without_samples_cannot_be_drawn():
    with pytest.raises(ValueError, match="no samples"):
        draw_reliability([[0, None, None]] * 3)


# ---------------------------------------------------------------------------------------------- confusion
MISTAKES = np.array([[0, 3, 1], [0, 0, 0], [16, 0, 0]])
BLOCKS = [("cat", 1), ("dog", 1), ("bird", 1)]


def test_cells_hold_the_counts_and_the_diagonal_what_was_right():
    ax = draw_confusion(MISTAKES, [10, 7, 20], BLOCKS).axes[0]
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {(0, 0): "6", (1, 0): "3", (2, 0): "1", (1, 1): "7", (0, 2): "16", (2, 2): "4"}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog", "bird"]


def test_colours_are_shares_of_the_row_and_nothing_is_paper():
    for theme in (LIGHT, DARK):
        (image,) = draw_confusion(MISTAKES, [10, 7, 20], BLOCKS, theme=theme).axes[0].images
        shares = image.get_array()
        assert shares.filled(0).tolist() == [[0, 0.3, 0.1], [0, 0, 0], [0.8, 0, 0]]
        assert image.norm.vmax == 0.8
        assert float(image.norm(0.2)) == pytest.approx(0.5)  # a root scale: a quarter of the most is half the way
        assert image.cmap(np.ma.masked)[:3] == pytest.approx(to_rgb(theme.paper))


def test_more_rows_are_a_picture_with_numbered_blocks():
    count = NUMBERED + 8
    mistakes = np.ones((count, count), int) - np.eye(count, dtype=int)
    ax = draw_confusion(mistakes, [100] * count, [("first", 5), ("second", 12), ("third", 3)]).axes[0]
    assert not ax.texts
    names = [label.get_text().replace("\u2007", " ").split() for label in ax.get_yticklabels()]
    assert names == [["first", "1"], ["second", "2"], ["third", "3"]]
    assert ax.get_yticks().tolist() == [2, 10.5, 18]


def test_words_of_neighbouring_rows_do_not_touch():
    for count, blocks in (
        (26, [("Agj" * 20, 1)] * 26),
        (100, [("Agj" * 20, 5)] * 20),
        (100, [("Agj" * 20, 4)] * 10 + [("Agj" * 20, 6)] * 10),
    ):
        figure = draw_confusion(np.ones((count, count), int), [count] * count, blocks)
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
        assert all(above.y0 >= below.y1 - 1 for above, below in itertools.pairwise(boxes)), count


def test_no_mistakes_are_no_error():
    to_png(draw_confusion(np.zeros((3, 3), int), [1, 2, 3], BLOCKS))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected \(K, K\), K and K"):
        draw_confusion(MISTAKES, [10, 7], BLOCKS)
    with pytest.raises(ValueError, match="blocks 2"):
        draw_confusion(MISTAKES, [10, 7, 20], BLOCKS[:2])


# ---------------------------------------------------------------------------------------------- classes, speed
def test_dots_and_intervals_of_classes_are_where_the_numbers_are():
    figure = draw_classes([["cat", 10, 4, 0.15, 0.7], ["dog", 8, 8, None, None]])
    (ax,) = figure.axes
    drawn = [line.get_xydata().tolist() for line in ax.lines if line.get_color() != LIGHT.pale]
    assert drawn == [[[15, 0], [70, 0]], [[40, 0]], [[100, 1]]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog"]
    with pytest.raises(ValueError, match="no classes"):
        draw_classes([])


def test_speed_is_drawn_by_epoch():
    rows = [{"epoch": 2.0, "images_per_second": 30.0}, {"epoch": 1.0, "images_per_second": 20.0}, {"epoch": 3.0}]
    (line,) = draw_speed(rows).axes[0].lines
    assert line.get_xydata().tolist() == [[1, 20], [2, 30]]
    with pytest.raises(ValueError, match="at least two"):
        draw_speed(rows[1:])


# ---------------------------------------------------------------------------------------------- all
def test_no_name_is_a_formula_or_a_warning():
    """Of scripts that the font lacks, and with signs that matplotlib reads as mathematics."""
    names = ["$x^2$", "日本語の名前", "a_b\\frac{1}{", "שלום", "\u202eabc\x07", "x" * 300]
    assert shortened("日a", 2) == "□a"
    to_png(draw_classes([[name, 4, 2, 0.1, 0.9] for name in names]))
    figure = draw_confusion(np.zeros((6, 6), int), [1] * 6, [(name, 1) for name in names])
    to_png(figure)
    assert "$x^2$" in ink(figure)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_chart_is_in_its_theme_and_of_phone_width(theme):
    rows = [{"epoch": float(epoch), "images_per_second": 10.0} for epoch in range(3)]
    for figure in (
        draw_reliability(BINS, theme=theme),
        draw_confusion(MISTAKES, [10, 7, 20], BLOCKS, theme=theme),
        draw_classes([["cat", 10, 4, 0.15, 0.7]], theme=theme),
        draw_speed(rows, theme=theme),
    ):
        assert figure.get_facecolor()[:3] == pytest.approx(to_rgb(theme.paper))
        assert figure.get_size_inches()[0] == pytest.approx(4.2)
        for ax in figure.axes:
            for label in (ax.xaxis.label, ax.yaxis.label):
                assert not label.get_text() or to_rgb(label.get_color()) == pytest.approx(to_rgb(theme.ink))
