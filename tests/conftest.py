"""Shared by all tests: where the optional data lies, and small models."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from vit_hf import VitHfConfig

# The bits of a result depend on the number of threads, and little models are faster on one.
torch.set_num_threads(1)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    AcceleratorState._reset_state()  # the precision of a test before this one


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory):
    """Keep what is cached out of the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIT_HF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data():
    """Give a function from a name to the folder of an optional data set; skips where it is absent."""

    def folder(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.is_dir():
            pytest.skip(f"the data set {name} is not beside the repository")
        return path

    return folder


@pytest.fixture(scope="session")
def tiny():
    """Give a function that makes the config of a small rectangular model, changed by keywords."""

    def config(**overrides) -> VitHfConfig:
        sizes = {"image_size": [16, 24], "patch_size": [4, 8], "hidden_size": 32, "num_hidden_layers": 3}
        heads = {"num_attention_heads": 4, "intermediate_size": 64, "num_labels": 5}
        return VitHfConfig(**{**sizes, **heads, **overrides})

    return config


@pytest.fixture(scope="session")
def randomise():
    """Give a function that fills all parameters with noise, so that no zero or one hides a mistake."""

    def fill(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                std = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + offset)
        return model.eval()

    return fill


@pytest.fixture(scope="session")
def settled():
    """Give a function that copies a model's weights to where torch lays tensors in memory.

    Weights read from a file lie as the file has them, and on some processors MKL multiplies a single row otherwise
    where a matrix lies otherwise; so models are settled before their outputs are compared bit by bit.
    """

    def settle(model: torch.nn.Module) -> torch.nn.Module:
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data.clone()
        return model

    return settle


WITHOUT_PACKAGE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vit_hf":
            raise ImportError("vit_hf is blocked")

sys.meta_path.insert(0, Blocker())
import torch
torch.set_num_threads(1)
"""


@pytest.fixture(scope="session")
def run_without_package():
    """Give a function that runs a script in a folder, in a new offline process where vit_hf cannot be imported."""

    def run(script: str, folder: Path, *arguments: object) -> str:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
        environment["HF_MODULES_CACHE"] = str(folder / "modules")
        done = subprocess.run(
            [sys.executable, "-I", "-c", WITHOUT_PACKAGE + script, *map(str, arguments)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,  # a question would end it
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
