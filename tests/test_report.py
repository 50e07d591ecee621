"""The page of a run: each number has its record, each word is only a word, and it asks for nothing."""

import base64
import itertools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from report_runs import (
    CURVES,
    HOSTILE,
    make_scores,
    small,
    with_drawing,
    without_drawing,
    write_many,
    write_pictures,
    write_run,
)

from vit_hf import VitHfForImageClassification, VitHfImageProcessor
from vit_hf.cli import main
from vit_hf.data.loading import Address, TrainRows, build_train_loader
from vit_hf.data.mixing import PairMixing
from vit_hf.data.pictures import DataFields, open_pictures
from vit_hf.data.transforms import TrainTransform
from vit_hf.evaluation.predictions import PREDICTIONS, read_predictions
from vit_hf.evaluation.run import evaluate
from vit_hf.evaluation.scoring import Scores
from vit_hf.evaluation.views import Views
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

NAMES = [f"kind {letter}" for letter in "abcdef"]
VOID = {"meta", "link", "img", "source", "wbr"}


# ---------------------------------------------------------------------------------------------- reading a page
class Page(HTMLParser):
    """What a browser makes of a page: elements with attributes, and the words that are seen."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.cells: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.cells.append([])
        elif tag == "tr":
            self.cells[-1].append([])
        elif tag in ("td", "th"):
            self.cells[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID:  # Python 3.10 ends some of them, which browsers pass over
            return
        assert self.open.pop() == tag
        self.words.append(" " if tag in ("b", "bdi", "span", "code", "a") else "\n")

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def table(self, *head: str) -> list[list[str]]:
        (found,) = [rows[1:] for rows in self.cells if tuple(rows[0]) == head]
        return found


def opened(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as picture:
        return picture.convert("RGB")


@pytest.fixture(autouse=True, scope="module")
def _plots_are_dots():
    with without_drawing():
        yield


def report(run, output=None, **options) -> Page:
    found = write_report(run, output=output or Path(run).parent / "out", **options)
    return Page(found.page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "secret_place" / "animals", NAMES)


@pytest.fixture(scope="module")
def run(tmp_path_factory, pictures):
    fields = {"augmentation.flip": True, "augmentation.rotation": 20.0, "augmentation.mixup_alpha": 0.8,
              "augmentation.cutmix_alpha": 1.0, "optimization.batch_size": 8}  # fmt: skip
    return write_run(tmp_path_factory.mktemp("runs") / "mine", pictures, fields=fields)


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """A report with all there can be, and the folder it lies in."""
    folder = tmp_path_factory.mktemp("whole") / "report"
    with with_drawing(dpi=40):
        return report(run, folder), folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report of classes, data and recipe that try to be more than words."""
    root = tmp_path_factory.mktemp("hostile")
    place = write_pictures(root / "<b>data</b>".replace("/", "\u2215"), HOSTILE, train=1, test=2)
    evil = '"><script>alert(1)</script>'
    changes = {"device": evil, "started": evil, "git_commit": evil, "versions": {evil: evil}, "recipe": evil,
               "command": f"vit-hf train {evil} --data /home/me/x --hub hf_abcdefghijklmnop"}  # fmt: skip
    run = write_run(root / "run", place, fields={"augmentation.mixup_alpha": 0.5}, **changes)
    return report(run, root / "out"), root / "out"


# ---------------------------------------------------------------------------------------------- numbers
def test_the_scores_are_those_of_the_predictions(run, whole):
    page, _ = whole
    scores, record = read_predictions(run / PREDICTIONS).scores, json.loads((run / "results.json").read_text())
    logits, labels = scores.logits.double().numpy(), scores.labels.numpy()
    truth = logits[np.arange(len(labels)), labels]
    right = (logits >= truth[:, None]).sum(axis=1) == 1
    top5 = ((logits >= truth[:, None]).sum(axis=1) <= 5).mean()
    loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - truth)
    balanced = np.mean([right[labels == label].mean() for label in range(len(NAMES))])
    assert f"{right.sum()} of {len(labels)} pictures named rightly." in page.text
    low, high = record["intervals"]["top1"]
    assert f"95% interval: {low:.2%} to {high:.2%}." in page.text
    for name, value in (("top-1 accuracy", f"{right.mean():.2%}"), ("top-5 accuracy", f"{top5:.2%}"),
                        ("balanced accuracy", f"{balanced:.2%}"), ("cross-entropy", f"{loss:.4f}")):  # fmt: skip
        assert re.search(rf"{re.escape(value)}\s+{name}|{name}\s+{re.escape(value)}", page.text), name


