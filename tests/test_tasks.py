"""What is learned: the losses and scores of both tasks, and masked image modelling by the loop end to end."""

import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedImageModeling

from vit_hf import (
    Recipe,
    VitHfConfig,
    VitHfForImageClassification,
    VitHfForMaskedImageModeling,
    VitHfImageProcessor,
    get_recipe,
    train,
)
from vit_hf.cli import main
from vit_hf.data.images import read_image
from vit_hf.data.mixing import PatchMasking
from vit_hf.data.pictures import open_pictures
from vit_hf.sharing.card import render_card
from vit_hf.training.state import describe_files
from vit_hf.training.tasks import TASKS, Classification, MaskedImageModeling, count_masked

MASKED = {
    "task": "masked_image_modeling",
    "data.max_train_images": 96,
    "data.max_test_images": 50,
    "model.num_hidden_layers": 2,
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "augmentation.mask_patch_size": 8,
    "augmentation.mask_ratio": 0.5,
    "optimization.label_smoothing": 0.0,
    "optimization.max_steps": 6,
    "optimization.batch_size": 32,
    "optimization.warmup_steps": 2,
    "optimization.learning_rate": 1e-2,
    "evaluate_every": 1.0,
    "keep": "best",
    "trackers": [],
    "checkpoint_steps": 2,
    "checkpoint_limit": 3,
}


def masked(**overrides) -> Recipe:
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return get_recipe("digits").override({**MASKED, **changes})


def count_by_hand(found: torch.Tensor, pixels: torch.Tensor, mask: torch.Tensor, patch_hw: tuple[int, int]) -> float:
    """Return the mean absolute error over the hidden pixels of one picture (C, H, W)."""
    patch_h, patch_w = patch_hw
    columns = pixels.shape[2] // patch_w
    errors = [
        abs(found[c, y, x].item() - pixels[c, y, x].item())
        for y in range(pixels.shape[1])
        for x in range(pixels.shape[2])
        for c in range(pixels.shape[0])
        if mask[y // patch_h * columns + x // patch_w]
    ]
    return sum(errors) / len(errors)


# ---------------------------------------------------------------------------------------------- classification
@pytest.fixture
def classifier(tiny, randomise):
    return randomise(VitHfForImageClassification(tiny()))


def labelled(count: int = 8) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(count, 3, 16, 24), "labels": torch.randint(5, (count,))}


def test_the_loss_of_classes_is_the_cross_entropy_with_the_smoothing_of_the_recipe(classifier):
    task, batch = Classification(get_recipe("digits"), classifier), labelled()
    logs = classifier(batch["pixel_values"]).logits.log_softmax(dim=1)
    own = -logs[torch.arange(8), batch["labels"]].mean()
    expected = 0.9 * own - 0.1 * logs.mean()
    assert task.draw is None
    torch.testing.assert_close(task.loss(classifier, batch), expected)


def test_the_loss_of_mixed_pictures_is_the_mix_of_the_losses(classifier):
    recipe = get_recipe("digits").override({"augmentation.mixup_alpha": 1.0, "optimization.label_smoothing": 0.0})
    task, batch = Classification(recipe, classifier), labelled()
    draws = task.draw(list(range(8)), 16, 24)
    weight = draws["mix_share"]
    swapped = torch.arange(8) ^ 1
    pixels = batch["pixel_values"]
    mixed = weight.view(-1, 1, 1, 1) * pixels + (1 - weight).view(-1, 1, 1, 1) * pixels[swapped]
    logs = classifier(mixed).logits.log_softmax(dim=1)
    own, other = (-logs[torch.arange(8), labels] for labels in (batch["labels"], batch["labels"][swapped]))
    expected = (weight * own + (1 - weight) * other).mean()
    torch.testing.assert_close(task.loss(classifier, {**batch, **draws}), expected)


@pytest.mark.parametrize("name", TASKS)
def test_the_first_row_is_the_best_and_an_equal_one_is_not_better(name):
    task = TASKS[name]
    higher, lower = {task.metric: 0.6}, {task.metric: 0.4}
    better, worse = (lower, higher) if name == "masked_image_modeling" else (higher, lower)
    assert task.is_better(worse, None)
    assert task.is_better(better, worse)
    assert not task.is_better(worse, better)
    assert not task.is_better(worse, dict(worse))


