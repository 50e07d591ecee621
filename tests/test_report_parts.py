"""What a report works out itself: the order of confused classes, the surest mistakes, what training showed."""

import itertools
import os

import numpy as np
import pytest
import torch
from report_pages import opened, report
from report_runs import FIELDS, NAMES, make_scores, without_drawing, write_many, write_pictures, write_run

from vit_hf import VitHfImageProcessor
from vit_hf.data.loading import TrainRows, build_train_loader
from vit_hf.data.mixing import PairMixing
from vit_hf.data.order import Address
from vit_hf.data.pictures import DataFields, open_pictures
from vit_hf.data.transforms import TrainTransform
from vit_hf.evaluation.predictions import PREDICTIONS, read_predictions
from vit_hf.evaluation.scoring import Scores
from vit_hf.inspection.attention import model_view
from vit_hf.sharing.report import write_report
from vit_hf.sharing.report.augmentation import Preview
from vit_hf.sharing.report.confusion import (
    add_up,
    confusion_counts,
    cut_into_groups,
    group_known,
    order_classes,
    top_confusions,
)
from vit_hf.sharing.report.gallery import most_confident_mistakes
from vit_hf.training.recipe import Recipe


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


# ---------------------------------------------------------------------------------------------- confusions
def planted(classes: int = 24, size: int = 4, seed: int = 0) -> tuple[np.ndarray, list[set[int]]]:
    """Counts whose mistakes lie within groups of classes that are scattered over the numbers."""
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(classes)
    groups = [set(shuffled[start : start + size].tolist()) for start in range(0, classes, size)]
    counts = generator.poisson(0.1, (classes, classes))
    for group in groups:
        for i, j in itertools.permutations(group, 2):
            counts[i, j] += generator.poisson(6)
    np.fill_diagonal(counts, 50)
    return counts, groups


def test_counts_add_up_to_the_samples_and_the_trace_to_what_is_right():
    scores = make_scores(torch.arange(60) % 6, 6)
    counts = confusion_counts(scores)
    assert counts.sum() == 60
    assert np.trace(counts) == round(scores.measure()["top1"] * 60)
    assert counts[0, 1] >= 1  # the tie of the first sample counts against it
    tied = confusion_counts(Scores(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])))
    assert np.trace(tied) == 0
    assert tied.sum() == 4


def test_confused_classes_are_put_side_by_side():
    counts, groups = planted()
    order = order_classes(counts)
    assert sorted(order) == list(range(24))
    assert [set(order[start : start + 4]) for start in range(0, 24, 4)] == sorted(
        groups, key=lambda group: min(order.index(i) for i in group)
    )
    arranged = counts[np.ix_(order, order)]
    assert arranged.sum() == counts.sum()
    assert np.trace(arranged) == np.trace(counts)


def test_classes_without_mistakes_keep_their_order():
    assert order_classes(np.diag([3, 1, 2])) == [0, 1, 2]
    counts = np.diag([5] * 6)
    counts[4, 1] = 2
    assert order_classes(counts) == [1, 4, 0, 2, 3, 5]


def test_the_cut_keeps_the_most_mistakes_together_of_all_cuts():
    counts, _ = planted(12, 3, seed=3)
    order, names = order_classes(counts), [str(i) for i in range(12)]
    mistakes = counts - np.diag(np.diag(counts))
    found = cut_into_groups(counts, order, 3, names)
    assert [index for group in found for index in group.members] == order

    def kept(edges) -> int:
        runs = [order[a:b] for a, b in itertools.pairwise([0, *edges, 12])]
        return sum(int(mistakes[np.ix_(run, run)].sum()) for run in runs)

    allowed = [e for e in itertools.combinations(range(1, 12), 2) if 2 <= e[0] <= 8 and 2 <= e[1] - e[0] <= 8
               and 2 <= 12 - e[1] <= 8]  # fmt: skip
    sizes = [len(group.members) for group in found]
    assert kept([sizes[0], sizes[0] + sizes[1]]) == max(map(kept, allowed))


@pytest.mark.parametrize(("classes", "groups"), [(1000, 20), (101, 14), (31, 14), (7, 20)])
def test_groups_hold_every_class_once_and_keep_all_counts(classes, groups):
    generator = np.random.default_rng(0)
    counts = generator.poisson(0.05, (classes, classes)) + np.diag(generator.poisson(20, classes))
    found = cut_into_groups(counts, order_classes(counts), groups, [f"n{i}" for i in range(classes)])
    assert sorted(index for group in found for index in group.members) == list(range(classes))
    assert len(found) == min(groups, classes)
    whole = add_up(counts, found)
    assert whole.sum() == counts.sum()
    inside = counts[np.ix_(found[0].members, found[0].members)].sum()
    assert whole[0, 0] == inside