def test_tables_of_classes_and_mistakes_are_counted_by_hand(run, whole):
    page, _ = whole
    scores = read_predictions(run / PREDICTIONS).scores
    logits, labels = scores.logits.clone(), scores.labels
    counts = np.zeros((len(NAMES), len(NAMES)), int)
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        others = [value if place != label else -np.inf for place, value in enumerate(row)]
        counts[label, label if row[label] > max(others) else int(np.argmax(others))] += 1
    shown = {row[0]: row[1:4] for row in page.table("class", "right", "of", "share", "95% interval")}
    assert shown == {
        name: [str(counts[i, i]), str(counts[i].sum()), f"{counts[i, i] / counts[i].sum():.2%}"]
        for i, name in enumerate(NAMES)
    }
    top = page.table("class", "taken for", "pictures")
    numbers = [int(row[2].split()[0]) for row in top]
    assert numbers == sorted((counts - np.diag(np.diag(counts))).ravel().tolist(), reverse=True)[: len(numbers)]
    for true, taken, words in top:
        i, j = NAMES.index(true), NAMES.index(taken)
        assert words == f"{counts[i, j]} of {counts[i].sum()}"


def test_bins_are_those_of_the_record(run, whole):
    bins = json.loads((run / "results.json").read_text())["calibration"]["bins"]
    shown = whole[0].table("confidence", "pictures", "mean confidence", "named rightly")
    assert [row[1:] for row in shown] == [
        [str(n), f"{confidence:.2%}", f"{accuracy:.2%}"] for n, confidence, accuracy in bins if n
    ]


def recorded_numbers(folder: Path) -> set[str]:
    """Every number of the records, in each of the forms that a page may give it."""
    from vit_hf.evaluation.analysis import analyse

    predictions = read_predictions(folder / PREDICTIONS) if (folder / PREDICTIONS).is_file() else None
    texts = [(folder / name).read_text() for name in ("recipe.yaml", "config.json", "preprocessor_config.json")]
    values: list = [json.loads((folder / "results.json").read_text()), *CURVES]
    if predictions is not None:
        analysed = analyse(predictions.scores, predictions.label_names)
        values.append(analysed)
        probabilities, labels = predictions.scores.logits.double().softmax(1), predictions.scores.labels
        wrong = (probabilities.argmax(1) != labels).nonzero()[:, 0]
        values += [probabilities[wrong].max(1).values.tolist(), probabilities[wrong, labels[wrong]].tolist()]
        values += [len(labels), wrong.tolist(), probabilities[0].tolist(), 0]  # row 0 is a tie
        counts = confusion_counts(predictions.scores)
        bins = analysed["calibration"]["bins"]
        total = sum(row[0] for row in bins)
        values += [sum(row[0] * (row[place] or 0) for row in bins) / total for place in (1, 2)]
        values += [
            counts.tolist(),
            counts.sum(axis=1).tolist(),
            int(counts.sum() - np.trace(counts)),
            int(np.trace(counts)),
        ]
        values += [(np.diag(counts) / np.maximum(counts.sum(axis=1), 1)).tolist(), len(counts)]
        values += [place / len(bins) for place in range(len(bins) + 1)]
    recipe, pictures = (
        Recipe.from_yaml(folder / "recipe.yaml"),
        open_pictures(Recipe.from_yaml(folder / "recipe.yaml").data),
    )
    values.append(recipe.to_dict())
    if recipe.augmentation.mixup_alpha:
        mixing = PairMixing(recipe.augmentation, num_classes=9, seed=recipe.seed)
        shares = mixing.draw(list(range(8)), 16, 24)["mix_share"].tolist()
        values += [shares, [1 - share for share in shares]]
    numbers: list[float] = []

    def collect(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(key), collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)
        elif isinstance(value, str):
            texts.append(value)
        elif value is not None:
            numbers.append(value)

    collect(values)
    forms = ("{:.2%}", "{:.0%}", "{:.4f}", "{:.3f}", "{:,.0f}", "{:,}", "{:.4g}", "{:.3g}", "{}")
    allowed = {form.format(round(number, 1) if form == "{:,}" else number) for number in numbers for form in forms}
    seconds = json.loads((folder / "results.json").read_text())["seconds"]
    allowed |= {f"{seconds / 60:.1f}", *(found for text in texts for found in NUMBER.findall(text))}
    allowed |= {
        found for name in [*pictures.source.label_names, str(len(pictures.test))] for found in NUMBER.findall(name)
    }
    return allowed


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?%?")
OWN = {"95%", "0%", "100%", "0", "1", "2", "5", "16", "32", "255"}  # of the page's own sentences


