"""The charts of a comparison and the contact sheet: what is drawn is what was given."""

import matplotlib.colors
import numpy as np
import pytest
from PIL import Image

from vit_hf.inspection.charts_compare import draw_class_differences
from vit_hf.inspection.contact_sheet import Cell, draw_contact_sheet
from vit_hf.inspection.style import BLUE, DARK, VERMILION, to_png


def row(name, only_a, only_b, p_holm=1.0, n=50):
    return {"name": name, "n": n, "only_a": only_a, "only_b": only_b, "p_holm": p_holm}


def test_bars_are_the_differences_in_points_full_where_they_are_shown():
    per_class = [row("cat", 5, 0), row("dog", 2, 22, 0.001), row("$eel", 3, 3), row("fox", 0, 1)]
    ax = draw_class_differences(per_class).axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["dog", "fox", "cat"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([40, 2, -10])
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in ax.patches]
    assert colours == [BLUE, BLUE, VERMILION]
    assert [bar.get_alpha() for bar in ax.patches] == [1, 0.45, 0.45]
    assert {"2 : 22", "0 : 1", "5 : 0"} <= {text.get_text() for text in ax.texts}
    assert "points" in ax.get_xlabel()


def test_of_many_classes_the_ten_that_gained_and_lost_most_are_drawn():
    per_class = [row(str(place), max(-change, 0), max(change, 0)) for place, change in enumerate(range(-20, 21))]
    ax = draw_class_differences(per_class, theme=DARK).axes[0]
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([2 * change for change in [*range(20, 10, -1), *range(-11, -21, -1)]])


def test_equal_models_and_one_class_are_drawn_and_none_is_refused():
    assert to_png(draw_class_differences([row("cat", 0, 0)]))[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="no classes"):
        draw_class_differences([])


def test_a_sheet_shows_every_picture_and_line_in_its_shape():
    pictures = [Image.new("RGB", size, colour) for size, colour in (((8, 8), "red"), ((900, 300), "blue"))]
    cells = [Cell(tuple(pictures), (f"train {place}: cat", "x" * 200)) for place in range(5)]
    figure = draw_contact_sheet(cells, columns=2)
    assert len(figure.axes) == 10
    shapes = [ax.images[0].get_array().shape for ax in figure.axes[:2]]
    assert shapes == [(8, 8, 3), (100, 300, 3)]
    lines = [text.get_text() for text in figure.texts]
    assert lines[0] == "train 0: cat"
    assert lines[1].endswith("…")
    assert np.isclose(figure.get_figwidth(), 4.2)
    to_png(figure)


@pytest.mark.parametrize("count", [0, 25])
def test_no_cells_and_too_many_are_refused(count):
    with pytest.raises(ValueError, match=f"there are {count} cells"):
        draw_contact_sheet([Cell((), ())] * count)
