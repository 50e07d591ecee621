"""One library's training run in a process of its own, for mode `epoch`: `vit-hf train` and two scripts as others write.

    python -m benchmarks.epoch_runs timm '{"model": "Ti/4@32", ...}'        # in the folder scripts

The last line printed is a JSON object: "setup_seconds" from the start of `main`, libraries imported, to the first step;
"step_began" (the monotonic clock) and "step_seconds" of every step, and "wait_seconds", the part of each in which the
device has nothing to do because the next batch is not on it yet (cutting and augmenting on the CPU counts as waiting;
mixing, which ours does with the forward pass, does not); "rss", bytes that the process holds after each epoch. With
"turns" it stops (SIGSTOP) before each step, and after the last one, having printed "turn" and its number, until whoever
started it lets it go on.
"""

import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Image
from torch import nn

from vit_hf import Recipe, get_recipe, train, variant
from vit_hf.cli.memory import keep_freed_memory
from vit_hf.data.pictures import DataFields, open_pictures
from vit_hf.training.step import Stepper

from .memory import held
from .peer_inputs import EachPicture, MixingCollate, timm_loader, torchvision_steps

RECIPE = "cifar100_scratch"
TURN = "turn"
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")  # of the named network


@dataclass(frozen=True)
class Settings:
    """What is trained, and how long."""

    model: str
    """Variant with patches for 32 px, such as Ti/4."""
    source: str
    images: int
    steps: int
    batch: int
    workers: int
    threads: int
    precision: str = "fp32"
    device: str = "cpu"
    turns: bool = False

    def recipe(self) -> Recipe:
        """Return the recipe as it is run: of the named source and network, without validation, so many steps."""
        return get_recipe(RECIPE).override(
            {
                "data.source": self.source,
                "data.max_train_images": self.images,
                "data.max_test_images": 100,
                "data.validation_fraction": 0.0,
                "model.variant": self.model,
                **{f"model.{name}": value for name, value in variant(self.model).to_dict().items() if name in _SIZES},
                "model.hidden_act": "gelu",  # as the peers' networks
                "optimization.optimizer": "adamw",  # as the peers, without averages and clipping
                "optimization.ema_decay": None,
                "optimization.clip_norm": None,
                "optimization.batch_size": self.batch,
                "optimization.max_steps": self.steps,
                "mixed_precision": {"fp32": "no", "bf16": "bf16"}[self.precision],
                "evaluate_every": 1e6,
                "keep": "last",
                "checkpoint_minutes": None,
                "workers": self.workers,
                "cpu_threads": self.threads,
                "trackers": (),
            }
        )


