"""Preparing a model for inference: the same logits, and clear words for what is no longer possible."""

import copy
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vit_hf import (
    VitHfConfig,
    VitHfForImageClassification,
    VitHfForMaskedImageModeling,
    VitHfImageProcessor,
    VitHfModel,
)
from vit_hf.checkpoints.export import export_checkpoint
from vit_hf.checkpoints.receipt import CheckpointError
from vit_hf.inference_vit_hf import VitHfInPlaceLayer, VitHfPackedLayer, _threads

SMALL = {
    "image_size": [16, 24],
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_labels": 7,
}
FAMILY = [
    {},
    {"hidden_act": "gelu"},
    {"hidden_act": "quick_gelu"},
    {"hidden_act": "swiglu"},
    {"pooling": "gap"},
    {"pooling": "map"},
    {"pooling": "gap", "class_token": True, "fc_norm": True},
    {"representation_size": 16},
    {"num_register_tokens": 3, "layer_scale_init": 0.3, "qk_norm": True, "drop_path_rate": 0.2},
    {"distilled": True, "num_register_tokens": 1, "prefix_positions": "all"},
    {"qkv_bias": False, "patch_bias": False, "embedding_norm": True},
    {"position_embedding": "sincos2d", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    {"num_hidden_layers": 1},
    {"attn_implementation": "eager"},
]


@pytest.fixture(params=["packed", "in place"], autouse=True)
def way(request, monkeypatch):
    """Prepare blocks in each way whatever the processor; without AVX-512 packed ones work, too, and are slower."""
    monkeypatch.setattr("vit_hf.inference_vit_hf._has_avx512", lambda: request.param == "packed")
    return request.param


packed_only = pytest.mark.parametrize("way", ["packed"], indirect=True)
in_place_only = pytest.mark.parametrize("way", ["in place"], indirect=True)


def random_model(kind=VitHfForImageClassification, **fields):
    """A network whose every parameter matters."""
    torch.manual_seed(0)
    attention = fields.pop("attn_implementation", None)
    config = VitHfConfig(**{**SMALL, **fields})
    if attention:
        config._attn_implementation = attention
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def pixels(batch=5, seed=1):
    return torch.rand(batch, 3, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("fields", FAMILY, ids=str)
def test_a_prepared_classifier_gives_the_same_logits(fields):
    model, x = random_model(**fields), pixels()
    with torch.no_grad():
        expected = model(x).logits
    prepared = copy.deepcopy(model).prepare_for_inference()
    for rows in (slice(0, 5), slice(2, 3)):  # packed for no batch size in particular
        torch.testing.assert_close(prepared(x[rows]).logits, expected[rows], rtol=0, atol=1e-5)
    assert expected.std() > 0.1  # of weights that say something


@pytest.mark.parametrize("fields", [{}, {"layer_scale_init": 0.5}, {"pooling": "gap"}], ids=str)
def test_tokens_hidden_states_and_pooled_output_stay(fields):
    model, x = random_model(VitHfModel, **fields), pixels()
    with torch.no_grad():
        expected = model(x, output_hidden_states=True)
        found = copy.deepcopy(model).prepare_for_inference()(x, output_hidden_states=True)
    assert len(found.hidden_states) == len(expected.hidden_states) == 4
    for name in ("last_hidden_state", "pooler_output", "hidden_states"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-5)


def test_a_model_for_masked_images_reconstructs_the_same():
    model, x = random_model(VitHfForMaskedImageModeling), pixels()
    mask = torch.rand(5, 24, generator=torch.Generator().manual_seed(3)) < 0.5
    with torch.no_grad():
        expected = model(x, mask)
    found = model.prepare_for_inference()(x, mask)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", FAMILY, ids=str)
def test_bfloat16_rounds_no_worse_than_the_plain_model(fields):
    model, x = random_model(**fields), pixels(16)
    with torch.no_grad():
        exact, plain = model(x).logits, copy.deepcopy(model).bfloat16()(x).logits.float()
    found = copy.deepcopy(model).bfloat16().prepare_for_inference()(x).logits.float()
    assert (found - exact).abs().mean() < 1.5 * (plain - exact).abs().mean()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("fields", [{}, {"patch_bias": False}], ids=str)
def test_pictures_go_in_as_uint8(options, fields):
    model = random_model(**fields)
    processor = VitHfImageProcessor(size={"height": 16, "width": 24}, **options)
    random = np.random.default_rng(0)
    pictures = [PIL.Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(3)]
    with torch.no_grad():
        expected = model(**processor(pictures, return_tensors="pt")).logits
    raw = processor(pictures, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    assert raw.dtype == torch.uint8
    prepared = model.prepare_for_inference(processor)
    torch.testing.assert_close(prepared(raw).logits, expected, rtol=0, atol=1e-5)


def test_patches_of_bytes_round_no_worse_than_normalised_ones():
    fields = {"image_size": 64, "patch_size": 16, "hidden_size": 64, "layer_norm_eps": 1e-6}
    model, processor = random_model(**fields), VitHfImageProcessor(size={"height": 64, "width": 64})
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    x = processor(PIL.Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    raw = torch.from_numpy(picture).permute(2, 0, 1)[None]
    with torch.no_grad():
        exact = copy.deepcopy(model).double().vit.embeddings.patch_embeddings(x.double())
        plain = model.vit.embeddings.patch_embeddings(x)
        folded = model.prepare_for_inference(processor).vit.embeddings.patch_embeddings(raw)
    assert (folded - exact).square().mean() < 2 * (plain - exact).square().mean()


def test_pixels_of_the_wrong_kind_are_refused():
    raw = torch.zeros(1, 3, 16, 24, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"pixel_values are torch.uint8; expected float, from the image processor"):
        random_model()(raw)
    prepared = random_model().prepare_for_inference(VitHfImageProcessor())
    with pytest.raises(ValueError, match=r"pixel_values are torch.float32; expected uint8"):
        prepared(raw.float())


def test_what_cannot_be_folded_is_refused_and_nothing_changes():
    stem = random_model(resnet_stem_layers=[1], resnet_stem_width=32, patch_size=4)
    with pytest.raises(ValueError, match="ResNet stem"):
        stem.prepare_for_inference(VitHfImageProcessor())
    masked = random_model(VitHfForMaskedImageModeling)
    with pytest.raises(ValueError, match="masked images"):
        masked.prepare_for_inference(VitHfImageProcessor())
    model = random_model()
    grey = VitHfImageProcessor(image_mean=[0.5], image_std=[0.5])
    with pytest.raises(ValueError, match="normalises 1 channels, the model takes 3"):
        model.prepare_for_inference(grey)
    for options in ({"antialias": False}, {"do_pad": True, "pad_size": {"height": 32, "width": 32}}):
        with pytest.raises(ValueError, match="antialias=False or do_pad=True cannot be folded in"):
            model.prepare_for_inference(VitHfImageProcessor(**options))
    for other in (stem, masked, model):
        other.train().prepare_for_inference()  # was not prepared


def test_weights_for_uint8_and_plain_ones_are_not_taken_for_each_other():
    plain, prepared = random_model(), random_model().prepare_for_inference(VitHfImageProcessor())
    with pytest.raises(RuntimeError, match="for_uint8"):
        plain.load_state_dict(prepared.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match="for_uint8"):
        prepared.load_state_dict(plain.state_dict(), strict=True)


def test_a_stem_is_packed_too():
    model, x = random_model(resnet_stem_layers=[1, 1], resnet_stem_width=32, patch_size=8), pixels()
    with torch.no_grad():
        expected = model(x).logits
    torch.testing.assert_close(model.prepare_for_inference()(x).logits, expected, rtol=0, atol=1e-5)


def test_another_image_size_is_resampled_as_before():
    model, x = random_model(), torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = model(x, interpolate_pos_encoding=True).logits
    found = model.prepare_for_inference()(x, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@packed_only
def test_what_a_prepared_model_cannot_do_is_said(tmp_path):
    model = random_model().prepare_for_inference()
    with pytest.raises(ValueError, match=r"prepared .* already"):
        model.prepare_for_inference()
    with pytest.raises(ValueError, match=r"cannot be saved; save the model as it was loaded"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(RuntimeError, match=r"cannot be trained; load it again"):
        model.train()
    assert not any(module.training for module in model.modules())  # none is left half switched
    with pytest.raises(RuntimeError, match=r"stays on the CPU in torch.float32"):
        model.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"gives no attention maps"):
        model(pixels(), output_attentions=True)
    assert model.eval().to("cpu") is model  # no move at all
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_training_is_refused_and_nothing_exported_in_either_form(tmp_path):
    model = random_model(hidden_dropout_prob=0.5, hidden_act="gelu", image_size=[16, 16])
    model.prepare_for_inference(VitHfImageProcessor(size=16))
    with pytest.raises(RuntimeError, match=r"cannot be trained; load it again"):
        model.train()
    assert not any(module.training for module in model.modules())
    for target in ("google", "timm", "torchvision", "transformers"):
        with pytest.raises(CheckpointError, match=r"prepared for inference .* cannot be exported; export the model as"):
            export_checkpoint(model, tmp_path / "out", target=target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prepared_model_comes_back_from_a_pickle(dtype):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 on this processor")
    model, x = random_model(hidden_act="gelu").to(dtype).prepare_for_inference(), pixels()
    assert torch.equal(pickle.loads(pickle.dumps(model))(x).logits, model(x).logits)


def test_one_mean_for_all_channels_is_folded_in():
    model, raw = random_model(), torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    expected = model((raw.float() / 255 - 0.4) / 0.2).logits
    found = model.prepare_for_inference(VitHfImageProcessor(image_mean=0.4, image_std=0.2))(raw).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_copy_of_a_prepared_model_stands_alone():
    model, x = random_model().prepare_for_inference(), pixels()
    copied = copy.deepcopy(model)
    expected = model(x).logits
    with torch.no_grad():
        model.classifier.weight.zero_()
    torch.testing.assert_close(copied(x).logits, expected, rtol=0, atol=0)


@packed_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing_in_packed_blocks(dtype):
    model, x = random_model().to(dtype), pixels()
    with torch.no_grad():
        expected = model(x).logits.float()
    prepared = model.prepare_for_inference()
    with torch.autocast("cpu", torch.bfloat16):
        found = prepared(x).logits.float()
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()  # patch projection and classifier in bfloat16


@pytest.mark.slow
def test_torch_compile_gives_the_same_logits():
    model, x = random_model(num_hidden_layers=1).prepare_for_inference(), pixels()
    expected = model(x).logits
    with torch.inference_mode():
        found = torch.compile(model)(x).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@in_place_only
def test_without_packed_products_layer_scale_is_folded():
    model, x = random_model(layer_scale_init=0.3), pixels()
    with torch.no_grad():
        expected = model(x).logits
    prepared = model.prepare_for_inference()
    assert all(layer.scale1.scale is None and layer.scale2.scale is None for layer in prepared.vit.layers)
    assert not any(isinstance(layer, VitHfPackedLayer) for layer in prepared.vit.layers)
    torch.testing.assert_close(prepared(x).logits, expected, rtol=0, atol=1e-5)


def fresh_bytes(model, x):
    """Bytes of all the tensors that a forward pass makes."""
    made: dict[int, torch.Tensor] = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor):
                    made[tensor.untyped_storage()._cdata] = tensor  # kept, so that no address comes twice
            return result

    with torch.inference_mode(), Watch():
        model(x)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}  # of which views are made
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in made.items() if storage not in weights)


@in_place_only
def test_blocks_write_in_place():
    model, x = random_model(intermediate_size=128, hidden_act="gelu"), pixels()
    plain = fresh_bytes(model, x)
    prepared = fresh_bytes(copy.deepcopy(model).prepare_for_inference(), x)
    tokens = 4 * 5 * 25 * (32 + 128 + 32)  # residual, GELU, residual: float32 of 5 pictures, 25 tokens
    assert plain - prepared >= 2 * tokens  # of two blocks; the last has one token


@in_place_only
def test_a_block_neither_changes_what_goes_in_nor_what_a_hook_keeps():
    model, x = random_model(hidden_act="gelu", pooling="gap").prepare_for_inference(), pixels()
    layer, kept = model.vit.layers[1], []
    assert isinstance(layer, VitHfInPlaceLayer)
    x = model.vit.embeddings(x)
    before, expected = x.clone(), layer(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    for module in (layer, layer.mlp, layer.mlp.fc1, layer.attention.output):
        hook = module.register_forward_hook(lambda module, given, result: kept.append((result, result.clone())))
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
        hook.remove()
    assert [torch.equal(result, then) for result, then in kept] == [True] * 4


@in_place_only
def test_what_cannot_be_done_in_place_is_done_as_before():
    model, x = random_model(hidden_act="gelu"), pixels()
    plain = copy.deepcopy(model).requires_grad_(False)
    model.prepare_for_inference()
    expected = plain(x, output_attentions=True)
    found = model(x, output_attentions=True)
    for map_found, map_expected in zip(found.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(map_found, map_expected, rtol=0, atol=1e-6)
    gradients = []
    for network in (plain, model):  # what a saliency map asks for
        leaf = x.clone().requires_grad_()
        network(leaf).logits.square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).logits.dtype == plain(x).logits.dtype
        torch.testing.assert_close(model(x).logits, plain(x).logits, rtol=0, atol=0.05)
    assert model.to(torch.float64)(x.double()).logits.dtype == torch.float64


class Adapted(torch.nn.Linear):
    """A linear layer with something beside its weight, as an adapter has it."""

    def forward(self, x):
        return super().forward(x) - 0.5 * super().forward(-x)


def test_an_adapter_is_named_and_not_lost():
    model = random_model(layer_scale_init=0.3)
    old = model.vit.layers[1].mlp.fc2
    model.vit.layers[1].mlp.fc2 = Adapted(old.in_features, old.out_features)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.fc2 is a Adapted .* merge adapters"):
        model.prepare_for_inference()
    assert not model.vit.is_prepared
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@in_place_only
def test_an_adapter_that_comes_later_is_called():
    model, x = random_model().prepare_for_inference(), pixels()
    expected = model(x).logits
    for layer in model.vit.layers:
        layer.mlp.fc2.__class__ = Adapted
    assert (model(x).logits - expected).abs().max() > 0.1


def test_a_model_loaded_as_remote_code_can_be_prepared(tmp_path):
    random_model().save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "inference_vit_hf.py").is_file()
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForImageClassification as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "x = torch.linspace(-1, 1, 3 * 16 * 24).view(1, 3, 16, 24)\n"
        "with torch.no_grad(): before = model(x).logits\n"
        "after = model.prepare_for_inference()(x).logits\n"
        "assert (before - after).abs().max() < 1e-5 and before.std() > 0.1\n"
        "assert 'vit_hf' not in sys.modules\n"
    )
    environment = {"HF_HOME": str(tmp_path / "cache"), "PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model")],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def calls(monkeypatch):
    """How blocks are called while torch has four threads: pictures, whether by a thread of a stream, its share."""
    seen, run, before = [], VitHfModel._run_blocks, torch.get_num_threads()

    def watched(self, hidden_states, *args, **kwargs):
        aside = threading.current_thread().name.startswith("vit_hf_stream")
        seen.append((len(hidden_states), aside, torch.get_num_threads()))
        return run(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(VitHfModel, "_run_blocks", watched)
    _threads.cache_clear()
    torch.set_num_threads(4)
    yield seen
    torch.set_num_threads(before)


WHOLE = [(5, False, 4)]


@pytest.mark.parametrize("fields", FAMILY, ids=str)
def test_streams_give_the_same_logits(fields, calls):
    model, x = random_model(**fields), pixels()
    with torch.no_grad():
        expected = model(x).logits
    calls.clear()
    found = copy.deepcopy(model).prepare_for_inference(streams=2)(x).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert sorted(calls) == [(2, True, 2), (3, True, 2)]


@pytest.mark.parametrize(
    ("streams", "batch", "expected"),
    [
        (3, 5, [(1, True, 1), (2, True, 1), (2, True, 1)]),
        (9, 5, [(1, True, 1)] * 3 + [(2, True, 1)]),
        (2, 1, [(1, False, 4)]),
        (1, 5, WHOLE),
    ],
)
def test_a_batch_has_no_more_parts_than_threads_and_pictures(streams, batch, expected, calls):
    model, x = random_model(VitHfModel), pixels(batch)
    with torch.inference_mode():
        tokens = model(x).last_hidden_state
        calls.clear()
        found = model.prepare_for_inference(streams=streams)(x).last_hidden_state
    torch.testing.assert_close(found, tokens, rtol=0, atol=1e-5)
    assert found.is_inference()
    assert sorted(calls) == expected


def test_streams_leave_the_threads_of_others_as_they_are(calls):
    model = random_model().prepare_for_inference(streams=4)
    model(pixels())
    assert [share for _, _, share in calls] == [1] * 4
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == 4
    assert later == [4]
    torch.set_num_threads(2)  # heard by the next call
    calls.clear()
    model(pixels())
    assert sorted(calls) == [(2, True, 1), (3, True, 1)]


def test_several_threads_may_ask_a_model_of_streams_at_once(calls):
    model, batches = random_model(), [pixels(seed=seed) for seed in range(8)]
    with torch.no_grad():
        expected = [model(x).logits for x in batches]
    model.prepare_for_inference(streams=2)
    with ThreadPoolExecutor(8) as pool:
        for found, logits in zip(pool.map(lambda x: model(x).logits, batches), expected, strict=True):
            torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


class PassThrough(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "looks_on",
    [
        PassThrough,
        lambda: torch.device("cpu"),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
        torch.profiler.profile,
    ],
    ids=["dispatch mode", "function mode", "autocast", "profiler"],
)
@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # torch 2.11
def test_a_batch_goes_whole_where_the_caller_looks_on(looks_on, calls):
    model = random_model().prepare_for_inference(streams=2)
    with torch.no_grad(), looks_on():
        model(pixels())
    assert calls == WHOLE


def test_a_batch_goes_whole_to_hooks_and_to_those_who_record(calls):
    model, sizes = random_model().prepare_for_inference(streams=2), []
    handle = model.vit.layers[1].norm2.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    model(pixels())
    handle.remove()
    assert (sizes, calls) == ([5], WHOLE)
    calls.clear()
    assert [len(states) for states in model(pixels(), output_hidden_states=True).hidden_states] == [5] * 4
    assert calls == WHOLE


@in_place_only
def test_a_batch_goes_whole_for_gradients_of_pictures(calls):
    model, x = random_model(), pixels().requires_grad_()
    (expected,) = torch.autograd.grad(model(x).logits.sum(), x)
    calls.clear()
    (found,) = torch.autograd.grad(model.prepare_for_inference(streams=2)(x).logits.sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert calls == WHOLE


@in_place_only
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of the fused kernel, by vmap
def test_a_batch_goes_whole_through_vmap(calls):
    model, x = random_model().prepare_for_inference(streams=2), pixels(6)
    expected = model(x).logits
    calls.clear()
    found = torch.func.vmap(lambda group: model(group).logits)(x.unflatten(0, (3, 2)))
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=0, atol=1e-5)
    assert [aside for _, aside, _ in calls] == [False]


class Marked(torch.Tensor):
    """A tensor that may have ways of its own."""


@in_place_only
def test_a_batch_goes_whole_as_another_kind_of_tensor_and_on_another_device(calls):
    model = random_model(VitHfModel).prepare_for_inference(streams=2)
    model(pixels().as_subclass(Marked))
    model.to("meta")(pixels().to("meta"))
    assert calls == WHOLE * 2


@in_place_only
def test_streams_compile_as_one():
    model, x, before = random_model().prepare_for_inference(streams=2), pixels(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = torch.compile(model, backend="eager", fullgraph=True)(x).logits
        torch.testing.assert_close(found, model(x).logits, rtol=0, atol=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_streams_are_in_the_mode_of_the_caller(mode, calls, monkeypatch):
    model, modes, run = random_model().prepare_for_inference(streams=2), [], VitHfModel._run_blocks

    def watched(*args, **kwargs):
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return run(*args, **kwargs)

    monkeypatch.setattr(VitHfModel, "_run_blocks", watched)
    with mode():
        model(pixels())
        assert modes == [(torch.is_grad_enabled(), torch.is_inference_mode_enabled())] * 2


@in_place_only
@pytest.mark.filterwarnings("ignore")  # torch.jit is on its way out
def test_a_batch_goes_whole_into_a_trace(calls):
    model, x = random_model(VitHfModel).prepare_for_inference(streams=2), pixels()
    traced = torch.jit.trace(lambda x: model(x).last_hidden_state, x, check_trace=False)
    assert calls == WHOLE
    torch.testing.assert_close(traced(-x), model(-x).last_hidden_state, rtol=0, atol=1e-5)


def test_what_fails_in_a_stream_fails_for_the_caller_when_all_have_stopped(calls, monkeypatch):
    model, stopped = random_model().prepare_for_inference(streams=2), []

    def fail(hidden_states, *args, **kwargs):
        if len(hidden_states) == 3:
            raise OSError("a weight could not be read")
        time.sleep(0.2)
        stopped.append(len(hidden_states))
        return hidden_states

    with monkeypatch.context() as patches:
        patches.setattr(model.vit, "_run_blocks", fail)
        with pytest.raises(OSError, match="a weight could not be read"):
            model(pixels())
    assert stopped == [2]
    assert model(pixels()).logits.shape == (5, 7)


def test_a_copy_and_a_pickle_of_a_model_of_streams_have_them(calls):
    model = random_model().prepare_for_inference(streams=2)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # our own bytes
        calls.clear()
        torch.testing.assert_close(other(pixels()).logits, model(pixels()).logits, rtol=0, atol=0)
        assert sorted(calls)[:2] == [(2, True, 2), (2, True, 2)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_begins_streams_of_its_own(calls):
    random_model().prepare_for_inference(streams=2)(pixels())
    assert _threads.cache_info().currsize
    with warnings.catch_warnings(action="ignore"):  # of threads, which is what this is about
        child = os.fork()
    if child == 0:
        os._exit(_threads.cache_info().currsize)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_bad_numbers_of_streams_are_refused():
    model = random_model()
    for streams in (0, -1, 1.5, None):
        with pytest.raises(ValueError, match=r"streams=.* expected a number of parts of a batch, 1 or more"):
            model.prepare_for_inference(streams=streams)
    with torch.device("meta"):
        elsewhere = VitHfForImageClassification(VitHfConfig(**SMALL))
    with pytest.raises(ValueError, match="streams=2 for a model on meta; expected"):
        elsewhere.prepare_for_inference(streams=2)
    assert not model.vit.is_prepared
