"""The benchmark: who is compared computes the same, rounds and ratios are what they are called; nothing is timed."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from benchmarks import models, networks, report, timing

SMALL = "Ti/16@32"


def test_counted_work_is_what_torch_counts_in_timms_network():
    config = networks.network_config(SMALL)
    timm = networks.build(config)["timm"].module
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        timm(torch.zeros(3, 3, 32, 32))
    counted = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    if not any("attention" in name for name in counted):  # products that torch does not count on the CPU
        tokens, depth = 5, config.num_hidden_layers
        counted["attention"] = 3 * depth * 4 * tokens * tokens * config.hidden_size
    assert networks.forward_flops(config) * 3 == sum(counted.values())


def test_all_libraries_have_the_same_outputs_loss_and_gradients():
    for mode in ("infer", "train"):
        case = models.Case(mode, SMALL, "fp32", False, "cpu", 2)
        record = models.measure(case, rounds=2, min_seconds=0.0, memory=False)
        assert record["agrees"]
        assert set(record["rows"]) == set(case.libraries)
        assert all(len(row["seconds"]) == 2 for row in record["rows"].values())


def test_another_weight_is_noticed(monkeypatch):
    build = networks.build

    def changed(*arguments):
        made = build(*arguments)
        with torch.no_grad():
            made["timm"].module.blocks[3].mlp.fc1.bias[5] += 1e-2
        return made

    monkeypatch.setattr(models, "build", changed)
    for mode in ("infer", "train"):
        record = models.measure(
            models.Case(mode, SMALL, "fp32", False, "cpu", 2), rounds=1, min_seconds=0.0, memory=False
        )
        assert not record["agrees"]


def test_rounds_change_the_order_and_a_failing_task_is_left_out():
    called: list[str] = []

    def fails() -> None:
        raise RuntimeError("out of memory\nand more")

    tasks = {name: lambda name=name: called.append(name) for name in "abc"}
    timings = timing.interleave({**tasks, "bad": fails}, rounds=6, warmup=1, min_seconds=0.0)
    assert timings.failures == {"bad": "RuntimeError: out of memory"}
    rounds = ["".join(called[-18:][3 * index : 3 * index + 3]) for index in range(6)]
    assert rounds == ["abc", "cba", "bca", "acb", "cab", "bac"]
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 6, "b": 6, "c": 6}


def test_ratios_are_formed_within_rounds():
    found = timing.ratio([1, 2, 30, 4, 5], [2, 4, 60, 8, 5])
    assert (found.low, found.median, found.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="same number"):
        timing.ratio([1.0], [1.0, 2.0])


def test_the_best_peer_is_that_of_the_rounds_and_ours_is_never_it():
    rows = {
        "vit_hf": {"seconds": [1.0, 10.0, 100.0]},
        "timm": {"seconds": [2.0, 20.0, 200.0]},
        "torchvision": {"seconds": [3.0, 30.0, 20.0]},
    }
    record = {"case": {"mode": "infer"}, "pictures": 4, "rows": rows}
    ours, timm, torchvision = report.lines(record)
    assert (ours.best, timm.best, torchvision.best) == (False, True, False)
    assert ours.ratio is not None
    assert ours.ratio.median == 0.5
    assert ours.rate == 0.4
