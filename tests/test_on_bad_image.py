"""`data.on_bad_image`: a bad picture ends a run, or is passed over by rule, counted, recorded, and the same for all."""

import io
import itertools
import json
import logging
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from vit_hf import Recipe, VitHfForImageClassification, VitHfImageProcessor, get_recipe, train, variant
from vit_hf.cli import main
from vit_hf.data.bad_images import BadImage, BadImages, BrokenSourceError, GoodRows
from vit_hf.data.images import BadImageError
from vit_hf.data.loading import TrainRows, build_evaluation_loader, build_train_loader
from vit_hf.data.order import StepSampler
from vit_hf.data.pictures import DataFields, open_pictures, save_examples
from vit_hf.data.transforms import Augmentation, TrainTransform
from vit_hf.evaluation.predictions import Predictions, read_predictions, write_predictions
from vit_hf.evaluation.run import evaluate
from vit_hf.evaluation.scoring import Scores, score
from vit_hf.training.trainer_run import train_with_trainer

COLUMNS = {"image_column": "image", "label_column": "label"}
BAD = (3, 4, 5, 21)  # three in succession, and the last


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (9 + number % 3, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(count: int, bad=(), first: int = 0) -> Dataset:
    """Return pictures of several sizes, which no cache keeps; the bad ones are HTML."""
    images = [
        {"bytes": b"<html>" if row in bad else png(first + row), "path": f"{first + row}.png"} for row in range(count)
    ]
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=["cat", "dog", "eel"])})
    return Dataset.from_dict({"image": images, "label": [row % 3 for row in range(count)]}, features=features)


@pytest.fixture(scope="module")
def processor():
    return VitHfImageProcessor(size={"height": 8, "width": 8})


@pytest.fixture(scope="module")
def transform(processor):
    return TrainTransform(Augmentation(crop="inception", flip=True), processor)


@pytest.fixture(scope="module")
def split():
    return pictures(22, BAD)


def loader_of(split, transform, *, workers=0, first_step=0, passed_over=0, draw=None, batch_size=8, **options):
    options = {"accumulation": 1, "num_steps": 9, "seed": 3, "skip_bad": True, **options}
    loader, prepare = build_train_loader(
        split,
        **COLUMNS,
        transform=transform,
        batch_size=batch_size,
        workers=workers,
        first_step=first_step,
        passed_over=passed_over,
        draw=draw,
        **options,
    )
    return loader, prepare


def batches_of(split, transform, *, steps=9, first_step=0, **options):
    loader, _ = loader_of(split, transform, first_step=first_step, **options)
    return list(itertools.islice(loader, steps - first_step))


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------------------------------- training batches
def test_the_next_good_row_of_the_split_stands_in(split, transform):
    stands_in = {**{row: row for row in range(22)}, 3: 6, 4: 6, 5: 6, 21: 0}
    asked = [address.row for step in StepSampler(22, 8, num_steps=9, seed=3) for address in step]
    batches = batches_of(split, transform)
    rows, labels, passed = (torch.cat([b[name] for b in batches]) for name in ("rows", "labels", "passed_over"))
    assert rows.tolist() == [stands_in[row] for row in asked]
    assert labels.tolist() == [stands_in[row] % 3 for row in asked]
    assert passed.tolist() == [{3: 3, 4: 2, 5: 1, 21: 1}.get(row, 0) for row in asked]
    assert all(len(batch["rows"]) == 8 for batch in batches)


def test_a_row_that_stands_in_is_its_own_picture_cut_by_the_key_of_the_other(split, transform):
    whole = pictures(22)
    for batch in batches_of(split, transform):
        for row, key, pixels in zip(batch["rows"].tolist(), batch["keys"].tolist(), batch["pixels"], strict=True):
            own = PIL.Image.open(io.BytesIO(whole[row]["image"]["bytes"]))
            assert torch.equal(pixels, transform.picture(own, key))


def test_batches_are_the_same_with_no_worker_and_with_two(split, transform):
    assert_same(batches_of(split, transform, workers=2), batches_of(split, transform))


