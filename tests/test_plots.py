"""Plots: files of the right kind, whole or absent; odd images, names and rows; errors."""

import math
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vit_hf.inspection import plots
from vit_hf.inspection.plots import plot_learning_curves, plot_predictions

_CLASSES = [("cat", 0.7), ("dog", 0.2), ("a name far too long to stand beside its number in the figure", 0.1)]
_ROWS = [
    {"epoch": 1, "train_loss": 2.3, "validation_loss": 2.2, "top1": 0.2, "top5": 0.6, "learning_rate": 1e-3},
    {"epoch": 2, "train_loss": 1.9, "validation_loss": None, "top1": 0.4, "top5": 0.8, "learning_rate": 5e-4},
    {"epoch": 3, "train_loss": 1.5, "validation_loss": 1.8, "top1": 0.3, "top5": 0.9, "learning_rate": 0.0},
]
_MAGIC = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


def _image(width: int = 8, height: int = 8, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def figures(monkeypatch):
    """Collect the figures that are drawn, and write next to nothing for them."""
    drawn = []

    def savefig(self, file, **kwargs):
        drawn.append(self)
        file.write(b"drawn")

    monkeypatch.setattr(Figure, "savefig", savefig)
    return drawn


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts] + [text.get_text() for text in figure.texts]


# ---------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_the_suffix_decides_the_format_and_only_the_file_is_left(tmp_path, suffix):
    plot_predictions([_image()], [_CLASSES], tmp_path / f"predictions{suffix}")
    plot_learning_curves(_ROWS, str(tmp_path / f"curves{suffix}"))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"curves{suffix}", f"predictions{suffix}"]
    assert all(file.read_bytes().startswith(_MAGIC[suffix]) for file in files)


@pytest.mark.parametrize("name", ["figure.jpg", "figure"])
def test_an_unknown_suffix_raises(tmp_path, name):
    with pytest.raises(ValueError, match=r"expected a name that ends in \.png, \.pdf, \.svg"):
        plot_predictions([_image()], [_CLASSES], tmp_path / name)


def test_a_missing_folder_raises_and_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent of figure\.png does not exist; create it first"):
        plot_learning_curves(_ROWS, tmp_path / "absent" / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    def fail(self, file, **kwargs):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    (tmp_path / "figure.png").write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        plot_learning_curves(_ROWS, tmp_path / "figure.png")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("figure.png", b"old")]


def test_pyplot_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    plot_predictions([_image()], [_CLASSES], tmp_path / "figure.png")
    plot_learning_curves(_ROWS, tmp_path / "curves.png")
    assert len(list(tmp_path.iterdir())) == 2


# ---------------------------------------------------------------------------------------------- predictions
def test_bars_hold_percentages_from_the_highest_down(tmp_path, figures):
    plot_predictions([_image()], [[("dog", 0.25), ("cat", 0.75)]], tmp_path / "figure.png")
    bars = [bar.get_width() for bar in figures[0].axes[1].containers[1]]
    assert bars == [75.0, 25.0]
    assert _texts(figures[0])[:4] == ["cat", "75.0%", "dog", "25.0%"]


def test_long_names_are_cut_before_the_number(tmp_path):
    page = plots._page([(_image(), [("W" * 90, 1.0), ("wide name " * 9, 0.0)], "")])
    page.canvas.draw()
    texts = page.axes[1].texts
    for name, number in zip(texts[::2], texts[1::2], strict=True):
        assert name.get_text().endswith("…")
        assert name.get_window_extent().x1 < number.get_window_extent().x0


def test_names_that_look_like_formulas_are_written_as_they_are(tmp_path, figures):
    plot_predictions([_image()], [[("$\\frac{", 0.5), ("US$ and $", 0.5)]], tmp_path / "figure.png", titles=["$x^$"])
    figures[0].canvas.draw()
    assert {"$\\frac{", "US$ and $", "$x^$"} <= set(_texts(figures[0]))


def test_small_pictures_show_their_pixels_and_large_ones_are_smoothed(tmp_path, figures):
    plot_predictions([_image(), _image(400, 300)], [_CLASSES, _CLASSES], tmp_path / "figure.png")
    small, _, large, _ = figures[0].axes
    assert small.images[0].get_interpolation() == "nearest"
    assert large.images[0].get_interpolation() != "nearest"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_every_image_mode_is_drawn_as_rgb(mode):
    picture = plots._picture(_image(mode="I").convert(mode) if mode == "I;16" else _image(mode=mode))
    assert picture.mode == "RGB"


def test_transparent_pixels_show_white():
    assert plots._picture(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_pictures_stand_upright_after_their_exif_orientation(tmp_path):
    image = _image(20, 10)
    image.getexif()[0x0112] = 6  # turned by a quarter
    assert plots._picture(image).size == (10, 20)


def test_large_photos_are_scaled_down_for_the_file():
    assert plots._picture(_image(3000, 300)).size == (600, 60)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (8, 2), (12, 3), (16, 4)])
def test_up_to_sixteen_images_make_one_page_of_equal_cells(count, columns):
    page = plots._page([(_image(), _CLASSES, "")] * count)
    lefts = {round(ax.get_position().x0, 6) for ax in page.axes[::2]}
    assert len(page.axes) == 2 * count
    assert len(lefts) == columns