class Clock:
    """Takes down when steps end and how long each waited for its input."""

    def __init__(self, settings: Settings):
        self.started = self.last = time.perf_counter()
        self.waited = 0.0
        self.synchronize: Callable[[], object] = torch.cuda.synchronize if settings.device == "cuda" else lambda: None
        self.steps_per_epoch = max(settings.images // settings.batch, 1)
        self.turns = settings.turns and os.environ.get("RANK", "0") == "0"  # the other processes wait for this one
        lists: dict[str, Any] = {name: [] for name in ("step_began", "step_seconds", "wait_seconds", "rss")}
        self.record: dict[str, Any] = {"setup_seconds": None, **lists}

    def begin(self) -> None:
        """Say that all is set up and the first batch is asked for."""
        if self.record["setup_seconds"] is None:
            self.record["setup_seconds"] = time.perf_counter() - self.started
            self._wait_for_the_turn()

    def _wait_for_the_turn(self) -> None:
        if self.turns:
            print(f"\n{TURN} {os.getpid()}", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        self.last = time.perf_counter()

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Hand batches on, and count the time that each lets wait."""
        source = iter(batches)
        self.begin()
        while True:
            start = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - start
            yield batch

    def timed(self, function: Callable) -> Callable:
        """Return a function whose time counts as waiting."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            found = function(*arguments, **keywords)
            self.synchronize()
            self.waited += time.perf_counter() - start
            return found

        return call

    def step(self) -> None:
        """Say that a step is done."""
        self.synchronize()
        now = time.perf_counter()
        self.record["step_began"].append(self.last)
        self.record["step_seconds"].append(now - self.last)
        self.record["wait_seconds"].append(self.waited)
        self.waited = 0.0
        if len(self.record["step_seconds"]) % self.steps_per_epoch == 0:
            self.record["rss"].append(held("VmRSS"))
        self._wait_for_the_turn()


# ---------------------------------------------------------------------------------------------- ours
def run_ours(settings: Settings, clock: Clock) -> None:
    """`vit-hf train cifar100_scratch`, with a clock around each step."""
    keep_freed_memory()  # as the command does
    take = Stepper.take

    def timed_take(self: Stepper, step: int, batches: Any, flags: Any) -> Any:
        if not hasattr(self, "clocked"):
            vars(self)["clocked"] = clock.waiting(batches)
            self.prepare = clock.timed(self.prepare)
        outcome = take(self, step, vars(self)["clocked"], flags)
        clock.step()
        return outcome

    Stepper.take = timed_take  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(settings.recipe(), output=f"{folder}/run", quiet=True)
    finally:
        Stepper.take = take  # type: ignore[method-assign]


# ---------------------------------------------------------------------------------------------- timm-style
def run_timm(settings: Settings, clock: Clock) -> None:
    """A script as timm's train.py: timm's network, loader with prefetcher and mixing, AdamW, a plain loop.

    On several processes by DistributedDataParallel, each with its share of the batch.
    """
    from accelerate import PartialState
    from timm.models.vision_transformer import VisionTransformer

    state = PartialState(cpu=settings.device == "cpu")
    recipe, config = settings.recipe(), variant(settings.model, **settings.recipe().model.config)
    split, columns, num_classes = _peer_data(settings)
    model: nn.Module = VisionTransformer(
        img_size=config.image_hw,
        patch_size=config.patch_hw[0],
        num_classes=num_classes,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        drop_path_rate=float(config.drop_path_rate),
    ).to(state.device)
    if state.num_processes > 1:
        model = nn.parallel.DistributedDataParallel(model)
        split = split.shard(state.num_processes, state.process_index)
    loader = timm_loader(
        split,
        columns,
        size=config.image_hw,
        augmentation=recipe.augmentation,
        num_classes=num_classes,
        batch_size=settings.batch // state.num_processes,
        workers=settings.workers,
        device=state.device,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.06)
    if not len(loader):
        raise ValueError(f"{settings.images} pictures make no batch of {settings.batch}; expected one at least")
    done = 0
    while done < settings.steps:
        for pixels, targets in clock.waiting(loader):
            if done == settings.steps:
                break
            with torch.autocast(state.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                loss = F.cross_entropy(model(pixels), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            clock.step()
            done += 1


def _peer_data(settings: Settings) -> tuple[Any, dict[str, str], int]:
    recipe = settings.recipe()
    fields: DataFields = dataclasses.replace(recipe.data, max_test_images=100)
    pictures = open_pictures(fields)
    columns: dict[str, str] = {**pictures.columns}  # type: ignore[dict-item]
    split: Any = pictures.train
    return split.cast_column(columns["image_column"], Image()), columns, len(pictures.source.label_names)


# ---------------------------------------------------------------------------------------------- Trainer-style
def run_trainer(settings: Settings, clock: Clock) -> None:
    """A script as transformers' example: ViTForImageClassification, `with_transform`, Trainer.

    Its network has a class token and no drop path; labels are mixed in the collator, the loss is given.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

    recipe, config = settings.recipe(), variant(settings.model, **settings.recipe().model.config)
    split, columns, num_classes = _peer_data(settings)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
    sizes: dict[str, Any] = {name: getattr(config, name) for name in names} | {"num_labels": num_classes}
    model = ViTForImageClassification(ViTConfig(**sizes))
    steps = torchvision_steps(config.image_hw, recipe.augmentation)

    class Timed(Trainer):
        def get_train_dataloader(self) -> Any:
            return _Waiting(super().get_train_dataloader(), clock)

    class Steps(TrainerCallback):
        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            clock.step()

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return F.cross_entropy(outputs.logits, labels)

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=settings.batch // processes,
            max_steps=settings.steps,
            learning_rate=6e-4,
            weight_decay=0.06,
            dataloader_num_workers=settings.workers,
            dataloader_persistent_workers=settings.workers > 0,
            dataloader_drop_last=True,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=50,
            bf16=settings.precision == "bf16",
            use_cpu=settings.device == "cpu",
        )
        Timed(
            model=model,
            args=arguments,
            train_dataset=split.with_transform(EachPicture(columns["image_column"], columns["label_column"], steps)),
            data_collator=MixingCollate(recipe.augmentation, num_classes),
            compute_loss_func=loss,
            callbacks=[Steps()],
        ).train()


class _Waiting:
    """A loader whose batches pass the clock."""

    def __init__(self, loader: Any, clock: Clock):
        self.loader, self.clock = loader, clock

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return self.clock.waiting(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


RUNS = {"vit_hf": run_ours, "timm": run_timm, "Trainer": run_trainer}


def main(words: list[str]) -> None:
    """Run one library and print what the clock says, on the main process."""
    library, settings = words[0], Settings(**json.loads(words[1]))
    torch.set_num_threads(settings.threads)
    clock = Clock(settings)
    RUNS[library](settings, clock)
    if len(clock.record["step_seconds"]) < settings.steps:
        raise RuntimeError(f"{len(clock.record['step_seconds'])} steps were taken, {settings.steps} expected")
    if int(os.environ.get("RANK", "0")) == 0:
        print("\n" + json.dumps({**clock.record, "settings": asdict(settings)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