@pytest.mark.parametrize("first_step", [1, 2, 5, 8])
def test_a_run_that_is_resumed_has_the_batches_of_the_whole_run(split, transform, first_step):
    assert_same(batches_of(split, transform, first_step=first_step), batches_of(split, transform)[first_step:])


def test_two_processes_have_the_halves_of_the_batches_of_one(split, transform):
    sampler = StepSampler(22, 8, num_steps=9, seed=3)
    halves = []
    for process in range(2):
        rows = TrainRows(split, "image", "label", transform, seed=3, skip_bad=True)  # each finds the bad ones itself
        halves.append([rows.__getitems__(part) for part in BatchSamplerShard(sampler, 2, process, split_batches=True)])
    joined = [
        {name: torch.cat([a[name], b[name]]) for name in a if name != "positions"} for a, b in zip(*halves, strict=True)
    ]
    assert_same(joined, batches_of(split, transform))


def test_pictures_that_are_all_good_are_those_without_the_rule(transform):
    good = pictures(22)
    found, plain = batches_of(good, transform), batches_of(good, transform, skip_bad=False)
    assert all(batch.pop("passed_over").sum() == 0 for batch in found)
    assert_same(found, plain)


def test_a_split_of_one_size_with_a_bad_picture_is_not_kept_and_still_passed_over(transform):
    """Pixels are kept of splits whose pictures are all good."""
    one_size = [row for row in range(60) if row % 3 == 0]  # of 9 x 12 pixels
    good, some_bad = (pictures(60, bad).select(one_size) for bad in ((), (30,)))
    for split, keeps in ((good, True), (some_bad, False)):
        batch, prepare = next(iter(loader_of(split, transform, batch_size=20)[0])), loader_of(split, transform)[1]
        assert ("pixels" not in batch, prepare.pixels is not None) == (keeps, keeps)
        assert int(batch.get("passed_over", torch.zeros(1)).sum()) == (not keeps)


@pytest.mark.parametrize("streamed", [False, True])
def test_without_the_rule_a_bad_picture_is_an_error_that_names_it(split, transform, streamed):
    given = split.to_iterable_dataset() if streamed else split
    with pytest.raises(BadImageError, match=r"(row|sample) \d+ of .*the training (split|stream) \(\d+\.png\)"):
        batches_of(given, transform, skip_bad=False)


def test_the_loader_explains_what_it_has_passed_over(split, transform):
    loader, _ = loader_of(split, transform)
    found = {image for b in loader for image in loader.dataset.explain(b["rows"], b["passed_over"])}
    assert {(image.split, image.row, image.path) for image in found} == {("train", r, f"{r}.png") for r in BAD}
    assert all(f"row {image.row} of the training split ({image.path}): an HTML page" in image.reason for image in found)


def test_a_missing_file_is_passed_over_and_a_failing_disk_is_not():
    def read(row):
        if row == 0:
            raise FileNotFoundError(f"row {row}: no such image file")
        if row == 2:
            raise OSError(5, "Input/output error")
        return f"picture {row}"

    good = GoodRows(read, 20)
    assert good(0) == (1, "picture 1", 1)
    with pytest.raises(OSError, match="Input/output"):
        good(2)


def test_a_bad_row_is_decoded_once_by_a_process():
    tried = []

    def read(row):
        tried.append(row)
        if row in (1, 2):
            raise BadImageError(str(row))
        return row

    good = GoodRows(read, 5)
    assert [good(row)[0] for row in (0, 1, 2, 1, 2)] == [0, 3, 3, 3, 3]
    assert [tried.count(row) for row in (1, 2)] == [1, 1]


