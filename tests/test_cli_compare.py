"""`vit-hf compare`: what it prints, what it writes, and that it writes nothing when it fails."""

import json

import numpy as np
import PIL.Image
import pytest
from test_paired import pair

from vit_hf.cli import main
from vit_hf.evaluation.paired import compare
from vit_hf.evaluation.predictions import write_predictions


@pytest.fixture
def folders(tmp_path):
    for name, predictions in zip("ab", pair(400), strict=True):
        (tmp_path / name).mkdir()
        write_predictions(tmp_path / name / "predictions.parquet", predictions)
    return tmp_path / "a", tmp_path / "b"


def test_a_table_the_verdict_and_the_files(folders, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert main(["compare", *map(str, folders), "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    expected = compare(*pair(400))
    top1 = expected["scores"]["top1"]
    for words in ("400 pictures of animals, split test", f"{top1['a']:.2%}", f"{100 * top1['difference']:+.2f}"):
        assert words in printed
    assert "B is right more often on pictures like these" in printed
    assert "streamed" not in printed
    assert sorted(path.name for path in out.iterdir()) == ["comparison.json", "comparison.png"]
    written = json.loads((out / "comparison.json").read_text())
    assert (written.pop("a"), written.pop("b")) == tuple(map(str, folders))
    assert written.pop("verdict") in printed
    assert written == json.loads(json.dumps(expected))
    with PIL.Image.open(out / "comparison.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10


def test_a_streamed_split_is_said_to_be_known_by_its_labels_only(tmp_path, capsys):
    paths = []
    for name, predictions in zip("ab", pair(50, sha256="streaming"), strict=True):
        paths.append(str(tmp_path / name))
        write_predictions(paths[-1], predictions)
    assert main(["compare", *paths]) == 0
    assert "the pictures are the same is known by their labels only" in capsys.readouterr().out


def test_other_pictures_and_a_full_folder_are_refused_and_nothing_is_written(folders, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    write_predictions(folders[1] / "predictions.parquet", pair(400, sha256="cd")[1])
    assert main(["compare", *map(str, folders), "--output", str(tmp_path / "out")]) == 1
    assert "not the same pictures and labels" in capsys.readouterr().err
    assert main(["compare", str(folders[0]), str(folders[0]), "--output", str(folders[0])]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    assert main(["compare", str(folders[0]), str(tmp_path)]) == 1
    assert "there is no" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_names_with_brackets_are_printed_as_they_are(tmp_path, capsys):
    names = ("[bold]", "[/]", "$x$", "a b", "pig", "rat", "yak")
    paths = []
    for letter, predictions in zip("ab", pair(300, label_names=names), strict=True):
        paths.append(str(tmp_path / letter))
        write_predictions(paths[-1], type(predictions)(predictions.scores, names, "[red]", "test", "ab"))
    assert main(["compare", *paths, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "[red]" in printed
    assert any(name in printed for name in ("[bold]", "[/]"))