def test_more_than_sixteen_images_become_pages_of_a_pdf(tmp_path):
    plot_predictions([_image()] * 17, [_CLASSES[:1]] * 17, tmp_path / "figure.pdf")
    assert b"/Count 2 " in (tmp_path / "figure.pdf").read_bytes()


def test_more_than_sixteen_images_do_not_fit_a_png(tmp_path):
    with pytest.raises(ValueError, match=r"17 images do not fit one page of 16; give a \.pdf path"):
        plot_predictions([_image()] * 17, [_CLASSES] * 17, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("images", "predictions", "titles", "message"),
    [
        (0, [], None, "there are 0 images, 0 predictions; expected at least one image"),
        (2, [_CLASSES], None, "there are 2 images, 1 predictions; expected"),
        (1, [_CLASSES], ["a", "b"], "1 images, 1 predictions, 2 titles"),
        (1, [[]], None, "image 0 has no predictions"),
        (1, [[("cat", 70.0)]], None, "image 0 has 70.0 for class 'cat'; expected a probability"),
        (1, [[("cat", math.nan)]], None, "image 0 has nan for class 'cat'"),
    ],
)
def test_wrong_predictions_raise(tmp_path, images, predictions, titles, message):
    with pytest.raises(ValueError, match=message):
        plot_predictions([_image()] * images, predictions, tmp_path / "figure.png", titles=titles)


# ---------------------------------------------------------------------------------------------- learning curves
def _lines(figure: Figure) -> dict[str, tuple[list, list]]:
    """Return (epochs, values) by the first word of each line's label, "rate" for the learning rate."""
    found = {}
    for ax in figure.axes:
        for line in ax.lines:
            name = "rate" if ax.get_ylabel() == "learning rate" else line.get_label().split()[0]
            found[name] = list(line.get_xdata()), list(line.get_ydata())
    return found


def test_curves_hold_the_rows_with_accuracies_in_percent(tmp_path, figures):
    plot_learning_curves(_ROWS, tmp_path / "figure.png")
    lines = _lines(figures[0])
    assert lines["training"] == ([1, 2, 3], [2.3, 1.9, 1.5])
    assert lines["top-1"] == ([1, 2, 3], [20.0, 40.0, 30.0])
    assert lines["rate"] == ([1, 2, 3], [1e-3, 5e-4, 0.0])


def test_axes_are_named_with_their_units(tmp_path, figures):
    plot_learning_curves(_ROWS, tmp_path / "figure.png")
    assert [ax.get_ylabel() for ax in figures[0].axes] == ["loss (nats)", "accuracy (%)", "learning rate"]
    plot_learning_curves(_ROWS, tmp_path / "figure.png", loss="error of hidden patches")
    assert figures[1].axes[0].get_ylabel() == "error of hidden patches"
    assert {ax.get_xlabel() for ax in figures[0].axes} == {"epoch"}


def test_the_legend_names_the_best_accuracy(tmp_path, figures):
    plot_learning_curves(_ROWS, tmp_path / "figure.png")
    labels = [text.get_text() for text in figures[0].axes[1].get_legend().get_texts()]
    assert labels == ["top-1 (best 40.0%, epoch 2)", "top-5 (best 90.0%, epoch 3)"]


def test_an_evaluation_that_was_not_made_is_passed_over(tmp_path, figures):
    plot_learning_curves(_ROWS, tmp_path / "figure.png")
    assert _lines(figures[0])["validation"] == ([1, 3], [2.2, 1.8])


def test_a_loss_that_is_not_finite_leaves_a_gap(tmp_path, figures):
    rows = [{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": math.inf}, {"epoch": 3, "train_loss": 1.0}]
    plot_learning_curves(rows, tmp_path / "figure.png")
    assert np.isnan(_lines(figures[0])["training"][1][1])


def test_of_rows_of_one_epoch_the_last_counts(tmp_path, figures):
    rows = [{"epoch": 2, "top1": 0.1}, {"epoch": 1, "top1": 0.2}, {"epoch": 2, "top1": 0.5}, {"top1": 0.9}]
    plot_learning_curves(rows, tmp_path / "figure.png")
    assert _lines(figures[0]) == {"top-1": ([1, 2], [20.0, 50.0])}


def test_one_evaluation_is_a_visible_point_at_a_whole_epoch(tmp_path, figures):
    plot_learning_curves([{"epoch": 1, "train_loss": 2.0}], tmp_path / "figure.png")
    ax = figures[0].axes[0]
    figures[0].canvas.draw()
    low, high = ax.get_xlim()
    assert ax.lines[0].get_marker() == "o"
    assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1.0]


@pytest.mark.parametrize("rows", [[], [{"top1": 0.5}], [{"epoch": 1, "top1": None}], [{"epoch": 1, "top1": math.nan}]])
def test_rows_with_nothing_to_draw_raise(tmp_path, rows):
    with pytest.raises(ValueError, match=f"none of the {len(rows)} rows holds an epoch with"):
        plot_learning_curves(rows, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []
