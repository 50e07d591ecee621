"""The file of predictions: what is read is what was written, and a damaged file is refused with the place."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vit_hf.evaluation.predictions import Predictions, read_predictions, write_predictions
from vit_hf.evaluation.scoring import Scores

NAMES = ("cat", "dog", "fish", 'a "name"', "Ärger", "", "x")


@pytest.fixture
def scores() -> Scores:
    generator = torch.Generator().manual_seed(0)
    return Scores(logits=torch.randn(50, 7, generator=generator), labels=torch.arange(50) % 7)


def write(path, scores: Scores) -> None:
    write_predictions(path, Predictions(scores, NAMES, "digits", "test", "ab12"))


def test_what_is_read_equals_what_was_written_bit_for_bit(scores, tmp_path):
    special = torch.tensor([-0.0, 1e-45, 3.4028234663852886e38, -1e-38, 1 / 3, 0.1, 16777217.0])
    logits = torch.cat([scores.logits, special[None]])
    write(tmp_path / "p.parquet", Scores(logits, torch.cat([scores.labels, torch.tensor([6])])))
    predictions = read_predictions(tmp_path / "p.parquet")
    found = predictions.scores
    assert (predictions.label_names, predictions.data, predictions.split) == (NAMES, "digits", "test")
    assert predictions.sha256 == "ab12"
    assert (found.logits.dtype, found.labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(found.logits.view(torch.int32), logits.view(torch.int32))
    assert found.labels.tolist() == [*scores.labels.tolist(), 6]


def test_any_reader_of_parquet_sees_the_three_columns(scores, tmp_path):
    write(tmp_path / "p.parquet", scores)
    frame = pq.read_table(tmp_path / "p.parquet").to_pandas()
    assert list(frame.columns) == ["row", "label", "logits"]
    assert frame["row"].tolist() == list(range(50))
    np.testing.assert_array_equal(np.stack(frame["logits"]), scores.logits.numpy())


def test_the_same_scores_give_the_same_bytes(scores, tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, scores)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def _change(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def _logits(value: float | None, kind=pa.float32()) -> pa.Array:  # noqa: B008
    return pa.array([[0.0] * 7] * 49 + [[value] + [0.0] * 6], pa.list_(kind, 7))


def _about(table: pa.Table, **changes) -> pa.Table:
    about = {**json.loads(table.schema.metadata[b"vit_hf"]), **changes}
    return table.replace_schema_metadata({"vit_hf": json.dumps(about)})


def test_names_that_are_not_one_a_class_are_refused_before_a_file_is_there(scores, tmp_path):
    with pytest.raises(ValueError, match="6 label names for logits of 7 classes"):
        write_predictions(tmp_path / "p.parquet", Predictions(scores, NAMES[:6], "digits", "test", ""))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop_columns("logits"),
            r"has the columns row int64, label int64; not row int64, .*logits float32",
        ),
        (lambda t: t.append_column("more", t["row"]), "has the columns .*more int64"),
        (lambda t: _change(t, "label", t["label"].cast(pa.int32())), "label int32"),
        (lambda t: _change(t, "logits", _logits(0.0, pa.float64())), "logits fixed_size_list<.*double"),
        (lambda t: _change(t, "logits", t["row"]), "logits int64"),
        (lambda t: t.slice(0, 0), "has 0 rows"),
        (lambda t: _change(t, "label", pa.array([None, *t["label"].to_pylist()[1:]], pa.int64())), "are missing"),
        (lambda t: _change(t, "logits", _logits(None)), "are missing"),
        (lambda t: t.slice(1), "has row 1 in place 0"),
        (lambda t: pa.concat_tables([t, t]), "has row 0 in place 50"),
        (lambda t: t.take(list(range(40)) + list(range(49, 39, -1))), "has row 49 in place 40"),
        (
            lambda t: _change(t, "label", pa.array([7, *t["label"].to_pylist()[1:]])),
            "has label 7 in row 0, of 7 classes",
        ),
        (lambda t: _change(t, "label", pa.array([*t["label"].to_pylist()[:-1], -1])), "has label -1 in row 49"),
        (lambda t: _change(t, "logits", _logits(float("nan"))), "not finite in row 49"),
        (lambda t: _change(t, "logits", _logits(float("inf"))), "not finite in row 49"),
        (lambda t: t.replace_schema_metadata(None), "does not say what was scored, in its metadata 'vit_hf'"),
        (lambda t: t.replace_schema_metadata({"vit_hf": "{"}), "does not say what was scored"),
        (lambda t: t.replace_schema_metadata({"vit_hf": "[]"}), "does not say what was scored"),
        (lambda t: _about(t, label_names=["a"] * 6), "does not say what was scored"),
        (lambda t: _about(t, label_names=[1] * 7), "does not say what was scored"),
        (lambda t: _about(t, sha256=None), "does not say what was scored"),
    ],
)
def test_a_table_of_other_columns_or_rows_is_refused(scores, tmp_path, change, message):
    write(tmp_path / "p.parquet", scores)
    pq.write_table(change(pq.read_table(tmp_path / "p.parquet")), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "p.parquet")


@pytest.mark.parametrize("keep", [0, 3, 400, -1])
def test_a_file_that_was_cut_is_refused(scores, tmp_path, keep):
    path = tmp_path / "p.parquet"
    write(path, scores)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"p.parquet cannot be read .*; expected a file that `vit-hf train`"):
        read_predictions(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*p.parquet; expected a file"):
        read_predictions(tmp_path / "p.parquet")
