"""Export to ONNX and torch.export: the written file is the model, whatever the config, batch and size."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import load_dataset
from PIL import ImageOps

pytest.importorskip("onnxscript", reason="needs the extra export")
onnx = pytest.importorskip("onnx", reason="needs the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")

from vit_hf import (  # noqa: E402
    VitHfForImageClassification,
    VitHfForMaskedImageModeling,
    VitHfImageProcessor,
)
from vit_hf.cli import main  # noqa: E402
from vit_hf.data.loading import build_evaluation_loader, finisher  # noqa: E402
from vit_hf.data.pictures import DataFields, open_pictures  # noqa: E402
from vit_hf.evaluation.scoring import classify  # noqa: E402
from vit_hf.inference_vit_hf import normalization  # noqa: E402
from vit_hf.sharing import export, graph  # noqa: E402
from vit_hf.sharing.export import export_model  # noqa: E402
from vit_hf.sharing.graph import open_graph, trace, write_graph  # noqa: E402
from vit_hf.sharing.quantize import quantize_graph  # noqa: E402

STEM = {"image_size": 32, "patch_size": 8, "resnet_stem_layers": [1, 1], "resnet_stem_width": 32}
PACKAGE = str(Path(graph.__file__).parents[1]).encode()
NAMES = {0: "cat", 1: "dog", 2: "a “quoted” bird", 3: "fish", 4: "newt"}


@pytest.fixture
def built(tiny, randomise):
    """Give a function that makes a small model of noise, changed by config fields."""
    return lambda **fields: randomise(VitHfForImageClassification(tiny(num_hidden_layers=2, **fields)))


@pytest.fixture
def saved(built, tmp_path):
    """Give a function that saves such a model with its image processor."""

    def save(dtype: torch.dtype = torch.float32, **fields):
        folder = tmp_path / "vit.tiny"  # a name with a dot is a folder's name too
        network = built(**fields).to(dtype)
        network.save_pretrained(folder)
        height, width = network.config.image_hw
        VitHfImageProcessor(size={"height": height, "width": width}).save_pretrained(folder)
        return folder

    return save


def write(network, folder, form: str, *, dynamic: bool = False):
    """Write a graph and return it as a function."""
    path = folder / graph.FILES[form]
    write_graph(trace(network, dynamic=dynamic), path, form, {"labels": list(NAMES.values())})
    return open_graph(path)


def names_this_machine(path) -> bool:
    return str(Path(torch.__file__).parents[1]).encode() in path.read_bytes() or PACKAGE in path.read_bytes()


def largest_difference(network, run, sizes, batches=(1, 3)) -> float:
    worst = 0.0
    for size in sizes:
        for batch in batches:
            pixels = torch.randn(batch, network.config.num_channels, *size)
            with torch.no_grad():
                expected = network(pixels, interpolate_pos_encoding=True).logits
            found = run(pixels)
            assert found.shape == expected.shape
            assert found.dtype == torch.float32
            worst = max(worst, (found - expected).abs().max().item())
    return worst


# ------------------------------------------------------------------------------------------- the family
FAMILY = {
    "map, SwiGLU, LayerScale, QK-norm, representation head": {
        "pooling": "map", "hidden_act": "swiglu", "layer_scale_init": 0.1, "qk_norm": True, "representation_size": 24},
    "distilled, all prefix positions": {"distilled": True, "num_register_tokens": 2, "prefix_positions": "all"},
    "gap behind the norm, registers, fixed positions": {
        "pooling": "gap", "fc_norm": True, "num_register_tokens": 2, "position_embedding": "sincos2d"},
}  # fmt: skip
MORE = {
    "ResNet stem": STEM,
    "cls, plain": {},
    "gap": {"pooling": "gap"},
    "map": {"pooling": "map"},
    "class token under gap, no positions before the grid": {
        "pooling": "gap", "class_token": True, "prefix_positions": "none"},
    "CLIP": {"embedding_norm": True, "patch_bias": False, "hidden_act": "quick_gelu"},
    "no QKV bias, exact GELU": {"qkv_bias": False, "hidden_act": "gelu"},
    "one channel": {"num_channels": 1},
    "dropout and stochastic depth, off in evaluation": {"hidden_dropout_prob": 0.5, "drop_path_rate": 0.5},
    "timm's stem": {**STEM, "resnet_stem_style": "timm", "resnet_stem_layers": [1]},
    "root block alone": {**STEM, "resnet_stem_layers": []},
}  # fmt: skip
CASES = [pytest.param(fields, id=name) for name, fields in FAMILY.items()]
CASES += [pytest.param(fields, id=name, marks=pytest.mark.slow) for name, fields in MORE.items()]


@pytest.mark.parametrize("fields", CASES)
def test_the_onnx_graph_has_the_models_logits_at_any_batch(built, tmp_path, fields):
    network = built(**fields)
    run = write(network, tmp_path, "onnx")
    assert largest_difference(network, run, [network.config.image_hw], (1, 2, 7)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("fields", [*FAMILY.values(), *MORE.values()], ids=[*FAMILY, *MORE])
def test_the_torch_program_has_the_models_logits_at_any_batch(built, tmp_path, fields):
    network = built(**fields)
    run = write(network, tmp_path, "torch-export")
    assert largest_difference(network, run, [network.config.image_hw], (1, 2, 7)) < 1e-5


SIZES = [(16, 24), (8, 16), (20, 16), (40, 72), (8, 80)]  # the stored one, the smallest, other rectangles
METHODS = [{"position_interpolation": name} for name in ("google", "timm", "torchvision", "transformers")]
METHODS += [{"position_embedding": "sincos2d"}]


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        pytest.param({"position_interpolation": "google", "num_register_tokens": 1}, "onnx"),
        pytest.param({"position_interpolation": "timm"}, "torch-export"),
        *(pytest.param(fields, "onnx", marks=pytest.mark.slow) for fields in METHODS),
        *(pytest.param(fields, "torch-export", marks=pytest.mark.slow) for fields in METHODS),
    ],
)
def test_a_dynamic_graph_resamples_its_positions_at_any_size(built, tmp_path, fields, form):
    if form == "onnx" and fields.get("position_interpolation") == "timm" and torch.__version__.startswith("2.11"):
        pytest.skip("torch 2.11 writes another antialiased resize than it has; the check of export_model refuses it")
    network = built(**fields)
    run = write(network, tmp_path, form, dynamic=True)
    assert largest_difference(network, run, SIZES) < 1e-4
    assert "positions" not in vars(network.vit.embeddings)  # the model is as it was


@pytest.mark.slow
def test_a_dynamic_graph_may_have_a_resnet_stem(built, tmp_path):
    network = built(**STEM)
    run = write(network, tmp_path, "onnx", dynamic=True)
    assert largest_difference(network, run, [(32, 32), (16, 40), (64, 24)]) < 1e-4


# ------------------------------------------------------------------------------------------- the folder
@pytest.fixture(scope="module")
def picture():
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).resize((45, 65))


@pytest.fixture
def exported(saved, tmp_path, picture, capsys):
    """A model that was exported on the command line at another size than its own, with a picture beside it."""
    folder = saved(id2label=NAMES, num_labels=5)
    picture.save(tmp_path / "one.png")
    words = ["--image-size", "24x16", "--images", str(tmp_path / "one.png")]
    assert main(["export", str(folder), "--format", "onnx", "--output", str(tmp_path / "out.d" / "onnx"), *words]) == 0
    return tmp_path / "out.d" / "onnx", folder, capsys.readouterr().out


def test_an_exported_folder_names_sizes_labels_and_preprocessing_and_runs_by_its_readme(
    exported, tmp_path, picture, run_without_package
):
    made, folder, printed = exported
    assert not any(names_this_machine(path) for path in made.iterdir())
    names = {"README.md", "config.json", "export.json", "labels.json", "model.onnx", "preprocessor_config.json"}
    assert names <= {path.name for path in made.iterdir()}
    assert [path.name for path in made.parent.iterdir()] == ["onnx"]  # no temporary folder is left
    record = json.loads((made / "export.json").read_text())
    assert [row["batch"] for row in record["parity"]] == [1, 2, 5]
    for row in record["parity"]:
        assert f"batch {row['batch']}, 24x16 pixels: logits differ" in printed
        assert f"{row['largest_difference']:.1e}" in printed
        assert f"{row['largest_difference']:.1e}" in (made / "README.md").read_text()
    assert "note: positions resampled from 16x24 to 24x16 pixels" in printed
    assert json.loads((made / "config.json").read_text())["image_size"] == [24, 16]
    assert json.loads((made / "preprocessor_config.json").read_text())["size"] == {"height": 24, "width": 16}

    session = onnxruntime.InferenceSession(made / "model.onnx", providers=["CPUExecutionProvider"])
    (pixels,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (pixels.name, pixels.type, pixels.shape[1:]) == ("pixel_values", "tensor(float)", [3, 24, 16])
    assert (logits.name, logits.shape[1:]) == ("logits", [5])
    assert isinstance(pixels.shape[0], str)
    inside = session.get_modelmeta().custom_metadata_map
    assert json.loads(inside["labels"]) == json.loads((made / "labels.json").read_text()) == list(NAMES.values())
    assert json.loads(inside["image_size"]) == [24, 16]
    assert float(inside["rescale_factor"]) == 1 / 255
    assert json.loads(inside["image_mean"]) == json.loads(inside["image_std"]) == [0.5, 0.5, 0.5]
    assert inside["resample"] == "bilinear"
    assert int(inside["opset"]) == onnx.load(made / "model.onnx").opset_import[0].version == record["opset"]

    code = re.search(r"```python\n(.+?)```", (made / "README.md").read_text(), flags=re.DOTALL)[1]
    picture.save(made / "picture.jpg", quality=100)
    said = run_without_package(code, made).splitlines()
    network = VitHfForImageClassification.from_pretrained(folder, image_size=[24, 16])
    processor = VitHfImageProcessor.from_pretrained(made)
    with PIL.Image.open(made / "picture.jpg") as opened:
        opened.load()
    answers = classify(network, processor, [opened])[0]
    scores = [float(line.rsplit(" ", 1)[1]) for line in said]
    assert [line.rsplit(" ", 1)[0] for line in said] == [name for name, _ in answers]
    shares = torch.tensor(scores).softmax(dim=0)
    assert torch.allclose(shares, torch.tensor([share for _, share in answers]), atol=0.01)  # Pillow's resize rounds


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 30}, "do_center_crop": True, "crop_size": {"height": 16, "width": 24},
         "crop_rounding": "round", "resample": 3, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.1]},
        {"size": {"height": 21, "width": 30}, "do_center_crop": True, "crop_size": {"height": 16, "width": 24}},
        {"size": {"height": 16, "width": 24}, "antialias": False},
        {"size": {"height": 16, "width": 24}, "do_normalize": False},
        {"size": {"height": 16, "width": 24}, "do_rescale": False, "image_mean": [99.0, 88.0, 77.0],
         "image_std": [50.0, 60.0, 70.0]},
        {"size": {"height": 16, "width": 24}, "rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 16, "width": 24}},
        {"size": {"height": 16, "width": 24}, "do_pad": True, "pad_size": {"height": 32, "width": 32}},
    ],
    ids=["shorter edge and crop", "both edges and crop", "without antialiasing", "0 to 1", "bytes", "-1 to 1, scalars",
         "no resize", "padded"],
)  # fmt: skip
def test_the_readmes_preprocessing_is_that_of_the_image_processor(settings, tmp_path, picture, monkeypatch):
    from vit_hf.sharing.export_readme import _picture_code

    processor = VitHfImageProcessor(**settings)
    monkeypatch.chdir(tmp_path)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # as phones write it
    picture.save("picture.jpg", quality=100, exif=exif)
    processor.save_pretrained(".")
    names = {"np": np, "Image": PIL.Image, "ImageOps": ImageOps}
    exec("\n".join(_picture_code(processor, 3)), names)
    with PIL.Image.open("picture.jpg") as opened:
        expected = processor(opened, return_tensors="np")["pixel_values"]
    assert names["pixels"].dtype == np.float32
    factor, _, std = normalization(processor, 3)
    levels = np.abs(names["pixels"] - expected) * np.reshape(std, (3, 1, 1)) / factor
    assert levels.max() <= 1.01  # Pillow's rounding against torchvision's


def test_bfloat16_weights_of_a_one_channel_model_are_exported_as_float32_and_said_so(saved, tmp_path):
    folder = saved(torch.bfloat16, num_channels=1)
    made = export_model(folder, form="torch-export")
    assert made.folder == tmp_path / "vit.tiny-torch-export"
    assert made.record["notes"][0] == "the weights are bfloat16, exported as float32"
    assert "takes 1 channels" in made.record["notes"][1]
    readme = (made.folder / "README.md").read_text()
    assert all(note in readme for note in made.record["notes"])
    assert "`torch.export.load` is not safe" in readme
    assert 'pixels = np.zeros((1, 1, 16, 24), "float32")' in readme
    assert not any(names_this_machine(path) for path in made.folder.iterdir())
    run = open_graph(made.folder / "model.pt2")
    network = VitHfForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert largest_difference(network, run, [(16, 24)]) < 1e-5


def test_parity_is_checked_on_real_pictures_at_several_sizes(saved, shared_data):
    rows = load_dataset("parquet", data_files=str(sorted(shared_data("imagenet-1k-sample").rglob("*.parquet"))[0]))
    pictures = [rows["train"][row]["image"] for row in range(3)]
    made = export_model(saved(), form="torch-export", image_size="dynamic", images=pictures)
    assert {(row["height"], row["width"]) for row in made.record["parity"]} == {(16, 24), (20, 48), (8, 32), (8, 16)}
    assert max(row["largest_difference"] for row in made.record["parity"]) < 1e-4
    assert min(row["largest_logit"] for row in made.record["parity"]) > 0.1  # there is something to agree on


# ------------------------------------------------------------------------------------------- what goes wrong
def test_a_graph_that_is_not_the_model_leaves_nothing_behind(saved, tmp_path, monkeypatch):
    folder = saved()

    def wrong(network, *, dynamic):
        other = VitHfForImageClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            other.classifier.bias[1] += 0.001
        return trace(other, dynamic=dynamic)

    monkeypatch.setattr(export, "trace", wrong)
    with pytest.raises(ValueError, match=r"differ by 1\.00e-03 on 1 pictures of 16x24 pixels, expected at most 1e-04"):
        export_model(folder, form="torch-export", output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image-size", "18x24"], r"image_size 18 \(height\) is not divisible by patch_size 4; use 16 or 20"),
        (["--image-size", "16x30"], r"image_size 30 \(width\) is not divisible by patch_size 8; use 24 or 32"),
        (["--output", "."], r"exists; give a new folder with --output"),
        (["--quantize", "int8"], r"no recipe\.yaml that tells its data; .* --data SOURCE"),
        (["--images", "absent.jpg"], r"absent\.jpg"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_line(saved, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    folder = saved()
    before = sorted(tmp_path.iterdir())
    assert main(["export", str(folder), "--format", "onnx", *words]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert sorted(tmp_path.iterdir()) == before


def test_positions_of_dino_cannot_be_dynamic(saved):
    with pytest.raises(ValueError, match=r"position_interpolation 'dino'.*--image-size HxW"):
        export_model(saved(position_interpolation="dino"), form="onnx", image_size="dynamic")


def test_a_model_for_masked_images_has_no_logits_to_export(tiny, tmp_path):
    VitHfForMaskedImageModeling(tiny()).save_pretrained(tmp_path / "mim")
    with pytest.raises(ValueError, match="is a model for masked images and names no classes; fine-tune it first"):
        export_model(tmp_path / "mim", form="onnx")


def test_an_unknown_format_and_a_quantised_program_are_refused(tmp_path):
    with pytest.raises(ValueError, match="format is 'tflite'; expected one of onnx, torch-export"):
        export_model(tmp_path, form="tflite")
    with pytest.raises(ValueError, match="expected int8 with format onnx"):
        export_model(tmp_path, form="torch-export", quantize="int8")


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "PACKAGES", ("onnx", "absent_package"))
    with pytest.raises(ValueError, match=r'needs absent_package; run: pip install "vit-hf\[export\]"'):
        export_model(tmp_path, form="onnx")


# ------------------------------------------------------------------------------------------- 8 bits
@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A classifier that was really trained on the bundled digits, with the pixels and labels of their test split."""
    from vit_hf import VitHfConfig

    torch.manual_seed(0)
    pictures = open_pictures(DataFields(source="digits"))
    processor = VitHfImageProcessor(size={"height": 8, "width": 8})

    def tensors(split):
        loader = build_evaluation_loader(
            split, **pictures.columns, name="digits", processor=processor, batch_size=len(split), workers=0
        )
        batch = finisher(loader)(next(iter(loader)))
        return batch["pixel_values"], batch["labels"]

    config = VitHfConfig(image_size=8, patch_size=2, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                         intermediate_size=128, pooling="gap", id2label=pictures.id2label)  # fmt: skip
    network = VitHfForImageClassification(config)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    pixels, labels = tensors(pictures.train)
    for _ in range(120):
        chosen = torch.randint(len(pixels), (64,))
        network(pixels[chosen], labels=labels[chosen]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("digits") / "model"
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, *tensors(pictures.test)


def test_an_8_bit_graph_keeps_the_accuracy_of_a_trained_model_and_its_folder_says_what_it_cost(digits, capsys):
    folder, pixels, labels = digits
    made = folder.parent / "int8"
    assert main(["export", str(folder), "--format", "onnx", "--quantize", "int8", "--data", "digits", "--output",
                 str(made)]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    results = json.loads((made / "results.json").read_text())
    network = VitHfForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = network(pixels).logits
    run = open_graph(made / "model.onnx")
    found = torch.cat([run(pixels[row : row + 1]) for row in range(len(pixels))])
    assert results["n"] == len(labels) == 359
    assert results["before"]["top1"] == pytest.approx((expected.argmax(1) == labels).double().mean().item())
    assert results["top1"] == pytest.approx((found.argmax(1) == labels).double().mean().item())
    assert results["agreement"] == pytest.approx((found.argmax(1) == expected.argmax(1)).double().mean().item())
    assert results["before"]["top1"] > 0.8  # chance is 0.1
    assert results["top1"] > results["before"]["top1"] - 0.02
    assert 0 < (found - expected).abs().max() < 0.5  # it is another graph, and near

    model = onnx.load(made / "model.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMulInteger") >= 8  # of two blocks: QKV, output, two of the MLP
    assert results["bytes"] == (made / "model.onnx").stat().st_size < results["bytes_before"] / 2
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["labels"]) == [*map(str, range(10))]
    readme = (made / "README.md").read_text()
    for text in (f"{results['before']['top1']:.2%}", f"{results['top1']:.2%}", f"{results['agreement']:.2%}"):
        assert text in readme
        assert text in printed
    assert {path.name for path in made.glob("model*")} == {"model.onnx"}


@pytest.mark.parametrize("pooling", ["cls", "gap", "map"])
def test_an_8_bit_graph_is_near_whatever_the_pooling_and_on_processors_without_vnni(pooling, saved, tmp_path):
    folder = saved(image_size=32, patch_size=8, hidden_size=64, intermediate_size=128, pooling=pooling)
    made = export_model(folder, form="onnx", output=tmp_path / "graph")
    quantize_graph(made.folder / "model.onnx", tmp_path / "small.onnx")
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = VitHfForImageClassification.from_pretrained(folder).eval()(pixels).logits  # (4, L)
    found = torch.cat([open_graph(tmp_path / "small.onnx")(picture) for picture in pixels.split(1)])
    assert 0 < (found - expected).abs().mean() < 0.05 * expected.std()
