"""A small model and a small data set on disk, for the tests that score one on the other."""

from pathlib import Path

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from vit_hf import VitHfForImageClassification, VitHfImageProcessor

NAMES = ("ant", "bee", "cat", "dog", "eel")


def noise(count: int, height: int, width: int, *, seed: int = 0) -> list[PIL.Image.Image]:
    """Return pictures of smooth noise, which no resize turns grey."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (count, 5, 7, 3), dtype=np.uint8)
    return [PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BICUBIC) for pixels in small]


def save_data(folder: Path, pictures: list[PIL.Image.Image], names=NAMES, labels=None) -> Path:
    """Write pictures as the test split of a data set, with a few others to train on; classes in turn unless given."""
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    labels = [place % len(names) for place in range(len(pictures))] if labels is None else labels
    few = {"image": noise(2 * len(names), 6, 6, seed=9), "label": 2 * list(range(len(names)))}
    splits = {"train": few, "test": {"image": pictures, "label": labels}}
    DatasetDict({k: Dataset.from_dict(v, features=features) for k, v in splits.items()}).save_to_disk(folder)
    return folder


def save_model(folder: Path, network: VitHfForImageClassification, **settings) -> Path:
    """Write a classifier with an image processor of its size, or of other settings."""
    height, width = network.config.image_hw
    network.save_pretrained(folder)
    VitHfImageProcessor(**{"size": {"height": height, "width": width}, **settings}).save_pretrained(folder)
    return folder