@pytest.mark.parametrize("count", [1, 5, 40, 2_000])
def test_nothing_but_bad_pictures_is_an_error_soon(count):
    def read(row):
        tried.append(row)
        raise BadImageError(f"row {row} is bad")

    tried = []
    with pytest.raises(
        BrokenSourceError, match=rf"none of {min(count, max(count // 100, 10) + 1)} pictures from row 0"
    ):
        GoodRows(read, count)(0)
    assert len(tried) <= max(count // 100, 10) + 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_split_of_bad_pictures_only_ends_the_loader(transform, streamed, workers):
    split = pictures(30, range(30))
    with pytest.raises(BrokenSourceError, match=r"can be decoded .*HTML.*vit-hf audit"):
        batches_of(split.to_iterable_dataset() if streamed else split, transform, workers=workers)


# ---------------------------------------------------------------------------------------------- streams
def test_a_stream_passes_bad_samples_over_and_its_batches_stay_full(split, transform):
    given = split.to_iterable_dataset(num_shards=2)
    batches = batches_of(given, transform, steps=9)  # 72 samples: two epochs of 18 good ones are 36
    assert all(len(batch["rows"]) == 8 for batch in batches)
    rows = torch.cat([batch["rows"] for batch in batches]).tolist()
    epochs = [rows[start : start + 18] for start in range(0, 72, 18)]
    assert all(epoch == sorted(epoch) and len(set(epoch)) == 18 for epoch in epochs)
    passed = torch.cat([batch["passed_over"] for batch in batches])
    assert passed.sum() == 4 * 4 - (22 - 1 - epochs[3][-1])  # those behind the last good sample are not reached


@pytest.mark.parametrize("first_step", range(1, 9))
def test_a_resumed_stream_goes_on_behind_what_was_passed_over(split, transform, first_step):
    def draw(positions, height, width):
        return {"drawn": torch.tensor(positions)}

    given = split.to_iterable_dataset(num_shards=2)
    whole = batches_of(given, transform, draw=draw)
    assert torch.cat([batch["drawn"] for batch in whole]).tolist() == list(range(72))
    before = int(sum(batch["passed_over"].sum() for batch in whole[:first_step]))
    rest = batches_of(given, transform, first_step=first_step, passed_over=before, draw=draw)
    assert_same(rest, whole[first_step:])


def test_a_stream_explains_the_samples_of_the_batches_taken(split, transform):
    loader, _ = loader_of(split.to_iterable_dataset(), transform)
    before, seen = 0, set()
    for batch in itertools.islice(loader, 3):
        after = before + int(batch["passed_over"].sum())
        found = loader.dataset.explain(before, after)
        assert len(found) == after - before
        seen |= {image.path for image in found}
        before = after
    assert seen == {f"{row}.png" for row in BAD}


def test_a_resumed_stream_explains_as_the_whole_one(split, transform):
    def explained(first_step, before):
        loader, _ = loader_of(split.to_iterable_dataset(), transform, first_step=first_step, passed_over=before)
        for batch in itertools.islice(loader, 9 - first_step):
            after = before + int(batch["passed_over"].sum())
            yield after, loader.dataset.explain(before, after)
            before = after

    whole = list(explained(0, 0))
    assert whole[3][0] > 0
    assert list(explained(4, whole[3][0])) == whole[4:]


# ---------------------------------------------------------------------------------------------- scores
@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = get_recipe("digits").override({"model.num_hidden_layers": 1, "model.image_size": 8}).model
    return VitHfForImageClassification(variant(config.variant, **config.config, num_labels=3)).eval()


def scores_of(network, split, processor, *, workers=0, skip_bad=True, **options):
    accelerator = Accelerator(cpu=True)
    loader = build_evaluation_loader(
        split, **COLUMNS, name="test", processor=processor, batch_size=8, workers=workers, skip_bad=skip_bad
    )
    samples, count = loader.dataset, len(split) if isinstance(split, Dataset) else None
    loader = accelerator.prepare_data_loader(loader)
    return samples, score(network, loader, accelerator, num_samples=count, **options)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_left_out_of_a_score_and_the_others_score_as_ever(network, split, processor, streamed, workers):
    told = []
    given = split.to_iterable_dataset() if streamed else split
    samples, found = scores_of(network, given, processor, workers=workers, on_bad=told.extend)
    good = [row for row in range(22) if row not in BAD]
    _, whole = scores_of(network, pictures(22), processor, skip_bad=False)
    assert told == list(BAD) == list(found.left_out)
    assert found.rows.tolist() == good
    assert torch.equal(found.labels, whole.labels[good])
    assert torch.equal(found.logits, whole.logits[good])
    assert found.measure()["n"] == 18
    assert [image.path for image in samples.explain(told, "test")] == [f"{row}.png" for row in BAD]


def test_a_split_of_bad_pictures_only_has_no_score(network, processor):
    with pytest.raises(BrokenSourceError, match="none of the 4 pictures of the split can be decoded"):
        scores_of(network, pictures(4, range(4)), processor)


@pytest.mark.parametrize("left_out", [(), (0,), (2, 3), (5,), (0, 5)])
def test_predictions_keep_the_numbers_of_the_rows(tmp_path, left_out):
    count = 6 - len(left_out)
    scores = Scores(torch.randn(count, 3), torch.arange(count) % 3, left_out)
    write_predictions(tmp_path / "p.parquet", Predictions(scores, ("a", "b", "c"), "data", "test", "0" * 64))
    found = read_predictions(tmp_path / "p.parquet").scores
    assert found.left_out == left_out
    assert found.rows.tolist() == [row for row in range(6) if row not in left_out]
    assert torch.equal(found.logits, scores.logits)


# ---------------------------------------------------------------------------------------------- the record
def bad(row, split="train", path=None):
    return BadImage(split, row, path, f"row {row} of {split}")


def test_a_bad_picture_is_recorded_and_logged_once(caplog):
    record = BadImages("skip")
    assert record.note([bad(7), bad(3)], tried=100) == [bad(3), bad(7)]
    assert record.note([bad(3), bad(5)], tried=200) == [bad(5)]
    assert record.note([bad(3, "test")], tried=50) == [bad(3, "test")]
    assert [entry.message for entry in caplog.records] == [
        f"left out: row {row} of {split}" for row, split in ((3, "train"), (7, "train"), (5, "train"), (3, "test"))
    ]
    assert record.counts(["train", "validation", "test"]) == {"train": 3, "validation": 0, "test": 1}
    assert [json.loads(line)["row"] for line in record.lines().splitlines()] == [3, 5, 7, 3]


def test_a_streamed_picture_is_known_again_by_its_path():
    record = BadImages("skip")
    record.note([bad(3, path="a.png")], tried=10, by_path=True)
    assert record.note([bad(9, path="a.png"), bad(3, path="b.png")], tried=20, by_path=True) == [bad(3, path="b.png")]


@pytest.mark.parametrize(("count", "tried", "too_many"), [(10, 10, False), (11, 1_099, True), (11, 1_100, False)])
def test_more_than_ten_and_one_percent_is_a_broken_source(count, tried, too_many):
    record = BadImages("skip")
    if not too_many:
        record.note(map(bad, range(count)), tried=tried)
        return
    with pytest.raises(
        BrokenSourceError, match=r"11 of 1,099 pictures of split train .*row 0 of train; row 1 of train"
    ):
        record.note(map(bad, range(count)), tried=tried)


def test_the_record_goes_on_after_a_resume():
    record, resumed = BadImages("skip"), BadImages("skip")
    record.note([bad(3), bad(4, "test")], tried=100)
    record.passed_over = 17
    resumed.load_state_dict(json.loads(json.dumps(record.state_dict())))
    assert (resumed.passed_over, resumed.lines()) == (17, record.lines())
    assert resumed.note([bad(3)], tried=100) == []


# ---------------------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A saved data set with bad pictures in each split: 3 of 60, 2 of 12, 1 of 20."""
    folder = tmp_path_factory.mktemp("data") / "animals"
    splits = {"train": pictures(60, (3, 4, 59)), "validation": pictures(12, (0, 11), 100)}
    DatasetDict({**splits, "test": pictures(20, (7,), 200)}).save_to_disk(str(folder))
    return str(folder)


def recipe_of(source: str, **changes) -> Recipe:
    small = {
        "data.source": source,
        "data.on_bad_image": "skip",
        "data.validation_fraction": 0.0,
        "model.num_hidden_layers": 1,
        "model.image_size": 8,
        "model.hidden_size": 32,
        "model.intermediate_size": 64,
        "optimization.max_steps": 6,
        "optimization.batch_size": 20,
        "optimization.warmup_steps": 1,
        "augmentation.mixup_alpha": 0.8,
        "evaluate_every": 0.5,
        "checkpoint_steps": 1,
        "checkpoint_minutes": None,
        "checkpoint_limit": 9,
        "trackers": [],
    }
    return get_recipe("digits").override({**small, **{name.replace("__", "."): v for name, v in changes.items()}})


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    """A finished run that kept all its checkpoints."""
    return train(recipe_of(source), output=tmp_path_factory.mktemp("run") / "run", quiet=True).output


def recorded(folder):
    lines = (folder / "bad_images.jsonl").read_text().splitlines()
    return [(entry["split"], entry["row"], entry["path"]) for entry in map(json.loads, lines)]


ALL = {
    *(("train", row, f"{row}.png") for row in (3, 4, 59)),
    *(("validation", row, f"{100 + row}.png") for row in (0, 11)),
    ("test", 7, "207.png"),
}


def test_a_run_counts_records_and_scores_without_them(run):
    results = json.loads((run / "results.json").read_text())
    assert results["bad_images"] == {"train": 3, "validation": 2, "test": 1}
    assert results["n"] == 19
    assert set(recorded(run)) == ALL
    assert len(recorded(run)) == 6
    predictions = read_predictions(run / "predictions.parquet").scores
    assert predictions.left_out == (7,)
    assert predictions.labels.tolist() == [row % 3 for row in range(20) if row != 7]


def test_without_the_rule_the_run_ends_with_the_first_bad_picture(source, tmp_path):
    with pytest.raises(BadImageError, match=r"row (3|4|59) of the training split \((3|4|59)\.png\): an HTML page"):
        train(recipe_of(source, data__on_bad_image="raise"), output=tmp_path / "run", quiet=True)


@pytest.mark.parametrize("step", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 4, 5))])
def test_a_resumed_run_equals_the_whole_one_with_its_record(run, source, tmp_path, step, caplog):
    name = f"checkpoints/step-{step:08d}"
    shutil.copytree(run / name, tmp_path / "run" / name)
    for best in (run / "checkpoints").glob("best-*"):
        shutil.copytree(best, tmp_path / "run" / "checkpoints" / best.name)
    shutil.copy(run / "recipe.yaml", tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        train(str(run / "recipe.yaml"), output=tmp_path / "run", resume="auto", quiet=True)
    for file in ("model.safetensors", "bad_images.jsonl", "predictions.parquet"):
        assert (tmp_path / "run" / file).read_bytes() == (run / file).read_bytes()
    logged = [entry.message for entry in caplog.records if "left out: row" in entry.message]
    assert len(logged) == len(set(logged)) < 6 or step == 1


def test_the_trainer_passes_over_the_same_pictures(run, source, tmp_path):
    done = train_with_trainer(recipe_of(source), output=tmp_path / "run", quiet=True)
    assert done.results["bad_images"] == {"train": 3, "validation": 2, "test": 1}
    assert done.results["n"] == 19
    assert set(recorded(tmp_path / "run")) == ALL
    mine, other = (read_predictions(folder / "predictions.parquet").scores for folder in (run, tmp_path / "run"))
    assert mine.left_out == other.left_out
    torch.testing.assert_close(mine.logits, other.logits, atol=1e-5, rtol=0)  # sums in another order


def test_a_streamed_run_counts_records_and_resumes(source, tmp_path):
    changes = {"data__streaming": True, "keep": "last", "evaluate_every": 100.0}
    whole = train(recipe_of(source, **changes), output=tmp_path / "whole", quiet=True)
    assert whole.results["bad_images"] == {"train": 3, "validation": 2, "test": 1}
    assert whole.results["n"] == 19
    assert {entry[2] for entry in recorded(whole.output)} == {entry[2] for entry in ALL}
    name = "checkpoints/step-00000004"
    shutil.copytree(whole.output / name, tmp_path / "run" / name)
    shutil.copy(whole.output / "recipe.yaml", tmp_path / "run")
    train(str(tmp_path / "run" / "recipe.yaml"), output=tmp_path / "run", resume="auto", quiet=True)
    for file in ("model.safetensors", "bad_images.jsonl"):
        assert (tmp_path / "run" / file).read_bytes() == (whole.output / file).read_bytes()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_broken_source_ends_the_run_and_names_the_first_ones(tmp_path, streamed):
    splits = {"train": pictures(60, range(0, 60, 3)), "test": pictures(20, first=200)}
    DatasetDict(splits).save_to_disk(str(tmp_path / "data"))
    recipe = recipe_of(str(tmp_path / "data"), keep="last", data__streaming=streamed, augmentation__mixup_alpha=0.0)
    with pytest.raises(BrokenSourceError, match=r"\d+ of \d+ pictures of split train .*HTML.*mend it"):
        train(recipe, output=tmp_path / "run", quiet=True)
    assert len(recorded(tmp_path / "run")) > 10


def test_a_missing_file_of_a_folder_is_passed_over(tmp_path):
    for split, count in (("train", 40), ("test", 10)):
        for row in range(count):
            path = tmp_path / "data" / split / "ab"[row % 2] / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(row))
    (tmp_path / "data" / "train" / "a" / "0.png").write_bytes(b"")
    (tmp_path / "data" / "train" / "a" / "2.png").unlink()
    (tmp_path / "data" / "train" / "a" / "2.png").symlink_to(tmp_path / "gone.png")  # a name without a file
    (tmp_path / "data" / "train" / "b" / "1.png").unlink()
    (tmp_path / "data" / "train" / "b" / "1.png").mkdir()
    done = train(recipe_of(str(tmp_path / "data"), keep="last"), output=tmp_path / "run", quiet=True)
    assert done.results["bad_images"]["train"] == sum(name.endswith(".png") for _, _, name in recorded(done.output)) > 0


