"""The page of a run: each number has its record, each word is only a word, and it asks for nothing."""

import base64
import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from report_pages import Page, invented, opened, report
from report_runs import (
    FIELDS,
    HOSTILE,
    NAMES,
    with_drawing,
    without_drawing,
    write_pictures,
    write_run,
)

from vit_hf.evaluation.predictions import PREDICTIONS, read_predictions
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
        "41.36% of the 989.4 TFLOP/s that its maker states",
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
    assert "vit-hf train mine.yaml --data pictures" in " ".join(Page(text).text.split())


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
