"""Reading a report as a browser does, and finding numbers in it that no record holds."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
from report_runs import CURVES

from vit_hf.data.mixing import PairMixing
from vit_hf.data.pictures import open_pictures
from vit_hf.evaluation.analysis import analyse
from vit_hf.evaluation.predictions import PREDICTIONS, read_predictions
from vit_hf.sharing.report import write_report
from vit_hf.sharing.report.confusion import confusion_counts
from vit_hf.training.recipe import Recipe

VOID = {"meta", "link", "img", "source", "wbr"}


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


def report(run, output=None, **options) -> Page:
    found = write_report(run, output=output or Path(run).parent / "out", **options)
    return Page(found.page.read_text(encoding="utf-8"))


def recorded_numbers(folder: Path) -> set[str]:
    """Every number of the records, in each of the forms that a page may give it."""
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