def invented(page: Page, folder: Path) -> set[str]:
    """Numbers that are seen or read out, and are in no record."""
    words = page.text + " " + " ".join(str(image["alt"]) for image in page.all("img"))
    words = re.sub(r"[0-9a-f]{16,}", "", words)  # fingerprints
    words = re.sub(r"top-[15]|SHA-256", "", words)
    return {found.rstrip(",") for found in NUMBER.findall(words)} - OWN - recorded_numbers(folder)


def test_every_number_is_in_the_records_and_an_invented_one_is_caught(run, whole):
    page, folder = whole
    assert invented(page, run) == set()
    text = (folder / "report.html").read_text(encoding="utf-8")
    top1 = f"{json.loads((run / 'results.json').read_text())['top1']:.2%}"
    assert invented(Page(text.replace(top1, "12.34%")), run) == {"12.34%"}
    assert invented(Page(text.replace("4,321 steps", "4,322 steps")), run) == {"4,322"}


def test_a_record_that_says_otherwise_than_the_predictions_is_refused(run, tmp_path, pictures):
    folder = write_run(tmp_path / "run", pictures, top1=0.987654)
    with pytest.raises(ValueError, match=r"top1 0\.987654, but predictions\.parquet gives"):
        report(folder)
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_what_is_recorded_of_the_run_is_said(whole):
    page, _ = whole
    for said in (
        "An image classifier with 6 classes and",
        "4,321 steps (12.5 epochs), 8 pictures a step",
        "678 s (11.3 min), everything included",
        "111 to 222 pictures a second",
        "Some GPU , 2 processes",
        "0.01234 kWh",
        "2026-01-02T03:04:05+00:00",
        "0123456789abcdef",
        "the best on the validation pictures",
        "resized to 16 x 24 pixels (bilinear)",
    ):
        assert said in page.text, said
    assert page.table("split", "pictures", "fingerprint, first 16 digits")[0][:2] == ["train", "18"]
    assert page.table("package", "version") == [["torch", "2.12.0"], ["transformers", "5.20.0"]]


def test_plots_say_their_numbers_to_who_cannot_see_them(whole, run):
    record = json.loads((run / "results.json").read_text())
    alts = [str(image["alt"]) for image in whole[0].all("img")]
    assert all(alts)
    assert any("training loss 2.3456 at epoch 1, 1.3456 at epoch 2; validation loss 2.1234" in alt for alt in alts)
    assert any(f"error {record['calibration']['expected_calibration_error']:.4f}." in alt for alt in alts)
    wrong = record["n"] - round(record["top1"] * record["n"])
    assert any(f"of 6 classes and {record['n']} pictures, {wrong} of them named wrongly" in alt for alt in alts)


# ---------------------------------------------------------------------------------------------- the page
def test_headings_are_in_order_and_the_links_lead_somewhere(whole):
    page, _ = whole
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    anchors = {attributes.get("id") for _, attributes in page.elements}
    links = [link["href"] for link in page.all("a")]
    assert len(links) == 9
    assert all(link[0] == "#" and link[1:] in anchors for link in links)
    assert page.all("html") == [{"lang": "en"}]
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_every_picture_lies_beside_the_page_and_in_it(whole):
    page, folder = whole
    within = [str(image["src"]) for image in page.all("img")] + [str(image["srcset"]) for image in page.all("source")]
    shown = sorted(base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True) for uri in within)
    assert shown == sorted(path.read_bytes() for path in folder.glob("*.png"))
    assert {path.suffix for path in folder.iterdir()} == {".png", ".html"}
    for image in page.all("img"):
        assert int(image["width"]) > 0