# ---------------------------------------------------------------------------------------------- hidden patches
@pytest.fixture
def network(tiny, randomise):
    return randomise(VitHfForMaskedImageModeling(tiny(patch_size=[4, 8])))


def rows_of(pixels: torch.Tensor, batch_size: int) -> DataLoader:
    return DataLoader([{"pixel_values": p, "rows": torch.tensor(i)} for i, p in enumerate(pixels)], batch_size)


def test_the_score_is_the_mean_over_pictures_of_the_error_counted_by_hand(network):
    task, pixels = MaskedImageModeling(masked(), network), torch.randn(7, 3, 16, 24)
    accelerator = Accelerator(cpu=True)
    counts = []
    found = task.score(network, rows_of(pixels, 3), accelerator, num_samples=7, on_batch=counts.append)
    measured = found.measure()
    masking = PatchMasking(ratio=0.5, mask_patch_size=8, patch_hw=(4, 8), seed=0)
    hidden = masking.draw(list(range(7)), 16, 24)["bool_masked_pos"]
    with torch.no_grad():
        found = network(pixels, bool_masked_pos=hidden).reconstruction
    errors = [count_by_hand(found[i], pixels[i], hidden[i], (4, 8)) for i in range(7)]
    assert measured == {
        "loss": pytest.approx(sum(errors) / 7, rel=1e-5),
        "error": "mean absolute error of hidden pixels",
        "n": 7,
    }
    assert counts == [3, 3, 1]


def test_a_picture_has_the_same_mask_in_every_evaluation_whatever_seed_and_batch(network):
    pixels = torch.randn(7, 3, 16, 24)
    losses = []
    for seed, batch_size in ((0, 3), (0, 7), (5, 2)):
        task = MaskedImageModeling(masked(seed=seed), network)
        found = task.score(network, rows_of(pixels, batch_size), Accelerator(cpu=True), num_samples=7)
        losses.append(found.measure()["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)  # other batches sum otherwise


def test_masks_to_train_on_are_drawn_from_the_seed_of_the_recipe(network):
    draws = [MaskedImageModeling(masked(seed=seed), network).draw(list(range(20)), 16, 24) for seed in (0, 0, 1)]
    assert torch.equal(draws[0]["bool_masked_pos"], draws[1]["bool_masked_pos"])
    assert not torch.equal(draws[0]["bool_masked_pos"], draws[2]["bool_masked_pos"])
    assert draws[0]["bool_masked_pos"].sum(dim=1).tolist() == [6] * 20  # 3 of 6 squares of 2 patches


def test_a_masked_autoencoder_is_scored_in_the_terms_of_its_loss(tiny, randomise):
    decoder = {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 16, "decoder_num_attention_heads": 2}
    network = randomise(VitHfForMaskedImageModeling(tiny(patch_size=[4, 8], norm_pix_loss=True, **decoder)))
    task, pixels, told = MaskedImageModeling(masked(), network), torch.randn(7, 3, 16, 24), []
    handle = network.register_forward_pre_hook(
        lambda _, args, given: told.append(given["num_masked"]), with_kwargs=True
    )
    measured = task.score(network, rows_of(pixels, 3), Accelerator(cpu=True), num_samples=7).measure()
    assert told == [6] * 3  # so that nothing waits for the device
    handle.remove()
    masking = PatchMasking(ratio=0.5, mask_patch_size=8, patch_hw=(4, 8), seed=0)
    hidden = masking.draw(list(range(7)), 16, 24)["bool_masked_pos"]
    with torch.no_grad():
        losses = [network(pixels[i : i + 1], hidden[i : i + 1]).loss.item() for i in range(7)]
        batch = {"pixel_values": pixels, "bool_masked_pos": hidden}
        assert task.loss(network, batch).item() == pytest.approx(sum(losses) / 7, rel=1e-5)
    assert measured["loss"] == pytest.approx(sum(losses) / 7, rel=1e-5)
    assert measured["error"] == "mean squared error of hidden patches, each normalised"


def test_the_number_of_hidden_patches_is_that_of_every_mask(network):
    for ratio, size in ((0.5, 8), (0.75, 8), (0.3, 8)):
        recipe = masked(augmentation__mask_ratio=ratio, augmentation__mask_patch_size=size)
        drawn = MaskedImageModeling(recipe, network).draw(list(range(20)), 16, 24)["bool_masked_pos"]
        assert set(drawn.sum(dim=1).tolist()) == {count_masked(recipe.augmentation, (4, 8), (16, 24))}


# ---------------------------------------------------------------------------------------------- by the loop
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(masked(), output=tmp_path_factory.mktemp("masked") / "model", quiet=True)


def test_the_records_have_the_error_and_no_accuracy(run):
    rows = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]
    assert rows[1]["validation_loss"] < rows[0]["validation_loss"] < rows[0]["train_loss"]
    results = json.loads((run.output / "results.json").read_text())
    for record in (*rows, results):
        assert "top1" not in record
        assert "top5" not in record
    assert not (run.output / "predictions.parquet").exists()
    assert results["n"] == 50
    assert (run.output / "learning_curves.png").stat().st_size > 0


def test_the_kept_weights_are_those_of_the_lowest_error(run):
    rows = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["validation_loss"])
    assert run.results["kept_epoch"] == best["epoch"]
    folder = run.output / "checkpoints" / f"best-{best['step']:08d}"
    kept, saved = (load_file(path / "model.safetensors") for path in (folder, run.output))
    assert all(torch.equal(kept[name], tensor) for name, tensor in saved.items())


