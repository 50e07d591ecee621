"""From a recipe to the objects of a run: image processor and model, and the record of where and with what it ran."""

import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast_object_list

from ..checkpoints.load import load_model
from ..checkpoints.own import note_changes
from ..checkpoints.receipt import Receipt
from ..configuration_vit_hf import VitHfConfig
from ..data.order import seed_from
from ..data.pictures import Pictures
from ..image_processing_vit_hf import VitHfImageProcessor
from ..modeling_vit_hf import VitHfPreTrainedModel
from ..variants import variant
from .checkpoint import read_weights
from .head import HEAD_FIELDS, replace_head
from .optim import StepPlan, freeze_parameters, plan_steps
from .recipe import Recipe
from .tasks import TASKS

T = TypeVar("T")
logger = logging.getLogger(__name__)
PACKAGES = ("vit-hf", "torch", "torchvision", "transformers", "accelerate", "datasets", "evaluate", "safetensors")


def build_model(recipe: Recipe, id2label: dict[int, str]) -> tuple[VitHfPreTrainedModel, VitHfImageProcessor]:
    """Make the network, new or from a checkpoint with a new classifier, and the image processor that goes with it.

    Raises:
        ValueError: the recipe names no network, or one to start from for a task that has none; a pattern of
            `model.freeze` fits no parameter.
    """
    torch.manual_seed(seed_from("weights", recipe.seed))
    network, processor = _build_network(recipe, id2label)
    if recipe.model.freeze:
        freeze_parameters(network, recipe.model.freeze)
    return network, processor


def _build_network(recipe: Recipe, id2label: dict[int, str]) -> tuple[VitHfPreTrainedModel, VitHfImageProcessor]:
    model = recipe.model
    if model.init_from is None and model.variant is None:
        raise ValueError(
            "the recipe names no network; set model.init_from to the folder or Hub id of a model to fine-tune, or "
            "model.variant (such as S/16) to train from scratch"
        )
    if model.init_from is not None:
        if recipe.task != "classification":
            raise ValueError(f"model.init_from is {model.init_from!r}; {recipe.task} starts from a model.variant only")
        head = {name: value for name, value in model.config.items() if name in HEAD_FIELDS}
        rest = {name: value for name, value in model.config.items() if name not in HEAD_FIELDS}
        network, processor = load_model(model.init_from, to_train=True, **rest)
        receipt, loaded = vars(network)["receipt"], network.state_dict()
        network = replace_head(network, head)
        network.config.problem_type = None  # one class a picture is what is trained, whatever it was before
        if network.config.id2label != id2label:
            network.set_labels(id2label)
        note_changes(receipt, loaded, network.state_dict())
        vars(network)["receipt"] = receipt
        processor.set_image_size(*network.config.image_hw)
        return network, processor
    new = TASKS[recipe.task].model_class(variant(str(model.variant), id2label=id2label, **model.config))
    height, width = new.config.image_hw
    return new, VitHfImageProcessor(size={"height": height, "width": width})


def receipt_of(network: VitHfPreTrainedModel) -> Receipt | None:
    """Return what became of the weights that a new run starts from, None for one from scratch or resumed."""
    return vars(network).get("receipt")


def restore_model(recipe: Recipe, checkpoint: Path) -> tuple[VitHfPreTrainedModel, VitHfImageProcessor]:
    """Make the network of a checkpoint with the weights that move, and its image processor."""
    weights, _ = read_weights(checkpoint)
    network = TASKS[recipe.task].model_class(VitHfConfig.from_pretrained(checkpoint))
    network.load_state_dict(weights)  # strict: each tensor, and no other
    if recipe.model.freeze:
        freeze_parameters(network, recipe.model.freeze)
    return network, VitHfImageProcessor.from_pretrained(checkpoint)


def enable_checkpointing(network: VitHfPreTrainedModel) -> None:
    """Turn on gradient checkpointing, by the name that the installed transformers has for it."""
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def plan_for(recipe: Recipe, *, num_images: int | None, num_processes: int) -> StepPlan:
    """Return the steps of a recipe; as `plan_steps`, which knows nothing of mixing."""
    even = bool(recipe.augmentation.mixup_alpha or recipe.augmentation.cutmix_alpha)
    return plan_steps(recipe.optimization, num_images=num_images, num_processes=num_processes, even=even)


def check_choice(recipe: Recipe, pictures: Pictures) -> None:
    """Raise ValueError when the best weights are to be kept and there is nothing to choose them by."""
    if recipe.keep == "best" and pictures.validation is None:
        raise ValueError(
            "keep is 'best' but no pictures are held out to choose by, and choosing on the test split would flatter "
            "the result; set data.validation_fraction (such as 0.1), or keep 'last'"
        )