def test_each_plot_has_a_rendering_for_either_theme(whole):
    page, folder = whole
    dark = list(folder.glob("*_dark.png"))
    assert len(dark) == len(page.all("source")) == len(page.all("picture")) > 5
    assert {source["media"] for source in page.all("source")} == {"screen and (prefers-color-scheme: dark)"}
    for path in dark:
        light = path.with_name(path.name.replace("_dark", ""))
        corners = [opened(file).getpixel((0, 0)) for file in (light, path)]
        assert corners == [(255, 255, 255), (0x16, 0x18, 0x1D)]
        assert opened(light).size == opened(path).size


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    for name in ("first", "again"):
        write_report(run, output=tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_no_path_of_the_machine_is_in_it(whole, run):
    text = (whole[1] / "report.html").read_text(encoding="utf-8")
    for word in (str(run), str(run.parent), "secret_place", "somebody", "/home", str(Path.home()), "/tmp"):
        assert word not in text, word
    assert "vit-hf train mine.yaml --data pictures" in Page(text).text


# ---------------------------------------------------------------------------------------------- foreign words
ALLOWED = {
    "html", "head", "meta", "title", "link", "style", "body", "header", "nav", "main", "section", "p", "h1", "h2", "h3",
    "div", "span", "bdi", "wbr", "b", "small", "ul", "li", "a", "dl", "dt", "dd", "figure", "picture", "source", "img",
    "figcaption", "table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre", "code",
}  # fmt: skip


def test_no_word_of_a_record_becomes_more_than_a_word(hostile):
    page, folder = hostile
    assert {tag for tag, _ in page.elements} <= ALLOWED
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "srcset", "href"):
                assert re.match(r"data:image/png;base64,|data:,$|#[a-z]+$", str(value)), value
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "onerror=alert" in text  # as a word
    assert "hf_abcdefghijklmnop" not in text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b\x0c\x0e-\x1f]", text)
    rows = page.table("class", "right", "of", "share", "95% interval")
    assert len(rows) == len(HOSTILE)
    assert "<img src=x onerror=alert(1)>" in {row[0] for row in rows}
    assert max(len(row[0]) for row in rows) == 80  # cut off


def test_the_policy_of_the_page_forbids_all_but_its_own_style_and_pictures(whole):
    (policy,) = [meta["content"] for meta in whole[0].all("meta") if meta.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules == {"default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data:", "base-uri": "'none'",
                     "form-action": "'none'"}  # fmt: skip
    (style,) = re.findall("<style>(.*?)</style>", (whole[1] / "report.html").read_text(encoding="utf-8"), re.S)
    assert not re.search(r"url\(|@import|@font-face|expression", style)


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
    monkeypatch.setattr("vit_hf.sharing.report.sync", lambda folder: (_ for _ in ()).throw(OSError("disk full")))
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


def test_the_gallery_shows_the_pictures_of_those_rows(run, whole, pictures):
    _, folder = whole
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
    loader = build_train_loader(
        found.train, **found.columns, transform=transform, batch_size=8, accumulation=1, num_steps=1,
        seed=recipe.seed, workers=0, draw=mixing.draw,
    )  # fmt: skip
    batch = next(iter(loader))
    pixels, targets = mixing.apply(batch["pixel_values"], batch["labels"], batch)
    for place, (mix, view) in enumerate(zip(preview.mixes(), model_view(processor, pixels[::2]), strict=True)):
        assert (np.asarray(mix.mixed) == np.asarray(view)).all()
        assert mix.labels == tuple(batch["labels"][2 * place : 2 * place + 2].tolist())
        if mix.labels[0] != mix.labels[1]:
            assert mix.share == pytest.approx(targets[2 * place, mix.labels[0]].item())
    rows = TrainRows(found.train, **found.columns, transform=transform, seed=recipe.seed)
    shown = preview.versions()
    assert len({version.label for version in shown}) == 4
    for version in shown:
        expected = model_view(processor, rows[Address(7, 2, version.row)]["pixel_values"][None])[0]
        assert (np.asarray(version.augmented[2]) == np.asarray(expected)).all()
        assert any((np.asarray(picture) != np.asarray(version.plain)).any() for picture in version.augmented)