def test_the_saved_folder_loads_by_its_auto_class_and_repeats_the_score_on_the_test_split(run):
    model = AutoModelForMaskedImageModeling.from_pretrained(run.output).eval()
    assert isinstance(model, VitHfForMaskedImageModeling)
    processor = VitHfImageProcessor.from_pretrained(run.output)
    test = open_pictures(masked().data).test
    pictures = [read_image(row["image"], where="a test picture").convert("RGB") for row in test]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    patch_hw = model.config.patch_hw
    masking = PatchMasking(ratio=0.5, mask_patch_size=8, patch_hw=patch_hw, seed=0)
    hidden = masking.draw(list(range(50)), *pixels.shape[-2:])["bool_masked_pos"]
    with torch.no_grad():
        found = model(pixels, bool_masked_pos=hidden).reconstruction
    errors = [count_by_hand(found[i], pixels[i], hidden[i], patch_hw) for i in range(50)]
    assert run.results["loss"] == pytest.approx(sum(errors) / 50, rel=1e-5)


def test_it_resumes_to_the_same_weights_and_scores(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for path in (run.output / "checkpoints").glob("*-0000000[24]"):
        shutil.copytree(path, tmp_path / "checkpoints" / path.name)
    if (first := run.output / "checkpoints" / "best-00000003").is_dir():
        shutil.copytree(first, tmp_path / "checkpoints" / first.name)
    again = train(masked(), output=tmp_path, resume="auto", quiet=True)
    assert json.loads((tmp_path / "run.json").read_text())["resumed"][0]["step"] == 4
    assert (tmp_path / "model.safetensors").read_bytes() == (run.output / "model.safetensors").read_bytes()
    for key in ("loss", "n", "kept_epoch"):
        assert again.results[key] == run.results[key]


def test_the_command_prints_the_error_and_the_next_commands(tmp_path, capsys):
    words = [word for name, value in MASKED.items() for word in (f"--{name}", "none" if value == [] else str(value))]
    folder = tmp_path / "run"
    assert main(["train", "digits", *words, "--output", str(folder)]) == 0
    printed = capsys.readouterr().out
    loss = json.loads((folder / "results.json").read_text())["loss"]
    assert f"{loss:.4f}" in printed
    assert "top-1" not in printed.partition("test:")[2]
    assert main(["train", "digits", *words, "--output", str(folder), "--resume", "auto"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert "top-1" not in (folder / "README.md").read_text()


def test_a_pre_trained_encoder_is_fine_tuned_and_not_scored_before(run, tmp_path, capsys):
    assert main(["evaluate", str(run.output), "--data", "digits"]) == 1
    assert "is a model for masked images and names no classes; fine-tune it first" in capsys.readouterr().err
    changes = {"task": "classification", "keep": "last", "model.init_from": str(run.output)}
    network = {name: None for name in MASKED if name.startswith("model.")}
    recipe = get_recipe("digits").override({k: v for k, v in MASKED.items() if k not in network} | changes)
    fine = train(recipe, output=tmp_path / "fine", quiet=True)
    assert 0 < fine.results["top1"] <= 1
    before = load_file(run.output / "model.safetensors")["vit.layers.0.attention.qkv.weight"]
    after = load_file(fine.output / "model.safetensors")["vit.layers.0.attention.qkv.weight"]
    assert 0 < (before - after).abs().max() < 0.2  # it began there


# ---------------------------------------------------------------------------------------------- MAE by the loop
@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    decoder = {"hidden_layers": 1, "attention_heads": 2}
    decoder = {f"model.decoder_num_{name}": value for name, value in decoder.items()}
    decoder |= {"model.decoder_hidden_size": 16, "model.decoder_intermediate_size": 32, "model.norm_pix_loss": True}
    squares = {"augmentation.mask_patch_size": 4, "augmentation.mask_ratio": 0.75, "optimization.max_steps": 12}
    recipe = masked().override({**squares, **decoder})
    return train(recipe, output=tmp_path_factory.mktemp("autoencoder") / "model", quiet=True)


def test_a_masked_autoencoder_learns_and_its_records_say_what_its_error_is(autoencoder):
    rows = [json.loads(line) for line in (autoencoder.output / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]
    results = json.loads((autoencoder.output / "results.json").read_text())
    assert results["error"] == "mean squared error of hidden patches, each normalised"
    assert "(MAE: a decoder of 1 block of width 16" in render_card([autoencoder.output])
    assert "| mean squared error of hidden patches, each normalised |" in render_card([autoencoder.output])


def test_it_is_reproduced_from_its_records(autoencoder, capsys):
    assert main(["reproduce", str(autoencoder.output)]) == 0, capsys.readouterr()
    assert "model: error" in capsys.readouterr().out


def test_its_fine_tuning_begins_with_a_receipt(autoencoder, tmp_path, capsys):
    """Each tensor of the encoder as it was, the decoder left behind, pooling and classifier new."""
    wanted = {"pooling": "map", "drop_path_rate": 0.2}
    changes = {"task": "classification", "keep": "last", "model.init_from": str(autoencoder.output)}
    changes |= {f"model.{name}": value for name, value in wanted.items()}
    recipe = get_recipe("digits").override({k: v for k, v in MASKED.items() if not k.startswith("model.")} | changes)
    before = load_file(autoencoder.output / "model.safetensors")
    fine = train(recipe.override({"optimization.max_steps": 2}), output=tmp_path / "fine")
    printed = capsys.readouterr().out
    receipt = json.loads((fine.output / "receipt.json").read_text())
    config = VitHfConfig.from_pretrained(fine.output)
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert (config.decoder_num_hidden_layers, config.norm_pix_loss) == (0, False)
    after = load_file(fine.output / "model.safetensors")
    entries = {entry["model"] or entry["file"][0]: entry["action"] for entry in receipt["tensors"]}
    expected = {name: "dropped" if name.startswith("decoder.") else "exact" for name in before}
    expected |= {name: "re-initialised" for name in after if name not in before}
    assert entries == expected
    assert set(entries.values()) == {"dropped", "exact", "re-initialised"}
    assert receipt["files"][0]["sha256"] == describe_files(autoencoder.output)["model.safetensors"]["sha256"]
    assert "starts from model (vit_hf)" in printed
    assert "decoder of the model for masked images" in printed
    assert "## Start" in render_card([fine.output])
