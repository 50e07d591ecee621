"""ImageNet's reassessed labels: the published file, timm's count by it, and files that are something else."""

import importlib.resources
import json
import re

import numpy as np
import pytest
import torch
from timm.data.real_labels import RealLabelsImagenet

from vit_hf.evaluation.metrics import RealTop1
from vit_hf.evaluation.real_labels import read_real_labels

PUBLISHED = importlib.resources.files("timm.data") / "_info" / "imagenet_real_labels.json"  # a copy of real.json


def test_the_published_file_is_read_and_counted_as_timm_counts():
    real = read_real_labels(str(PUBLISHED), num_samples=50_000, num_classes=1000)
    assert len(real) == 50_000
    assert sum(not labels for labels in real) == 3_163
    assert real[:4] == [(), (970, 795), (230, 231), (809,)]
    generator = np.random.default_rng(0)
    named = generator.integers(1000, size=50_000)
    named[::2] = [labels[-1] if labels else 0 for labels in real[::2]]
    other = RealLabelsImagenet([f"val/ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(50_000)], topk=(1,))
    metric = RealTop1()
    for start in range(0, 50_000, 5_000):
        some = slice(start, start + 5_000)
        scores = torch.nn.functional.one_hot(torch.from_numpy(named[some]), 1000).float()
        other.add_result(scores)
        metric.add_batch(predictions=scores, real_labels=real[some])
    found = metric.compute()
    assert found == {"real_top1": pytest.approx(other.get_accuracy(1) / 100, abs=1e-12), "real_n": 46_837}


def test_a_file_of_other_data_is_read_too(tmp_path):
    path = tmp_path / "real.json"
    path.write_text("[[2, 0], [], [1]]")
    assert read_real_labels(path, num_samples=3, num_classes=3) == [(2, 0), (), (1,)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0], [1]", "real.json is not JSON"),
        (b"\x93NUMPY\xff\xfe", "real.json is not JSON"),
        ('{"a": [0]}', "real.json holds a dict, not a list of lists"),
        ("[[0], [1]]", "labels of 2 pictures, the split has 3"),
        ("[[0], 1, [2]]", "picture 1, counted from 0: 1 is not a list of class indices"),
        ("[[0], [1.0], [2]]", r"picture 1, counted from 0: \[1.0\] is not a list of class indices"),
        ("[[0], [true], [2]]", r"picture 1, counted from 0: \[True\] is not a list"),
        ('[[0], ["1"], [2]]', r"picture 1, counted from 0: \['1'\] is not a list"),
        ("[[0], [1], [0, 3]]", "picture 2, counted from 0, has label 3; expected 0 to 2"),
        ("[[-1], [1], [0]]", "picture 0, counted from 0, has label -1; expected 0 to 2"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, content, message):
    path = tmp_path / "real.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_real_labels(path, num_samples=3, num_classes=3)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"there is no {tmp_path / 'real.json'}; expected the real.json")
    ):
        read_real_labels(tmp_path / "real.json", num_samples=3, num_classes=3)


def test_what_json_writes_of_the_labels_is_read_back(tmp_path):
    path = tmp_path / "real.json"
    real = [tuple(np.random.default_rng(i).permutation(9)[: i % 4].tolist()) for i in range(50)]
    path.write_text(json.dumps(real))
    assert read_real_labels(path, num_samples=50, num_classes=9) == real