def test_pictures_for_trying_a_model_leave_bad_ones_out(source, tmp_path):
    found = open_pictures(DataFields(source=source, on_bad_image="skip"))
    assert len(save_examples(found, tmp_path / "examples", count=20)) == 19


# ---------------------------------------------------------------------------------------------- evaluation and words
def test_a_run_folder_is_evaluated_as_it_was_trained(run, source, tmp_path, caplog):
    results = evaluate(run, output=tmp_path / "scores", batch_size=8)
    assert (results["n"], results["left_out"]) == (19, [7])
    assert sum("left out: row 7 of split test (207.png)" in entry.message for entry in caplog.records) == 1
    assert read_predictions(tmp_path / "scores" / "predictions.parquet").scores.left_out == (7,)
    with pytest.raises(BadImageError, match=r"row 7 of split test \(207\.png\)"):
        evaluate(run, on_bad_image="raise")
    with pytest.raises(BadImageError, match=r"row 7 of split test"):
        evaluate(run, data=source)


def test_the_command_says_how_many_are_left_out(run, source, capsys):
    assert main(["evaluate", str(run), "--data", source, "--on-bad-image", "skip", "--flip"]) == 0
    said = capsys.readouterr().out
    assert "on 19 pictures" in said
    assert "1 pictures that cannot be decoded are left out" in said


def test_another_word_is_refused_with_those_there_are(source):
    with pytest.raises(ValueError, match=r"data\.on_bad_image is 'ignore'; expected one of raise, skip"):
        recipe_of(source, data__on_bad_image="ignore")
    with pytest.raises(ValueError, match=r"data\.on_bad_image is 'ignore'; expected one of raise, skip"):
        open_pictures(DataFields(source=source, on_bad_image="ignore"))
