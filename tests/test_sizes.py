"""Accuracy against image size: each point is an evaluation of its own, and the figure shows what the table says."""

import json

import PIL.Image
import pytest
from small_scored import NAMES, noise, save_data, save_model

from vit_hf import VitHfForImageClassification
from vit_hf.cli import main
from vit_hf.evaluation.run import evaluate
from vit_hf.evaluation.sizes import draw_accuracy_by_size, evaluate_sizes
from vit_hf.evaluation.views import Views
from vit_hf.inspection.style import DARK

SIZES = ((16, 24), (8, 8), (20, 40))
ROWS = [
    {"image_size": [32, 32], "top1": 0.6, "interval": [0.55, 0.65]},
    {"image_size": [16, 16], "top1": 0.2, "interval": [0.15, 0.25]},
    {"image_size": [16, 36], "top1": 0.5, "interval": [0.45, 0.55]},
]


@pytest.fixture(scope="module")
def model(tiny, randomise, tmp_path_factory):
    config = tiny(num_labels=None, id2label=dict(enumerate(NAMES)), num_register_tokens=2)
    return save_model(tmp_path_factory.mktemp("model") / "model", randomise(VitHfForImageClassification(config)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(save_data(tmp_path_factory.mktemp("data") / "data", noise(23, 20, 30)))


@pytest.fixture(scope="module")
def done(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done") / "curve"
    return folder, evaluate_sizes(model, SIZES, data=data, output=folder, batch_size=8, flip=True)


def test_each_point_is_an_evaluation_at_that_size(model, data, done, tmp_path):
    folder, curve = done
    assert [row["image_size"] for row in curve["sizes"]] == [list(size) for size in SIZES]
    for size, row in zip(SIZES, curve["sizes"], strict=True):
        name = "{}x{}".format(*size)
        views = Views(image_sizes=(size,), flip=True)
        alone = evaluate(model, data=data, views=views, output=tmp_path / name, batch_size=8)
        assert (row["top1"], row["interval"], row["loss"]) == (
            alone["top1"],
            alone["intervals"]["top1"],
            alone["loss"],
        )
        for file in ("predictions.parquet", "results.json"):
            assert (folder / name / file).read_bytes() == (tmp_path / name / file).read_bytes()


def test_the_record_holds_tokens_and_what_was_scored(done):
    folder, curve = done
    assert json.loads((folder / "sizes.json").read_text()) == curve
    assert [row["tokens"] for row in curve["sizes"]] == [1 + 2 + 12, 1 + 2 + 2, 1 + 2 + 25]  # patches of 4x8
    about = {name: curve[name] for name in ("data", "split", "n", "trained_size", "crops", "flip")}
    assert about == {"data": "data", "split": "test", "n": 23, "trained_size": [16, 24], "crops": 1, "flip": True}
    assert sorted(path.name for path in folder.iterdir()) == ["16x24", "20x40", "8x8", "sizes.json", "sizes.png"]
    with PIL.Image.open(folder / "sizes.png") as picture:
        assert picture.width > 500


def test_a_point_of_the_curve_can_be_measured_again(done, capsys):
    folder, curve = done
    assert main(["evaluate", str(folder / "8x8"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == curve["sizes"][1]["top1"]


def test_the_command_prints_a_row_a_size_and_marks_the_own_one(model, data, capsys):
    assert main(["evaluate", str(model), "--data", data, "--curve", "8x8,16x24"]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("│")]
    assert len(lines) == 2
    assert lines[0].startswith("│ 8 ")
    assert lines[1].startswith("│ 16x24 * ")
    assert "on 23 pictures of data, split test" in printed


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(16, 24), (18, 24)], r"image_size .*18.* is not divisible by patch_size"),
        ([(16, 24), (16, 24)], "image sizes 16x24, 16x24 name one twice"),
        ([], "there is no image size"),
    ],
)
def test_bad_sizes_are_refused_before_anything_runs(model, data, tmp_path, monkeypatch, sizes, message):
    monkeypatch.setattr("vit_hf.evaluation.run.build_evaluation_loader", None)
    with pytest.raises(ValueError, match=message):
        evaluate_sizes(model, sizes, data=data, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_earlier_scores_have_no_curve(done):
    with pytest.raises(ValueError, match="holds scores and no model; expected a model to score at other image sizes"):
        evaluate_sizes(done[0] / "8x8", SIZES)


def test_an_error_at_a_later_size_leaves_nothing(model, data, tmp_path, monkeypatch):
    written = []

    def fail(folder, *_):
        written.append(folder)
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("vit_hf.evaluation.sizes.write_scores", fail)
    with pytest.raises(OSError, match="No space left"):
        evaluate_sizes(model, SIZES, data=data, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_reassessed_labels_are_measured_at_each_size_and_looked_at_before_anything_runs(model, data, tmp_path, capsys):
    (tmp_path / "real.json").write_text(json.dumps([[0, 1, 2, 3, 4]] * 23))
    words = [
        "evaluate",
        str(model),
        "--data",
        data,
        "--curve",
        "8x8,16x24",
        "--real-labels",
        str(tmp_path / "real.json"),
    ]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    for name in ("8x8", "16x24"):
        results = json.loads((tmp_path / "out" / name / "results.json").read_text())
        assert (results["real_top1"], results["real_n"]) == (1.0, 23)
    capsys.readouterr()
    (tmp_path / "real.json").write_text("[[0]]")
    assert main([*words, "--output", str(tmp_path / "none")]) == 1
    assert "has labels of 1 pictures, the split has 23" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------------------------------------- the figure
def test_the_figure_shows_top1_its_interval_and_the_own_size():
    (ax,) = draw_accuracy_by_size(ROWS, trained_size=(32, 32)).axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("image size (pixels)", "top-1 (%)")
    points = ax.containers[0].lines[0].get_xydata().tolist()
    assert points == [[16, 20], [24, 50], [32, 60]]  # 16x36 has as many pixels as 24x24
    (band,) = [c for c in ax.collections if "interval" in str(c.get_label())]
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(9)}
    assert corners >= {(16, 15), (16, 25), (32, 55), (32, 65)}
    (own,) = [line for line in ax.lines if "trained" in str(line.get_label())]
    assert list(own.get_xdata()) == [32, 32]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["95% interval", "trained at 32"]


def test_sizes_of_as_many_pixels_share_a_tick():
    (ax,) = draw_accuracy_by_size([*ROWS, {**ROWS[0], "image_size": [16, 64]}]).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["16", "16x36", "16x64\n32"]


def test_one_size_and_a_dark_theme_make_a_figure_too():
    figure = draw_accuracy_by_size(ROWS[:1], theme=DARK)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["32"]
    assert figure.get_facecolor()[:3] != (1, 1, 1)
