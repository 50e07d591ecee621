"""What a training run is made of: a frozen dataclass, its checks, and its form as YAML and as command-line words.

A recipe is complete: with the seed and the data it fixes the run. Nested fields are written with a dot
("augmentation.flip"); under `model` any field of `VitHfConfig` may stand beside the variant's name.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from huggingface_hub.errors import StrictDataclassError

from ..configuration_vit_hf import VitHfConfig
from ..data.pictures import DataFields
from ..data.transforms import Augmentation
from ..variants import variant
from .checks import check_network, check_values
from .fields import check_type, check_types, parse, plain, unknown_field

_CONFIG_TYPES = {f.name: f.type for f in dataclasses.fields(VitHfConfig) if f.name in VitHfConfig.__annotations__}

_NOT_OF_THE_NETWORK = ("image_size", "drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "freeze")


@dataclass(frozen=True)
class ModelFields:
    """Which network is trained, and from where it starts."""

    variant: str | None = None
    """Name in the table of `vit_hf.variants`, for training from scratch; None with init_from."""
    init_from: str | None = None
    """What to start from, with a new classifier: model folder, Hub id, or weights of another library that
    `load_checkpoint` takes. It brings its own network."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of `VitHfConfig` that differ from the variant or the loaded model: image_size, drop_path_rate, ..."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are, by shell patterns over their names: "vit.*" is all but the classifier."""


@dataclass(frozen=True)
class Optimization:
    """How the weights move."""

    epochs: float = 100.0
    """Passes over the training pictures."""
    max_steps: int | None = None
    """Optimiser steps; wins over epochs."""
    batch_size: int = 128
    """Pictures a step, over all processes and accumulated batches."""
    max_device_batch_size: int | None = None
    """Most pictures a process takes at once; beyond it gradients are accumulated. None: never accumulate."""
    optimizer: str = "adamw"
    """"adamw", "sgd", or "muon": Muon for the matrices of the blocks, AdamW for all else."""
    learning_rate: float = 1e-3
    """Peak, reached after the warm-up."""
    muon_learning_rate: float | None = None
    """Peak of Muon's matrices, in AdamW's measure; the schedule is the same. None: as learning_rate."""
    learning_rate_batch_size: int | None = None
    """Batch size that learning rates are stated for: the peak is learning_rate x batch_size / this. None: the peak is
    learning_rate itself."""
    warmup_learning_rate: float = 0.0
    """Start of the warm-up, as it stands."""
    min_learning_rate: float = 0.0
    """End of the cosine, as it stands."""
    schedule: str = "cosine"
    """"cosine" or "constant", both after a linear warm-up from warmup_learning_rate."""
    warmup_epochs: float = 0.0
    """Length of the warm-up, in epochs."""
    warmup_steps: int | None = None
    """Length of the warm-up, in steps; wins over epochs."""
    momentum: float = 0.9
    """Of SGD."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = 0.0
    """Times the learning rate (torch's AdamW and Muon); not on biases, norms, tokens and positions."""
    layer_decay: float | None = None
    """Factor of all learning rates from each block to the one before it (BEiT, MAE); None for one rate."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; None for no clipping."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes."""
    loss: str = "cross_entropy"
    """"cross_entropy", or "bce": a sigmoid for each class, summed over them (AugReg's pre-training)."""
    ema_decay: float | None = None
    """Decay a step of the averaged weights that are scored and saved; None for none."""

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up: as it stands, or scaled by the batch size that it is stated for."""
        return self._scaled(self.learning_rate)

    @property
    def peak_muon_learning_rate(self) -> float:
        """That of Muon's matrices."""
        return self._scaled(self.learning_rate if self.muon_learning_rate is None else self.muon_learning_rate)

    def _scaled(self, rate: float) -> float:
        stated_for = self.learning_rate_batch_size
        return rate if stated_for is None else rate * self.batch_size / stated_for


_SECTIONS = {"model": ModelFields, "data": DataFields, "augmentation": Augmentation, "optimization": Optimization}


