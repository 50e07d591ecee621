"""The 19 tasks of VTAB (Zhai et al. 2019, arXiv 1910.04867) as a table, and how their labels are made.

Tasks, splits, labels and numbers of test pictures are those of the authors' code, google-research/task_adaptation
(`task_adaptation/data/*.py`, their tests, `scripts/run_all_tasks.sh`). Slices stand in the notation of TensorFlow
Datasets; where the code takes the first or last part of a split, so does the table, but see `vtab` for the order.

The Hub ids were read in public pages and code (`read_in`) and never loaded: the Hub could not be reached. What could
not be read there is said in the same place. A copy must have one of the columns of `labels`; any other data with them
does as well (`--data`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NATURAL, SPECIALIZED, STRUCTURED = "natural", "specialized", "structured"
GROUPS = (NATURAL, SPECIALIZED, STRUCTURED)
VEHICLES = ("Car", "Van", "Truck")  # numbers 0, 1, 2 in TensorFlow Datasets
CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)  # metres; beyond the last: no vehicle


@dataclass(frozen=True)
class LabelRule:
    """Makes the label of a picture of the value of one column."""

    column: str
    make: Callable[[Any], int] = int
    reads: str | None = None
    """Which part of the column, for people; None for the column's value as it is."""


# ---------------------------------------------------------------------------------------------- labels
def count_objects(objects: Any) -> int:
    """CLEVR: the number of objects, 3 to 10, less 3."""
    return len(_values(objects, "size")) - 3


def closest_object(objects: Any) -> int:
    """CLEVR: the distance from the camera to the closest object, in six steps; a bound belongs to the step below."""
    return _step(min(position[2] for position in _values(objects, "pixel_coords")), CLEVR_DISTANCES)


def closest_vehicle(objects: Any) -> int:
    """KITTI: the distance along the camera's axis to the closest car, van or truck: to 8 m, to 20 m, beyond, none."""
    kinds, locations = _values(objects, "type"), _values(objects, "location")
    known = (*VEHICLES, *range(len(VEHICLES)))
    distances = [place[2] for kind, place in zip(kinds, locations, strict=True) if kind in known]
    return _step(min(distances, default=1000.0), KITTI_DISTANCES)


