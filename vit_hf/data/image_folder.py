"""Images sorted into class folders: `folder/train/<class>/*.png`, or `folder/<class>/*.png` without splits.

`datasets`' "imagefolder" builder is not used: it finds splits by words anywhere in a path, and so silently keeps only
part of a folder that has a class called "train" or a file called "test_1.png"; it gives up labels for a single class
or for nested folders; and it cannot open folders with brackets in their names. Here a split is a folder with a split's
name that holds class folders, nothing else is, and every image counts. The folder is read at every start: no cache.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, Value

from .images import SUFFIXES

logger = logging.getLogger(__name__)

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "val", "valid", "dev")
TEST_NAMES = ("test", "testing", "evaluation", "eval")
_SPLIT_NAMES = frozenset(TRAIN_NAMES + VALIDATION_NAMES + TEST_NAMES)
_AS_A_SPLIT = re.compile(rf"({'|'.join(_SPLIT_NAMES)})[ _-]?(set|images?|imgs?|data|split)?")
_LAYOUT = "folder/train/<class>/<image>, or folder/<class>/<image> without splits"


def load_image_folder(path: Path) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """Read the splits of a folder of class folders; images stay unread on disk.

    Classes are the sorted class folders of the train split (of all splits when there is none). Images in folders
    within a class folder count for that class. Hidden files and files that are no images are passed over.

    Returns:
        Splits by folder name ("train" where the folder has no splits), columns `image` and `label`; and the names of
        the splits that hold images but no class folders (unlabelled, as in competitions), which are left out.

    Raises:
        ValueError: no class folders, an empty class folder, or a class that the train split does not know.
    """
    roots = _split_folders(path) or {"train": path}
    unlabelled = tuple(name for name, root in roots.items() if name not in TRAIN_NAMES and not _folders(root))
    classes = {name: [folder.name for folder in _folders(root)] for name, root in roots.items()}
    train = next((name for name in TRAIN_NAMES if name in roots), None)
    known = sorted(set(classes[train]) if train else {label for labels in classes.values() for label in labels})
    if not known:
        raise ValueError(f"{path}: no class folders; expected {_LAYOUT}; sort the images into one folder a class")
    splits = {}
    for name, root in roots.items():
        if name in unlabelled:
            continue
        if strangers := sorted(set(classes[name]) - set(known)):
            raise ValueError(
                f"{path}: split {name} has class folders {strangers} that split {train} lacks; expected a subset of "
                f"its {len(known)} classes; add them to {train} or remove them"
            )
        if loose := sum(_is_image(entry) for entry in os.scandir(root)):
            raise ValueError(
                f"{root}: {loose} images beside the class folders; expected {_LAYOUT}; move or remove them"
            )
        splits[name] = _read_split(root, names=known)
    return splits, unlabelled


def _read_split(root: Path, *, names: list[str]) -> Dataset:
    """One split: its images class by class, in the order of their paths."""
    paths: list[str] = []
    labels: list[int] = []
    passed_over = 0
    for folder in _folders(root):
        before = len(paths)
        for place, folders, files in os.walk(folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and not _leads_back(place, name))
            images = [file for file in sorted(files) if _has_image_name(file)]
            passed_over += len(files) - len(images)
            paths += [os.path.join(place, file) for file in images]
        if len(paths) == before:
            raise ValueError(
                f"{folder}: a class folder without images; expected files ending in {', '.join(sorted(SUFFIXES))}; "
                "add images or remove the folder"
            )
        labels += [names.index(folder.name)] * (len(paths) - before)
    if passed_over:
        logger.info("%s: passed over %d files that are no images", root, passed_over)
    features = Features({"image": Value("string"), "label": ClassLabel(names=names)})
    dataset = Dataset.from_dict({"image": paths, "label": labels}, features=features)
    return dataset.cast_column("image", Image(decode=False))


def _split_folders(path: Path) -> dict[str, Path]:
    """Folders that are splits: called like one, and holding class folders rather than images.

    Beside a real split, a folder of that name with images only is an unlabelled split. Without any, it is a class.
    Capitals do not matter. Folders that are called nearly so and hold the same class folders are not guessed about.
    """
    folders = _folders(path)
    if len(folders) > 1 and all(_AS_A_SPLIT.fullmatch(folder.name.lower()) for folder in folders):
        inner = [{inside.name for inside in _folders(folder)} for folder in folders]
        strange = [folder.name for folder in folders if folder.name.lower() not in _SPLIT_NAMES]
        if strange and set.intersection(*inner) and not any(map(_has_images, folders)):
            raise ValueError(
                f"{path}: folders {strange} look like splits and hold class folders; expected the names of splits "
                "(train, validation, test), or classes: rename them"
            )
    called: dict[str, Path] = {}
    for folder in folders:
        name = folder.name.lower()
        if name in called:
            raise ValueError(
                f"{path}: folders {called[name].name!r} and {folder.name!r} are the same split; expected one of each "
                "name, in small letters or capitals: merge or rename them"
            )
        if name in _SPLIT_NAMES:
            called[name] = folder
    real = {name for name, folder in called.items() if _folders(folder) and not _has_images(folder)}
    return {name: folder for name, folder in called.items() if name in real or _has_images(folder)} if real else {}


def _leads_back(place: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in, so that its pictures would come again without end."""
    path = os.path.join(place, name)
    return os.path.islink(path) and f"{os.path.realpath(place)}/".startswith(f"{os.path.realpath(path)}/")


def _folders(path: Path) -> list[Path]:
    """The visible folders in `path`, sorted by name."""
    with os.scandir(path) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _has_images(path: Path) -> bool:
    with os.scandir(path) as entries:
        return any(_is_image(entry) for entry in entries)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return _has_image_name(entry.name) and entry.is_file()


def _has_image_name(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