@dataclass(frozen=True)
class Recipe:
    """One training run, complete but for where its results go."""

    name: str
    """Short name, also of the default output folder."""
    data: DataFields
    """What is learned from."""
    model: ModelFields = field(default_factory=ModelFields)
    """What learns."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How the pictures are varied."""
    optimization: Optimization = field(default_factory=Optimization)
    """How it learns."""
    task: str = "classification"
    """"classification", or "masked_image_modeling": SimMIM's pre-training without labels."""
    seed: int = 0
    """Of weights, order, augmentation, mixing, dropout and drop path."""
    mixed_precision: str = "no"
    """"no" (float32), "fp16" or "bf16"."""
    evaluate_every: float = 1.0
    """Epochs between two scores on the validation split."""
    keep: str = "best"
    """Which weights are tested and saved: "best" on the validation split, or "last"."""
    checkpoint_minutes: float | None = 10.0
    """Minutes between two checkpoints to resume from; None for none by the clock."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints; None for none by the count."""
    checkpoint_limit: int = 1
    """How many of the newest checkpoints are kept, beside the best weights."""
    hang_timeout_minutes: float | None = 30.0
    """A process that finishes no step and scores no batch for so long ends the job, with its traceback; None: never."""
    evaluation_batch_size: int = 256
    """Pictures a process scores at once."""
    workers: int = 0
    """Processes that decode, cut and resize pictures, beside each training process. None is started for pictures that
    all have one size and take at most 4 GiB decoded (their pixels are cached), nor for streamed ones."""
    cpu_threads: int | None = None
    """Threads that torch uses in each process on the CPU; None leaves torch's choice. For the smallest nets one thread
    is about as fast as two, and much faster when the machine has other work."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the model with torch.compile."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Accelerate's names of experiment trackers: tensorboard, wandb, mlflow, trackio, ..."""

    def __post_init__(self):
        check_types(self, "")
        for section in _SECTIONS:
            check_types(getattr(self, section), section + ".")
        if not re.fullmatch(r"\w[\w.-]*", self.name):  # it becomes a folder
            raise ValueError(f"name is {self.name!r}; expected letters, digits, '-', '_' and '.'")
        unknown = sorted(set(self.model.config) - set(_CONFIG_TYPES))
        if unknown:
            raise ValueError(unknown_field(f"model.{unknown[0]}", field_names()))
        if self.model.init_from is not None and self.model.variant is not None:
            raise ValueError(
                f"model.variant is {self.model.variant!r} and model.init_from {self.model.init_from!r}; expected one "
                "of them: a model to start from brings its own network"
            )
        check_values(self)
        if self.model.init_from is None:
            try:
                config = variant(self.model.variant or "B/16", **self.model.config)
            except StrictDataclassError as error:  # the network is impossible
                raise ValueError(f"model: {error.__cause__ or error}") from error
            check_network(self, config)

    def override(self, values: Mapping[str, Any]) -> "Recipe":
        """Return a copy in which the named fields have other values.

        Args:
            values: dotted names ("seed", "data.source", "model.image_size") to values; command-line words (str) are
                read as the field's type.

        Raises:
            ValueError: an unknown field (with the nearest names), a value of the wrong type or out of range.

        A `model.init_from` brings its own network: the variant of a recipe that trains from scratch and its sizes give
        way, the image size, dropout rates and frozen parameters stay. What a fine-tuning recipe, which names no
        variant, says of the network stays too: it is to be changed in whatever is loaded.
        """
        tree = self.to_dict()
        if values.get("model.init_from") is not None and self.model.variant is not None:
            tree["model"] = {name: value for name, value in tree["model"].items() if name in _NOT_OF_THE_NETWORK}
        for name, value in values.items():
            section, _, leaf = name.rpartition(".")
            if name not in field_names():
                raise ValueError(unknown_field(name, field_names()))
            target = tree[section] if section else tree
            target[leaf] = parse(value, _annotation(name), name)
        return Recipe.from_dict(tree)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, `model.config` merged into `model`: what YAML and JSON hold."""
        tree = dataclasses.asdict(self)
        tree["model"].update(tree["model"].pop("config"))
        return plain(tree)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Recipe":
        """Build a recipe from nested plain values; ValueError on unknown, missing or ill-typed fields."""
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(tree, Mapping) or "name" not in tree or "data" not in tree:
            raise ValueError(
                "a recipe needs at least name and data.source; see `vit-hf recipes digits` for a whole one"
            )
        values: dict[str, Any] = {}
        for name, value in tree.items():
            if name not in known:
                raise ValueError(unknown_field(str(name), field_names()))
            if name in _SECTIONS:
                value = _section(name, value)
            values[name] = parse(value, get_type_hints(cls)[name], name)
        return cls(**values)

    def to_yaml(self) -> str:
        """Return the recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "Recipe":
        """Read a recipe from a YAML file; ValueError naming the file and the fault."""
        try:
            fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            if isinstance(fields, dict) and fields.get("mixed_precision") is False:
                fields["mixed_precision"] = "no"  # without quotes YAML's word for false
            return cls.from_dict(fields)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def field_names() -> list[str]:
    """Return the dotted name of every field that can be overridden."""
    names = []
    for entry in dataclasses.fields(Recipe):
        if entry.name in _SECTIONS:
            inner = [f.name for f in dataclasses.fields(_SECTIONS[entry.name])]
            if entry.name == "model":
                inner = [*(name for name in inner if name != "config"), *sorted(_CONFIG_TYPES)]
            names += [f"{entry.name}.{name}" for name in inner]
        else:
            names.append(entry.name)
    return names


def _annotation(name: str) -> Any:
    section, _, leaf = name.rpartition(".")
    if not section:
        return get_type_hints(Recipe)[leaf]
    hints = get_type_hints(_SECTIONS[section])
    return hints[leaf] if leaf in hints else _CONFIG_TYPES[leaf]


def _section(name: str, value: Any) -> Any:
    """Build one section from its mapping, unknown keys refused; under `model` config fields are set apart."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}; expected a mapping of its fields")
    kind, hints = _SECTIONS[name], get_type_hints(_SECTIONS[name])
    known = field_names()
    for key in value:
        if f"{name}.{key}" not in known:
            raise ValueError(unknown_field(f"{name}.{key}", known))
    if name == "data" and "source" not in value:
        raise ValueError("data.source is missing; expected a folder, a Parquet file, an archive, a Hub id or digits")
    values = {key: parse(inner, _annotation(f"{name}.{key}"), f"{name}.{key}") for key, inner in value.items()}
    if name == "model":
        values["config"] = {key: values.pop(key) for key in list(values) if key in _CONFIG_TYPES}
    for key, inner in values.items():
        check_type(f"{name}.{key}", inner, hints[key])  # before the section's own checks rely on it
    return kind(**values)
