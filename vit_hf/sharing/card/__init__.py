"""Model cards rendered from records: each number is one of `results.json`, `recipe.yaml`, `config.json` or the receipt.

`records` reads the folders, `metadata` makes what the Hub reads, `results`, `superclasses` and `sections` write what
people read, `markdown` keeps foreign words from being more than words.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from .metadata import card_metadata, eval_result_entries
from .records import read_records, read_runs, stated_in_card
from .results import CURVES, calibration_section, classes_section, curves_section, results_section
from .sections import (
    citation_section,
    conversion_section,
    data_section,
    license_section,
    limits_section,
    opening,
    preprocessing_section,
    training_section,
    use_section,
    versions_section,
)
from .superclasses import superclasses_section

__all__ = ["eval_result_files", "render_card", "write_card"]


def render_card(
    runs: Sequence[str | Path], *, license: str | None = None, repo: str | None = None, curves: str | None = None
) -> str:
    """Render the README.md of a model repo, or of several runs of one recipe.

    Args:
        runs: one model folder: a finished run, of whatever task, or one without results, such as converted weights;
            or several finished runs of one recipe on the same data, which give mean and spread over their seeds.
        license: the Hub's identifier, such as "apache-2.0"; None for what the README.md of the one folder states, if
            there is one.
        repo: the Hub id that the code in the card loads; None likewise.
        curves: path, from the card, of a picture of the learning curves; None for that of the one folder, if it has
            one, "" for none.

    Returns:
        Markdown with the Hub's metadata block.

    Raises:
        FileNotFoundError: a folder without config.json, or of a run that is not finished.
        ValueError: no folder, runs of different recipes (other than in the seed) or of different data, a seed twice; a
            record that cannot be read; a licence or Hub id that the Hub does not know as one.
    """
    read = read_runs(runs)
    run = read[0]
    if len(read) == 1:
        license_before, repo_before = stated_in_card(run.folder)
        license, repo = license_before if license is None else license, repo_before if repo is None else repo
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(f"license is {license!r}; expected an identifier of the Hub, such as apache-2.0, mit or other")
    if repo is not None:
        validate_repo_id(repo)
    results = [run.results for run in read if run.results is not None]
    sections = [opening(run), use_section(run, repo), limits_section(run)]
    if results:
        parts = [results_section(read, repo), curves_section(read, curves)]
        if run.is_classifier:
            parts += [classes_section(results), superclasses_section(read), calibration_section(results)]
        sections += [part for part in parts if part is not None]
        sections.append(data_section(run))
    sections.append(preprocessing_section(run))
    if results:
        sections.append(training_section(read))
    if run.receipt is not None:
        sections.append(conversion_section(run))
    sections += [versions_section(read), license_section(license), citation_section()]
    metadata = card_metadata(read, license=license, repo=repo).to_yaml()
    return str(ModelCard(f"---\n{metadata}\n---\n\n" + "\n\n".join(sections) + "\n"))


def write_card(runs: Sequence[str | Path], path: str | Path, *, license: str | None = None) -> list[Path]:
    """Write the card of runs that lie elsewhere, and beside it the learning curves of the first, as PATH.md and .png.

    Args:
        runs, license: as `render_card`.
        path: of the card, in an existing folder; it ends in .md.

    Returns:
        The files: the card, and the picture if the first run has one.

    Raises:
        FileNotFoundError, ValueError: as `render_card`; or another ending. Nothing is written.
    """
    path = Path(path)
    if path.suffix != ".md":
        raise ValueError(f"the card is to be {path}; expected a name that ends in .md")
    picture, drawn = path.with_suffix(".png"), Path(runs[0]) / CURVES if runs else Path(CURVES)
    has_curves = drawn.is_file()
    card = render_card(runs, license=license, curves=picture.name if has_curves else "")
    path.write_text(card, encoding="utf-8")
    if not has_curves:
        return [path]
    shutil.copyfile(drawn, picture)
    return [path, picture]


def eval_result_files(folder: str | Path) -> dict[str, str]:
    """Return the files of evaluation results of a model folder, path in the repo to text.

    Raises:
        FileNotFoundError, ValueError: as `render_card`.
    """
    return eval_result_entries(read_records(folder))