def in_sixteen(num_values: int) -> Callable[[Any], int]:
    """dSprites: whole numbers below `num_values` in 16 equal steps."""

    def make(value: Any) -> int:
        return int(int(value) // (num_values / 16))

    return make


def _step(distance: float, bounds: tuple[float, ...]) -> int:
    """Return the number of the last bound below a distance."""
    below = np.flatnonzero(np.asarray(bounds) < distance)
    return int(below[-1]) if len(below) else -1


def _values(objects: Any, name: str) -> list[Any]:
    """Return one field of all objects, from a dict of lists or a list of dicts, the two forms of `datasets`."""
    return list(objects[name]) if isinstance(objects, dict) else [one[name] for one in objects]


READY = LabelRule("label")  # a copy that was made for the task


# ---------------------------------------------------------------------------------------------- tasks
@dataclass(frozen=True)
class VtabTask:
    """One task."""

    name: str
    group: str
    num_labels: int
    train: str
    """Where 800 pictures come from."""
    validation: str
    """Where 200 pictures come from."""
    test: str
    test_images: int
    """In the benchmark."""
    hub_id: str | None
    """A copy on the Hub; None where none with the task's splits could be found: give the data."""
    read_in: str
    """Where the id was read, and what could not be verified."""
    labels: tuple[LabelRule, ...] = field(default=(READY,))
    """The first whose column is there makes the labels."""
    config_name: str | None = None


_DPDL = "DPBayes/dpdl (experiments, label column)"
_TASKS = (
    VtabTask(
        "caltech101", NATURAL, 102, "train[:90%]", "train[90%:]", "test", 6_084, "dpdl-benchmark/caltech101",
        f"{_DPDL}; its splits were not seen",
    ),
    VtabTask(
        "cifar100", NATURAL, 100, "train[:90%]", "train[90%:]", "test", 10_000, "uoft-cs/cifar100",
        "its card: columns img, fine_label, splits of 50,000 and 10,000", (LabelRule("fine_label"), READY),
    ),
    VtabTask(
        "dtd", NATURAL, 47, "train", "validation", "test", 1_880, "dpdl-benchmark/dtd",
        f"{_DPDL}; its splits were not seen",
    ),
    VtabTask(
        "flowers102", NATURAL, 102, "train", "validation", "test", 6_149, "dpdl-benchmark/oxford_flowers102",
        f"its viewer: splits of 1.02k, 1.02k, 6.15k; {_DPDL}",
    ),
    VtabTask(
        "pets", NATURAL, 37, "train[:80%]", "train[80%:]", "test", 3_669, "dpdl-benchmark/oxford_iiit_pet",
        f"its viewer: splits of 3.68k, 3.67k; {_DPDL}",
    ),
    VtabTask(
        "sun397", NATURAL, 397, "train", "validation", "test", 21_750, "dpdl-benchmark/sun397",
        f"its viewer: splits of 76.1k, 10.9k, 21.8k; {_DPDL}",
    ),
    VtabTask(
        "svhn", NATURAL, 10, "train[:90%]", "train[90%:]", "test", 26_032, "ufldl-stanford/svhn",
        "its card: config cropped_digits, columns image, label, splits of 73,257 and 26,032",
        config_name="cropped_digits",
    ),
    VtabTask(
        "camelyon", SPECIALIZED, 2, "train", "validation", "test", 32_768, "dpdl-benchmark/patch_camelyon",
        f"{_DPDL}; its splits were not seen",
    ),
    VtabTask(
        "eurosat", SPECIALIZED, 10, "train[:60%]", "train[60%:80%]", "train[80%:]", 5_400, "dpdl-benchmark/eurosat",
        f"{_DPDL}; its splits were not seen",
    ),
    VtabTask(
        "resisc45", SPECIALIZED, 45, "train[:60%]", "train[60%:80%]", "train[80%:]", 6_300, "dpdl-benchmark/resisc45",
        f"its viewer: one split of 31.5k; {_DPDL}",
    ),
    VtabTask(
        "retinopathy", SPECIALIZED, 5, "train", "validation", "test", 42_670, None,
        "no copy with these splits was found: clip-benchmark/wds_vtab-diabetic_retinopathy has two of 17.3k by its "
        "viewer. The pictures are those of TensorFlow Datasets' diabetic_retinopathy_detection/btgraham-300",
    ),
    VtabTask(
        "clevr_count", STRUCTURED, 8, "train[:90%]", "train[90%:]", "test", 15_000, "dpdl-benchmark/clevr",
        "its card: columns image, objects, label_count, splits of 70,000 and 15,000 (CLEVR's own test pictures have no "
        "objects: this test split must be its validation split, as in the benchmark)",
        (LabelRule("objects", count_objects, "size"), LabelRule("label_count"), READY),
    ),
    VtabTask(
        "clevr_distance", STRUCTURED, 6, "train[:90%]", "train[90%:]", "test", 15_000, "dpdl-benchmark/clevr",
        "as clevr_count, label_distance",
        (LabelRule("objects", closest_object, "pixel_coords"), LabelRule("label_distance"), READY),
    ),
    VtabTask(
        "dmlab", STRUCTURED, 6, "train", "validation", "test", 22_735, "dpdl-benchmark/dmlab",
        "one public program, columns image, label, splits train and test; not seen on the Hub itself",
    ),
    VtabTask(
        "dsprites_location", STRUCTURED, 16, "train[:80%]", "train[80%:90%]", "train[90%:]", 73_728,
        "dpdl-benchmark/dsprites", f"its viewer: one split of 737k; {_DPDL}: label_x_position_16",
        (LabelRule("label_x_position", in_sixteen(32)), LabelRule("label_x_position_16"), READY),
    ),
    VtabTask(
        "dsprites_orientation", STRUCTURED, 16, "train[:80%]", "train[80%:90%]", "train[90%:]", 73_728,
        "dpdl-benchmark/dsprites", f"its viewer: one split of 737k; {_DPDL}: label_orientation_16",
        (LabelRule("label_orientation", in_sixteen(40)), LabelRule("label_orientation_16"), READY),
    ),
    VtabTask(
        "kitti_distance", STRUCTURED, 4, "train", "validation", "test", 711, "dpdl-benchmark/kitti",
        f"its viewer: splits of 6.35k, 423, 711; {_DPDL}: label_distance; the fields of objects were not seen",
        (LabelRule("objects", closest_vehicle, "type, location"), LabelRule("label_distance"), READY),
    ),
    VtabTask(
        "smallnorb_azimuth", STRUCTURED, 18, "train", "test[:50%]", "test[50%:]", 12_150, "dpdl-benchmark/smallnorb",
        f"{_DPDL}: label_azimuth; its splits were not seen", (LabelRule("label_azimuth"), READY),
    ),
    VtabTask(
        "smallnorb_elevation", STRUCTURED, 9, "train", "test[:50%]", "test[50%:]", 12_150, "dpdl-benchmark/smallnorb",
        f"{_DPDL}: label_elevation; its splits were not seen", (LabelRule("label_elevation"), READY),
    ),
)  # fmt: skip
TASKS = {task.name: task for task in _TASKS}


def get_task(name: str) -> VtabTask:
    """Return a task by name; ValueError listing the names."""
    if name not in TASKS:
        raise ValueError(f"VTAB has no task {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]
