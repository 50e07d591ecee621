"""Reports of less than a whole run: what is not there is said, what does not fit is refused, nothing is left half."""

import os
import re

import numpy as np
import PIL.Image
import pytest
from report_pages import invented, opened, report
from report_runs import FIELDS, NAMES, small, without_drawing, write_pictures, write_run

from vit_hf import VitHfForImageClassification, VitHfImageProcessor
from vit_hf.cli import main
from vit_hf.evaluation.predictions import PREDICTIONS
from vit_hf.evaluation.run import evaluate
from vit_hf.evaluation.views import Views
from vit_hf.sharing.report import write_report


@pytest.fixture(autouse=True, scope="module")
def _plots_are_dots():
    with without_drawing():
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "secret_place" / "animals", NAMES)


@pytest.fixture(scope="module")
def run(tmp_path_factory, pictures):
    return write_run(tmp_path_factory.mktemp("runs") / "mine", pictures, fields=FIELDS)


# ---------------------------------------------------------------------------------------------- what is not there
def test_without_data_it_says_so_and_the_rest_stays(run, tmp_path, pictures, caplog):
    folder = write_run(tmp_path / "run", pictures, data=str(tmp_path / "gone"))
    page = report(folder)
    assert page.text.count("The data was not found where the run read it; give it with --data.") == 2
    assert str(tmp_path) not in page.text
    assert "gone" in caplog.text  # the reason, for who runs it
    assert "Confusion matrix" in " ".join(str(image["alt"]) for image in page.all("img"))
    found = report(folder, tmp_path / "given", data=str(pictures))
    assert len(found.all("img")) > len(page.all("img"))


def test_other_data_is_refused(run, tmp_path):
    other = write_pictures(tmp_path / "other", [*NAMES[:-1], "kind g"])
    with pytest.raises(ValueError, match=r"split test of other has the fingerprint .*expected the same 36 pictures"):
        write_report(run, output=tmp_path / "out", data=str(other))
    assert not (tmp_path / "out").exists()


def test_changed_data_is_not_shown(tmp_path):
    place = write_pictures(tmp_path / "animals", NAMES)
    folder = write_run(tmp_path / "run", place)
    PIL.Image.new("RGB", (24, 16)).save(place / "test" / NAMES[0] / "0.png")
    page = report(folder)
    assert "no longer what was scored" in page.text
    assert "What training showed" in page.text
    assert [name for name in os.listdir(tmp_path / "out") if name.startswith("mistake")] == []
    PIL.Image.new("RGB", (24, 16)).save(place / "train" / NAMES[0] / "0.png")
    report(folder, tmp_path / "again")
    assert [name for name in os.listdir(tmp_path / "again") if name.startswith("training_")] == []


def test_a_run_without_predictions_shows_what_its_record_holds(tmp_path, pictures):
    folder = write_run(tmp_path / "run", pictures, intervals=..., calibration=...,
                       per_class=[[name, 6, 3] for name in NAMES], confusions=[["kind a", "kind b", 4]])  # fmt: skip
    (folder / PREDICTIONS).unlink()
    (folder / "metrics.jsonl").unlink()
    page = report(folder)
    for said in (
        "No interval was recorded.",
        "Calibration: not recorded.",
        "The confusion matrix: no predictions were recorded.",
        "No predictions were recorded.",
        "Learning curves: not recorded.",
    ):
        assert said in page.text
    assert page.table("class", "taken for", "pictures") == [["kind a", "kind b", "4"]]
    assert ["kind a", "3", "6", "50.00%", "-"] in page.table("class", "right", "of", "share", "95% interval")


def test_a_model_for_masked_images_has_curves_masks_and_positions(tmp_path, pictures):
    fields = {"augmentation.mask_patch_size": 8, "augmentation.mask_ratio": 0.5}
    folder = write_run(tmp_path / "run", pictures, masked=True, fields=fields)
    page = report(folder)
    assert "mean absolute error of hidden pixels" in page.text
    assert "0.4321" in page.text
    assert "top-1" not in page.text
    assert invented(page, folder) == set()
    names = set(os.listdir(tmp_path / "out"))
    assert {"positions.png", "filters.png", "attention_distance.png", "learning_loss.png", "masked_1_2.png"} <= names
    whole, seen = (np.asarray(opened(tmp_path / "out" / f"masked_1_{n}.png")) for n in (1, 2))
    hidden = (seen == 128).all(axis=2)
    assert hidden.mean() == 0.5  # of six squares three
    assert (whole[~hidden] == seen[~hidden]).all()


def test_converted_weights_are_reported_with_scores_of_their_own(tmp_path, pictures):
    folder = tmp_path / "model"
    VitHfForImageClassification(small(NAMES)).save_pretrained(folder)
    VitHfImageProcessor(size={"height": 16, "width": 24}).save_pretrained(folder)
    bare = report(folder, tmp_path / "bare")
    assert "Scores: not recorded." in bare.text
    measured = evaluate(folder, data=str(pictures), output=tmp_path / "scores")
    page = report(folder, tmp_path / "out", scores_of=tmp_path / "scores", data=str(pictures))
    assert f"{measured['top1']:.2%}" in page.text
    assert "time and machine\nnot recorded" in re.sub(r"\n+", "\n", page.text)
    assert "mistake_01.png" in os.listdir(tmp_path / "out")
    assert "of each picture, averaged" not in page.text
    evaluate(folder, data=str(pictures), output=tmp_path / "views", views=Views(crops=5, flip=True))
    page = report(folder, tmp_path / "of_views", scores_of=tmp_path / "views")
    assert "10 of each picture, averaged: 16 x 24 pixels, crops 5, mirrored too" in page.text
    with pytest.raises(ValueError, match="give the model folder, and this one with --scores"):
        report(tmp_path / "scores", tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=r"has no results\.json"):
        report(folder, tmp_path / "x", scores_of=tmp_path / "bare")


def test_scores_of_other_classes_are_refused(run, tmp_path, pictures):
    folder = tmp_path / "model"
    VitHfForImageClassification(small([*NAMES, "kind g"])).save_pretrained(folder)
    VitHfImageProcessor(size={"height": 16, "width": 24}).save_pretrained(folder)
    with pytest.raises(ValueError, match="of other classes than the model"):
        report(folder, tmp_path / "x", scores_of=run)


def test_what_lies_there_stays_and_a_failure_leaves_nothing(run, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        write_report(run, output=tmp_path / "full")
    assert (tmp_path / "full" / "mine").read_text() == "mine"
    monkeypatch.setattr("os.rename", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(run, output=tmp_path / "new")
    assert os.listdir(tmp_path) == ["full"]


def test_the_command_writes_beside_the_run_and_says_what(tmp_path, pictures, capsys):
    folder = write_run(tmp_path / "run", pictures, data="gone_away/nowhere/x")
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr().out
    assert str(folder / "report" / "report.html") in said
    assert "without pictures of the data" in said
    assert main(["report", str(folder)]) == 1
    assert "choose another --output" in capsys.readouterr().err
