"""Model FLOPs utilisation: stated peaks by name, FLOPs by arithmetic, and what a run records and shows of its speed."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vit_hf import VitHfForImageClassification, VitHfForMaskedImageModeling, train, train_with_trainer
from vit_hf.sharing.card import render_card
from vit_hf.training import utilization
from vit_hf.training.recipes import get_recipe
from vit_hf.training.utilization import Utilization, device_peak, mean_speed, peak_flops

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PEAK = 1e10  # so low that shares have digits


# ---------------------------------------------------------------------------------------------- peaks
@pytest.mark.parametrize(
    ("card", "half", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12, 66.9e12),
        ("NVIDIA H200", 989.4e12, 66.9e12),
        ("NVIDIA H100 PCIe", 756e12, 51.2e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 19.5e12),
        ("A100-PCIE-40GB", 312e12, 19.5e12),  # as older drivers say it
        ("NVIDIA L4", 121e12, None),
        ("NVIDIA L40S", 362.05e12, None),
        ("NVIDIA L40", None, None),
        ("NVIDIA H200 NVL", None, None),  # slower than the H200
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),  # a part of one
        ("NVIDIA GeForce RTX 4090", None, None),
        ("", None, None),
    ],
)
def test_a_peak_is_that_of_the_very_card_and_kind_of_number(card, half, float32):
    found = peak_flops(card, "half"), peak_flops(card, "float32")
    assert found == (pytest.approx(half), pytest.approx(float32))


def test_the_peak_of_a_run_follows_its_precision_and_a_cpu_has_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    recipe = get_recipe("digits")
    peaks = [device_peak(CUDA, recipe.override({"mixed_precision": name})) for name in ("bf16", "fp16", "no")]
    assert peaks == [pytest.approx(value) for value in (312e12, 312e12, 19.5e12)]
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert device_peak(CUDA, recipe) == pytest.approx(156e12)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert device_peak(CPU, recipe) is None


# ---------------------------------------------------------------------------------------------- shares
@pytest.fixture
def known(monkeypatch):
    """Let the device have a known peak."""
    monkeypatch.setattr(utilization, "device_peak", lambda device, recipe: PEAK)


def products(config, tokens: int, patches: int) -> tuple[int, int]:
    """Count the multiplications and additions of a block, and of the patch projection, for a picture."""
    width, mlp = config.hidden_size, config.intermediate_size
    block = 2 * tokens * width * (4 * width + 2 * mlp) + 2 * 2 * tokens * tokens * width
    return block, 2 * patches * 4 * 8 * 3 * width


def test_a_step_is_three_forward_passes_less_the_gradient_of_the_pixels(known, tiny):
    config = tiny(pooling="gap")  # no class token, so that all of the last block is computed
    block, patch = products(config, 12, 12)
    flops = 3 * (3 * block + 2 * config.hidden_size * config.num_labels) + 2 * patch
    network = VitHfForImageClassification(config)
    found = Utilization(network, get_recipe("digits"), CPU, 1)
    assert found.mfu(1e6) == round(1e6 * flops / PEAK, 4)
    assert Utilization(network, get_recipe("digits"), CPU, 8).mfu(8e6) == found.mfu(1e6)  # of all devices
    recomputed = get_recipe("digits").override({"gradient_checkpointing": True})
    assert Utilization(network, recomputed, CPU, 1).mfu(1e6) == found.mfu(1e6)  # what is computed again is not needed


def test_a_frozen_trunk_needs_its_forward_pass_only(known, tiny):
    config = tiny(pooling="gap")
    block, patch = products(config, 12, 12)
    network = VitHfForImageClassification(config)
    network.vit.requires_grad_(False)
    flops = 3 * block + patch + 2 * 2 * config.hidden_size * config.num_labels
    assert Utilization(network, get_recipe("digits"), CPU, 1).mfu(1e6) == round(1e6 * flops / PEAK, 4)


def test_pretraining_counts_its_own_network(known, tiny):
    config = tiny()
    fields = {"optimization.label_smoothing": 0.0, "augmentation.mask_patch_size": 8}
    recipe = get_recipe("digits").override({"task": "masked_image_modeling", **fields})
    block, patch = products(config, 13, 12)
    decoder = 2 * 12 * config.hidden_size * 4 * 8 * 3
    found = Utilization(VitHfForMaskedImageModeling(config), recipe, CPU, 1).mfu(1e6)
    assert found == pytest.approx(1e6 * (3 * (3 * block + decoder) + 2 * patch) / PEAK, rel=1e-3)


def test_where_the_peak_is_unknown_there_is_no_share(tiny):
    found = Utilization(VitHfForImageClassification(tiny()), get_recipe("digits"), CPU, 1)
    assert found.mfu(1e6) is None
    rows = [{"step": 1, "images_per_second": 2.0}]
    assert found.record(rows) == {"images_per_second": 2.0, "mfu": None, "peak_tflops": None}


def test_the_speed_of_a_run_is_its_images_over_their_time():
    """10 steps at 100 images a second, 30 at 300, with one of no known speed between, and one before all."""
    rows = [
        {"step": 5, "images_per_second": None},
        {"step": 15, "images_per_second": 100.0},
        {"step": 16},
        {"step": 46, "images_per_second": 300.0},
    ]
    assert mean_speed(rows) == pytest.approx(40 / (10 / 100 + 30 / 300))
    assert mean_speed(rows[:1]) is None
    assert mean_speed([]) is None


# ---------------------------------------------------------------------------------------------- a run
FIELDS = {"data__max_train_images": 64, "data__max_test_images": 20, "model__num_hidden_layers": 1, "keep": "last"}
FIELDS |= {"data__validation_fraction": 0.1, "max_steps": 4, "optimization__batch_size": 16, "evaluate_every": 0.5}


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("run", [train, train_with_trainer])
def test_rows_results_card_and_table_tell_the_share(run, known, tmp_path, capsys):
    done = run("digits", output=tmp_path / "run", trackers=[], **FIELDS)
    rows, results = rows_of(tmp_path / "run"), done.results
    assert len(rows) > 1
    per_image = results["mfu"] / results["images_per_second"]
    assert all(row["mfu"] == pytest.approx(row["images_per_second"] * per_image, rel=0.05) for row in rows)
    assert min(row["mfu"] for row in rows) <= results["mfu"] <= max(row["mfu"] for row in rows)
    assert results["peak_tflops"] == PEAK / 1e12
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    header = next(index for index, words in enumerate(table) if words[-1:] == ["%"] and words[-2] == "MFU")
    shown = [words[-1] for words in table[header + 1 : header + 1 + len(rows)]]
    assert shown == [f"{row['mfu']:.1%}".rstrip("%") for row in rows]
    card = render_card([tmp_path / "run"])
    speed = f"{results['images_per_second']:,.0f} images/s, MFU {results['mfu']:.1%} of 0.01 TFLOP/s a process"
    assert f"| speed | {speed} |" in card


def test_trackers_get_the_share(known, tmp_path):
    train("digits", output=tmp_path / "run", quiet=True, **FIELDS)
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "digits")).Reload()
    logged = {event.step: event.value for event in log.Scalars("mfu")}
    assert logged == {row["step"]: pytest.approx(row["mfu"]) for row in rows_of(tmp_path / "run")}


def test_on_a_cpu_rows_hold_none_and_the_table_has_no_such_column(tmp_path, capsys):
    done = train("digits", output=tmp_path / "run", trackers=[], **FIELDS)
    assert [row["mfu"] for row in rows_of(tmp_path / "run")] == [None] * len(rows_of(tmp_path / "run"))
    assert (done.results["mfu"], done.results["peak_tflops"]) == (None, None)
    assert done.results["images_per_second"] > 0
    assert "MFU" not in capsys.readouterr().out
    card = render_card([tmp_path / "run"])
    assert f"| speed | {done.results['images_per_second']:,.0f} images/s |" in card
