"""A run as one page: `write_report` makes an HTML file that asks for nothing, and its pictures as PNG files beside it.

`material` finds what there is, `scores`, `seen` and `facts` write the sections, `confusion`, `gallery` and
`augmentation` work out what they show, `page` and `css` are how it looks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...evaluation.output import check_output, published
from ...image_processing_vit_hf import VitHfImageProcessor
from ...masked_vit_hf import VitHfForMaskedImageModeling
from ...modeling_vit_hf import VitHfForImageClassification
from ...training.progress import quiet_transformers
from . import facts, scores, seen
from .material import Material, find_pictures, read_material
from .page import Pictures, Section, render

__all__ = ["Report", "write_report"]

REPORT = "report.html"


@dataclass(frozen=True)
class Report:
    """What was written."""

    page: Path
    pictures: int
    """PNG files beside the page."""
    absent: str
    """Why pictures of the data are not in it; empty if they are."""


def write_report(
    run: str | Path,
    *,
    output: str | Path | None = None,
    data: str | None = None,
    scores_of: str | Path | None = None,
    on_step: Callable[[str], None] = lambda words: None,
) -> Report:
    """Write the report of a run, or of any model folder; the folder appears whole or not at all.

    The same run gives the same bytes, on one machine with one number of threads.

    Args:
        run: a finished run, or a model folder.
        output: new folder for report.html and its PNG files; None: `report` in the run's folder.
        data: what `load_source` takes; None for the place that the recipe names. Without it, what shows pictures is
            left out, and the report says so.
        scores_of: a folder of `vit-hf evaluate --output`, instead of the run's own scores.
        on_step: called with a few words before each step.

    Raises:
        FileExistsError: `output` exists and is not an empty folder.
        FileNotFoundError: no model folder, or no scores.
        ValueError: a record cannot be read, records disagree, or `data` is not what was scored.
    """
    folder = Path(output) if output is not None else Path(run) / "report"
    check_output(folder)
    on_step("reading the records")
    material = read_material(run, scores_of)
    on_step("opening the pictures")
    material = find_pictures(material, data)
    pictures = Pictures()
    sections = _sections(material, pictures, on_step)
    on_step("writing")
    page = render(f"{facts.title_of(material.run)} - vit-hf report", facts.header(material), sections)
    with published(folder) as made:
        (made / REPORT).write_text(page, encoding="utf-8")
        for name, png in pictures.files.items():
            (made / f"{name}.png").write_bytes(png)
    return Report(folder / REPORT, len(pictures.files), material.absent)


def _sections(material: Material, pictures: Pictures, on_step: Callable[[str], None]) -> list[Section]:
    """Return the sections that fit the kind of the model."""
    run = material.run
    parts = [scores.scores_section(material, facts.scored_facts(material))]
    if run.results is not None:
        on_step("learning curves")
        parts.append(scores.learning_section(material, pictures))
    if run.is_classifier and material.measured is not None:
        on_step("calibration")
        parts.append(scores.calibration_section(material, pictures))
        on_step("confusions")
        parts.append(scores.confusion_section(material, pictures))
        on_step("classes")
        parts.append(scores.classes_section(material, pictures))
    kind = VitHfForMaskedImageModeling if run.is_masked else VitHfForImageClassification
    with quiet_transformers():
        model = kind.from_pretrained(run.folder).float().eval()
    processor = VitHfImageProcessor.from_pretrained(run.folder)
    if isinstance(model, VitHfForImageClassification) and run.is_classifier and material.measured is not None:
        on_step("mistakes")
        parts.append(seen.mistakes_section(material, model, processor, pictures))
    if run.results is not None:
        on_step("augmentation")
        parts.append(seen.augmentation_section(material, processor, run.config.patch_hw, pictures))
    on_step("positions and filters")
    parts.append(seen.network_section(material, model, processor, pictures))
    on_step("training")
    parts.append(facts.training_section(material, pictures))
    return parts
