"""The README.md of a data set repo, rendered from the record that `describe_source` made of the data."""

from collections.abc import Iterable
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

_SIZES = ((10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M"), (10**8, "100M"))
_MAX_CLASSES = 40
_SHOWN_CLASSES = 20


def render_data_card(record: dict[str, Any], repo: str) -> str:
    """Render the card of a pushed image set.

    Args:
        record: what `describe_source` returned.
        repo: owner/name, for the commands that load it.

    Returns:
        Markdown with the Hub's metadata block; `datasets` adds the features and the files when it pushes the data.
    """
    data = DatasetCardData(
        license=record["license"],
        task_categories=["image-classification"],
        size_categories=[_size_category(sum(split["n"] for split in record["splits"].values()))],
        pretty_name=repo.split("/")[-1],
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{_body(record, repo)}"
    return str(DatasetCard(text))


def _body(record: dict[str, Any], repo: str) -> str:
    pictures, splits = record["pictures"], record["splits"]
    total = sum(split["n"] for split in splits.values())
    image, label = record["image_column"], record["label_column"]
    first = "train" if "train" in splits else next(iter(splits))
    return f"""# {repo.split("/")[-1]}

{total:,} pictures in {len(record["label_names"]):,} classes, for image classification. {_origin(record)}

## Splits

| split | pictures | fingerprint |
|---|---|---|
{_lines(f"| {name} | {split['n']:,} | `{split['fingerprint']}` |" for name, split in splits.items())}

The fingerprint is a SHA-256 of the number of rows, the label names, all labels and the bytes of up to 1,000 evenly
spaced pictures; `vit-hf train` writes the same one into its record of a split that it uses whole.{_left_out(record)}

## Columns

- `{image}`: the picture, its file's bytes as they were: not encoded again.
- `{label}`: the class, 0 to {len(record["label_names"]) - 1}.{"".join(_further(record))}

## Classes

{_classes(record)}

## Pictures

Measured on all of them, as stored (EXIF orientation not applied).

| | smallest | median | largest |
|---|---|---|---|
{_lines(_spread_row(name, pictures[name]) for name in ("width", "height", "bytes"))}

- Formats: {_counts(pictures["formats"])}. Modes (Pillow): {_counts(pictures["modes"])}. Together \
{pictures["total_bytes"]:,} bytes.
- What cameras and programs wrote into the files is still there: EXIF in {pictures["with_exif"]:,}, the place (GPS) \
in {pictures["with_gps"]:,}.
- {pictures["different"]:,} of the {total:,} pictures differ in their bytes; {pictures["in_several_splits"]:,} occur \
in more than one split.

## Use

```python
from datasets import load_dataset

data = load_dataset("{repo}")
print(data["{first}"][0])
```

With `pip install vit-hf`, train on it by a recipe (`vit-hf recipes` lists them):

```bash
vit-hf train RECIPE --data {repo}
```
"""


def _origin(record: dict[str, Any]) -> str:
    kinds = {
        "digits": "scikit-learn's handwritten digits",
        "cifar": f"made from the archive `{record['source']}`",
        "saved": f"made from the saved data set `{record['source']}`",
        "parquet": f"made from the Parquet files of `{record['source']}`",
        "folder": f"made from the class folders of `{record['source']}`",
        "hub": f"made from `{record['source']}` on the Hub at commit `{record['revision']}`",
    }
    return kinds[record["kind"]][0].upper() + kinds[record["kind"]][1:] + "."


def _left_out(record: dict[str, Any]) -> str:
    parts = [f"split `{name}` has no labels" for name in record["left_out_splits"]]
    parts += [f"column `{name}`" for name in record["left_out_columns"]]
    return f"\n\nLeft out of the source: {', '.join(parts)}." if parts else ""


def _further(record: dict[str, Any]) -> list[str]:
    return [f"\n- `{name}`: a further label." for name in record["columns"][2:]]


def _classes(record: dict[str, Any]) -> str:
    """A table of all classes, or of the first of many, with the number of pictures in each split."""
    names, splits = record["label_names"], record["splits"]
    shown = names if len(names) <= _MAX_CLASSES else names[:_SHOWN_CLASSES]
    lines = ["| label | class | " + " | ".join(splits) + " |", "|" + "---|" * (len(splits) + 2)]
    for label, name in enumerate(shown):
        counts = " | ".join(f"{split['per_class'][label]:,}" for split in splits.values())
        lines.append(f"| {label} | {_escape(name)} | {counts} |")
    if len(shown) < len(names):
        lines += [
            "",
            f"… and {len(names) - len(shown):,} more; all names are in the features of `{record['label_column']}`.",
        ]
    lines.append("")
    for name, split in splits.items():
        counts = split["per_class"]
        empty = f"; {counts.count(0):,} have none" if 0 in counts else ""
        lines.append(f"- {name}: {min(counts):,} to {max(counts):,} pictures a class{empty}")
    return "\n".join(lines)


def _escape(name: str) -> str:
    """Keep a class name within its cell of the table, and from being read as HTML."""
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "&#96;"), ("\n", " "), ("\r", " ")):
        name = name.replace(sign, safe)
    return name


def _spread_row(name: str, spread: dict[str, float]) -> str:
    return f"| {name} | {spread['min']:,} | {spread['median']:,.10g} | {spread['max']:,} |"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _size_category(total: int) -> str:
    """The Hub's word for a number of rows."""
    below = "n<1K"
    for (bound, name), (_, larger) in zip(_SIZES, (*_SIZES[1:], (0, "")), strict=True):
        if total >= bound:
            below = f"{name}<n<{larger}" if larger else "100M<n<1B"
    return below