def test_known_groups_are_kept_and_ordered():
    counts, groups = planted()
    names = [f"group {next(i for i, group in enumerate(groups) if index in group)}" for index in range(24)]
    found = group_known(names, counts)
    assert {group.name: set(group.members) for group in found} == {f"group {i}": g for i, g in enumerate(groups)}


def test_the_most_frequent_mistakes_come_first():
    counts = np.array([[5, 2, 0], [2, 0, 2], [0, 1, 9]])
    assert top_confusions(counts, 3) == [(1, 0, 2, 4), (1, 2, 2, 4), (0, 1, 2, 7)]


@pytest.mark.parametrize("classes", [31, 300])
def test_many_classes_are_grouped_in_the_picture_and_named_in_the_table(tmp_path, classes):
    page = report(write_many(tmp_path / "run", classes, samples=12 * classes))
    groups = page.table("no.", "group", "classes")
    members = [name for row in groups for name in row[2].split(", ")]
    assert sorted(members) == sorted(f"class number {index}" for index in range(classes))
    assert len(page.table("class", "taken for", "pictures")) == 12
    assert len(page.table("class", "right", "of", "share", "95% interval")) == classes
    assert {"worst_classes.png", "best_classes.png"} <= set(os.listdir(tmp_path / "out"))


# ---------------------------------------------------------------------------------------------- pictures
def test_the_gallery_holds_the_surest_mistakes(run):
    scores = read_predictions(run / PREDICTIONS).scores
    probabilities = np.exp(scores.logits.double().numpy())
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    expected = []
    for row, (line, label) in enumerate(zip(probabilities, scores.labels.tolist(), strict=True)):
        others = [value if place != label else -1 for place, value in enumerate(line)]
        if max(others) >= line[label]:
            expected.append((-max(others), row, label, int(np.argmax(others)), line[label]))
    expected.sort()
    found = most_confident_mistakes(scores, 5)
    assert [(m.row, m.true, m.named) for m in found] == [entry[1:4] for entry in expected[:5]]
    assert [m.probability for m in found] == pytest.approx([-entry[0] for entry in expected[:5]])
    assert [m.true_probability for m in found] == pytest.approx([entry[4] for entry in expected[:5]])
    right = Scores(torch.eye(3), torch.arange(3))
    assert most_confident_mistakes(right) == []


def test_the_gallery_shows_the_pictures_of_those_rows(run, pictures, tmp_path):
    folder = write_report(run, output=tmp_path / "out").page.parent
    (mistake,) = most_confident_mistakes(read_predictions(run / PREDICTIONS).scores, 1)
    name, place = NAMES[mistake.true], mistake.row % 6
    original, shown = opened(pictures / "test" / name / f"{place}.png"), opened(folder / "mistake_01.png")
    assert np.abs(np.asarray(original, int) - np.asarray(shown, int)).max() <= 1
    assert opened(folder / "mistake_01_attention.png").size == (224, 149)


def test_the_preview_is_what_the_loader_of_the_run_gives(run, pictures):
    recipe, found = Recipe.from_yaml(run / "recipe.yaml"), open_pictures(DataFields(str(pictures)))
    processor = VitHfImageProcessor.from_pretrained(run)
    preview = Preview(found.train, found.columns, recipe, processor)
    transform = TrainTransform(recipe.augmentation, processor)
    mixing = PairMixing(recipe.augmentation, num_classes=len(NAMES), seed=recipe.seed)
    loader, prepare = build_train_loader(
        found.train, **found.columns, transform=transform, batch_size=8, accumulation=1, num_steps=1,
        seed=recipe.seed, workers=0, draw=mixing.draw,
    )  # fmt: skip
    batch = prepare(next(iter(loader)), torch.device("cpu"))
    pixels, targets = mixing.apply(batch["pixel_values"], batch["labels"], batch)
    for place, (mix, view) in enumerate(zip(preview.mixes(), model_view(processor, pixels[::2]), strict=True)):
        assert (np.asarray(mix.mixed) == np.asarray(view)).all()
        assert mix.labels == tuple(batch["labels"][2 * place : 2 * place + 2].tolist())
        if mix.labels[0] != mix.labels[1]:
            assert mix.share == pytest.approx(targets[2 * place, mix.labels[0]].item())
    cached = prepare.pixels is not None
    rows = TrainRows(found.train, **found.columns, transform=transform, seed=recipe.seed, cached=cached)
    shown = preview.versions()
    assert len({version.label for version in shown}) == 4
    for version in shown:
        drawn = prepare(rows.__getitems__([Address(7, 2, version.row)]), torch.device("cpu"))
        expected = model_view(processor, drawn["pixel_values"])[0]
        assert (np.asarray(version.augmented[2]) == np.asarray(expected)).all()
        assert any((np.asarray(picture) != np.asarray(version.plain)).any() for picture in version.augmented)