def check_trackers(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raise ValueError for a tracker that is not installed, which Accelerate would leave out."""
    missing = sorted(set(recipe.trackers) - {"all", *map(str, accelerator.log_with)})
    if missing:
        raise ValueError(
            f"trackers names {missing[0]!r}, which is not installed; pip install {missing[0]}, or leave it out"
        )


def multiplies_bfloat16_slowly(device: torch.device) -> bool:
    """Whether the device is a processor that torch has no bfloat16 products of oneDNN for (x86 without AVX-512)."""
    here = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return here and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check_launch(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raise ValueError for what Accelerate would pass over in silence, and for what shards cannot do.

    A precision that the processor has no instructions for is a warning.
    """
    if recipe.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision fp16 needs a GPU, this process has none; use bf16, or no for float32")
    slow = recipe.mixed_precision == "bf16" and multiplies_bfloat16_slowly(accelerator.device)
    if slow and accelerator.is_main_process:
        logger.warning(
            "mixed_precision bf16: torch has no fast products for it on this CPU (with AVX2 alone a step took 20 to 30 "
            "times as long as in float32); use no (--mixed_precision no)"
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise ValueError(
            f"started as one of {started} processes, but each sees {accelerator.num_processes}: they would train apart "
            "and write the same folder; on a machine without GPUs set ACCELERATE_USE_CPU=true"
        )
    fsdp = accelerator.distributed_type == DistributedType.FSDP
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and not fsdp:
        raise ValueError(
            f"FSDP was asked for, but Accelerate runs {accelerator.distributed_type.value}: it shards on several GPUs "
            "only; use scripts/launch/ddp.yaml"
        )
    shards = fsdp or accelerator.distributed_type == DistributedType.DEEPSPEED
    if recipe.optimization.ema_decay is not None and shards:
        raise ValueError(
            f"optimization.ema_decay needs whole weights in every process, {accelerator.distributed_type.value} shards "
            "them; set it to none, or use scripts/launch/ddp.yaml"
        )
    if recipe.optimization.optimizer == "muon" and shards:
        raise ValueError(
            "optimization.optimizer muon needs whole matrices in every process, "
            f"{accelerator.distributed_type.value} shards them; set it to adamw, or use scripts/launch/ddp.yaml"
        )


def set_up_deepspeed(recipe: Recipe, plan: StepPlan, accelerator: Accelerator) -> None:
    """Hand DeepSpeed what it takes from its own config: batch, accumulation, clipping and precision.

    bfloat16 is autocast, as without DeepSpeed; its own way would keep the weights of the model in bfloat16.
    """
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = plan.device_batch_size
    config["gradient_accumulation_steps"] = plan.accumulation
    config["gradient_clipping"] = recipe.optimization.clip_norm or 0.0
    if recipe.mixed_precision == "bf16":
        config["bf16"] = {"enabled": False}
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}


def describe_run(recipe: Recipe, pictures: Pictures, accelerator: Accelerator) -> dict[str, Any]:
    """Return what one needs to know to believe or repeat a run: command, versions, device, data, commit.

    `base_model` is the Hub id that the run started from; what lies at a path of this machine has no name elsewhere.
    """
    start = recipe.model.init_from
    return {
        "recipe": recipe.name,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0] or "python").name, *sys.argv[1:]]),
        "base_model": start if start is not None and not Path(start).exists() else None,
        "git_commit": _git_commit(),
        **describe_machine(accelerator.device),
        "processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "data": pictures.describe(),
    }


def add_session(first: dict[str, Any], record: dict[str, Any], *, step: int) -> dict[str, Any]:
    """Return the record of a run's first session with another one, which goes on after a step, under "resumed"."""
    names = ("started", "command", "git_commit", "versions", "torch_build", "device", "processes")
    session = {"step": step, **{name: record[name] for name in names}}
    return {**first, "resumed": [*first.get("resumed", []), session]}


def on_main(do: Callable[[], T], state: Accelerator | PartialState) -> T:
    """Let the main process do something and tell the others what came out; when it fails they end, it raises."""
    answer: list[Any] = [False, None]
    if state.is_main_process:
        try:
            answer = [True, do()]
        except Exception:
            broadcast_object_list(answer)
            raise
    done, value = broadcast_object_list(answer)
    if not done:
        raise SystemExit(1)
    return value


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what decides how numbers are rounded: versions, torch's build and vector instructions, the device."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "torch_build": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        "device": device_name(device),
    }


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the processor's with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def _git_commit() -> str | None:
    """Commit of the package's source, with "+" where files are changed; None outside a git checkout."""
    folder = Path(__file__).parent
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, env=environment
            )
        except (OSError, subprocess.TimeoutExpired):  # no git here
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    tracked = git("ls-files", "--error-unmatch", Path(__file__).name)  # not merely installed inside some checkout
    commit = git("rev-parse", "HEAD") if tracked else None
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "") if commit else None
