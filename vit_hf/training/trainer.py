"""The same recipe through `transformers.Trainer`, and a Trainer for one's own arguments and data.

What differs from the stock Trainer, and why:

- Batches come from `vit_hf.data.loading`: order, augmentation and mixing are drawn from (seed, position), dropout and
  drop path from (seed, step, accumulated batch, process). A resumed run equals the uninterrupted one bit by bit, and no
  state of a random generator is saved. The run is one stream of steps: `num_train_epochs` and the "epoch" strategies
  count passes over the rows, which need not end with a step; `on_epoch_begin` and `on_epoch_end` come once a run.
- Image and label columns are found by type and read by our own loaders: `remove_unused_columns` has nothing to remove.
- A checkpoint is safetensors and JSON. Stock writes pickles, among them `training_args.bin`, which holds the Hub token.
  Its manifest with the SHA-256 of every file is written last, and before older checkpoints go: a folder without one
  is passed over by `resume_from_checkpoint=True`. Weights are loaded strictly, and compared with the file afterwards.
- The loss is that of the recipe (soft labels of mixup and CutMix, label smoothing), the mean over the global batch.
  It must be finite, and so must the gradient: the stock Trainer goes on with NaN weights, and logs 0.0.
- Evaluation gives top1, top5 and loss, counting every picture once.

One process, or several with DDP. FSDP, DeepSpeed, pre-training without labels, checkpoints by the clock, a stop by
SIGTERM at a step boundary and the cure of an out-of-memory error are in `vit_hf.training.loop` only.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image, IterableDataset
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, TrainOutput, rotate_checkpoints

from ..configuration_vit_hf import VitHfConfig
from ..data.bad_images import PASSED_OVER
from ..data.columns import check_labels, find_image_column, find_label_column, has_labels, match_labels
from ..data.loading import build_evaluation_loader, build_train_loader
from ..data.order import seed_from
from ..data.pictures import DataFields, Split, num_rows
from ..data.preparation import Preparation
from ..data.transforms import Augmentation, TrainTransform
from ..evaluation.scoring import Scores, score
from ..image_processing_vit_hf import VitHfImageProcessor
from ..modeling_vit_hf import VitHfForImageClassification
from .optim import build_average, build_optimizer, build_schedule, plan_steps
from .passed_over import PassedOver
from .progress import quiet_transformers
from .recipe import Optimization, Recipe
from .state import MANIFEST, DamagedFolderError, check_folder
from .tasks import Classification
from .trainer_checkpoint import AVERAGE, WEIGHTS, load_weights, newest_checkpoint, read_state, seal, write_state

_UNLABELLED = "test, without labels"


class VitHfTrainer(Trainer):
    """A Trainer for `VitHfForImageClassification`, with exact resume and checkpoints without pickles.

    Args:
        model: a classifier whose classes are those of the data.
        args: as for the stock Trainer; the sampling and column options have no effect. The optimiser and the schedule
            are those of `args` unless `optimization` is given; the weight decay leaves out biases, norms, tokens and
            positions either way.
        train_dataset: `datasets.Dataset`, or IterableDataset (with `args.max_steps`), with an image and a label column.
        eval_dataset: of the same kind, or several by name.
        processing_class: the model's image processor; saved with every checkpoint.
        augmentation: of training pictures; none by default.
        optimization: optimiser, schedule, loss and averaging of a recipe; the steps and batches in `args` have to be
            its own, as `training_arguments` makes them.
        evaluate_every: epochs between two events of the "epoch" strategies.
        image_column, label_column: needed only where the feature types do not settle it.
        on_bad_image: "raise", or "skip" for what `DataFields.on_bad_image` says; `bad_images` then knows them.
        compute_metrics: from `EvalPrediction`, whose rows are those of the split, to further metrics.
        callbacks, optimizers: as for the stock Trainer.

    Raises:
        ValueError: arguments or a model that this class does not serve, or data that does not fit the model.
        TypeError: the model or its image processor is another library's, or the data is no data set of `datasets`.
    """

    # the parent's types allow for what this class never has
    args: TrainingArguments
    model: Any
    optimizer: Any
    lr_scheduler: Any
    processing_class: Any
    eval_dataset: Any

    def __init__(
        self,
        model: VitHfForImageClassification,
        args: TrainingArguments,
        *,
        train_dataset: Split | None = None,
        eval_dataset: Split | dict[str, Split] | None = None,
        processing_class: VitHfImageProcessor,
        augmentation: Augmentation | None = None,
        optimization: Optimization | None = None,
        evaluate_every: float = 1.0,
        image_column: str | None = None,
        label_column: str | None = None,
        on_bad_image: str = "raise",
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
    ):
        check_arguments(args)
        _check_model(model, processing_class)
        if not args.max_grad_norm:
            args.max_grad_norm = math.inf  # clips nothing; the Trainer takes no norm otherwise, which must be finite
        args._n_gpu = min(args.n_gpu, 1)  # several GPUs by a launcher, never by torch.nn.DataParallel
        had_cache_field = hasattr(model.config, "use_cache")
        self.augmentation, self.optimization = augmentation or Augmentation(), optimization
        self._wanted = {"image": image_column, "label": label_column}
        self._names = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
        self._opened: WeakKeyDictionary[Split, tuple[Split, dict[str, Any]]] = WeakKeyDictionary()
        self._train_split = None if train_dataset is None else self._open(train_dataset, "train")
        self._preparation: Preparation | None = None
        self._samples: Any = None
        self.average: AveragedModel | None = None
        self.step_loss = 0.0
        """Mean loss of the latest step, or of its accumulated batches so far, in this process."""
        self._step = 0
        self._part = 0
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=[_Epochs(self, evaluate_every), *(callbacks or [])],
            optimizers=optimizers,
        )
        self.bad_images = PassedOver(on_bad_image, self.accelerator)
        """What could not be decoded, the same in all processes."""
        self.model_accepts_loss_kwargs = False  # each batch's mean counts alike: their sizes are equal
        if not had_cache_field:
            del model.config.use_cache  # which Trainer adds; it would be saved
        stated = Recipe(  # what the task reads of a recipe
            name="trainer",
            data=DataFields(source="train_dataset"),
            augmentation=self.augmentation,
            optimization=optimization or Optimization(label_smoothing=args.label_smoothing_factor),
            seed=self._seed,
        )
        self.task = Classification(stated, model)

    # ------------------------------------------------------------------------------ data
    @property
    def _seed(self) -> int:
        """Of order, augmentation and mixing."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    @property
    def steps_per_epoch(self) -> float:
        """Steps of a pass over the training rows, in general not whole; infinite when streaming."""
        rows = num_rows(self._train_split[0]) if self._train_split else None
        batch = self.get_total_train_batch_size(self.args)
        return math.inf if rows is None else rows / batch

    def _total_steps(self) -> int:
        if self.args.max_steps > 0:
            return self.args.max_steps
        if math.isinf(self.steps_per_epoch):
            raise ValueError("a streamed data set has no known length; set max_steps in TrainingArguments")
        return max(round(self.args.num_train_epochs * self.steps_per_epoch), 1)

    def _open(self, dataset: Split, name: str) -> tuple[Split, dict[str, Any]]:
        """Return a data set with undecoded images and checked labels, and its columns as keywords of the loaders.

        Of a data set that comes again it is the same one, whose pixels are known then.
        """
        if not isinstance(dataset, Dataset | IterableDataset):
            splits = f'; give one of its splits, such as data["{next(iter(dataset))}"]' if dataset and isinstance(
                dataset, dict) else ""  # fmt: skip
            raise TypeError(
                f"the {name} data is a {type(dataset).__name__}; expected a Dataset or IterableDataset of `datasets`"
                f"{splits}; for other data use transformers.Trainer itself, which trains this model too"
            )
        if dataset in self._opened:
            return self._opened[dataset]
        if isinstance(dataset, Dataset) and not len(dataset):
            raise ValueError(f"the {name} data has no rows; expected at least one: give another split")
        if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
            raise ValueError(
                f"the {name} data has a transform (with_transform, set_transform), which would not be used; take it "
                "off by with_format(None), and say what to do with training pictures by augmentation=Augmentation(...)"
            )
        if dataset.features is None:
            raise ValueError(f"the columns of the {name} data are not known; give it features (cast)")
        image = find_image_column(dataset.features, where=name, wanted=self._wanted["image"])
        label = find_label_column(dataset.features, where=name, wanted=self._wanted["label"])
        split = dataset.with_format(None).cast_column(image, Image(decode=False))
        feature = dataset.features[label]
        if not isinstance(feature, ClassLabel):
            split = self._name_labels(split, label, name)
        elif feature.names != self._names and not _are_default(self._names, feature.names):
            raise ValueError(
                f"the {name} data has {len(feature.names)} classes, the model {len(self._names)}, or in another order "
                f"(first: {feature.names[:3]} and {self._names[:3]}); expected the same; "
                "model.set_labels(dict(enumerate(names))) gives the model a new head for the data's classes"
            )
        if isinstance(split, Dataset):
            check_labels({name: split}, label, where="the data")
        self._opened[dataset] = split, {"image_column": image, "label_column": label}
        return self._opened[dataset]

    def _name_labels(self, split: Split, column: str, where: str) -> Split:
        """Turn text, and numbers or truths where the model's classes are called by them, into the class of that name.

        Numbers are class indices otherwise. Classes called "0", "1", ... are the same either way.
        """
        kind = split.features[column].dtype
        numbered = kind.startswith(("int", "uint")) and all(name.isdecimal() for name in self._names)
        truths = kind == "bool" and set(self._names) == {"False", "True"}
        if numbered or truths or "string" in kind:
            return match_labels(split, column, self._names, where="the data", split=where)
        return split.cast_column(column, ClassLabel(names=self._names))

    def get_train_dataloader(self) -> DataLoader:
        """Return this process's share of the whole run: accumulated batches, step after step."""
        if self._train_split is None:
            raise ValueError("there is nothing to train on; give a train_dataset")
        split, columns = self._train_split
        accelerator = self.accelerator
        shares = 1 if accelerator.split_batches else accelerator.num_processes
        loader, self._preparation = build_train_loader(
            split,
            **columns,
            transform=TrainTransform(self.augmentation, self.processing_class),
            batch_size=self.get_total_train_batch_size(self.args),
            accumulation=self.args.gradient_accumulation_steps * shares,
            num_steps=self._total_steps(),
            seed=self._seed,
            workers=self.args.dataloader_num_workers,
            repeats=self.augmentation.repeats,
            draw=self.task.draw,
            skip_bad=self.bad_images.skip,
        )
        self._samples = loader.dataset
        return accelerator.prepare_data_loader(loader, device_placement=False)  # `_prepare_inputs` moves the batches

    def get_eval_dataloader(self, eval_dataset: str | Split | None = None) -> DataLoader:
        """Return this process's share of a split, in its order: the one given, or `eval_dataset`, or one of it."""
        name, chosen = "evaluation", eval_dataset
        if isinstance(eval_dataset, str):
            name, chosen = eval_dataset, self.eval_dataset[eval_dataset]
        chosen = self.eval_dataset if chosen is None else chosen
        if chosen is None:
            raise ValueError("there is nothing to evaluate; give an eval_dataset")
        return self._evaluation_loader(chosen, name)

    def get_test_dataloader(self, test_dataset: Split) -> DataLoader:
        """Return the loader for `predict`; a Dataset may be without labels: no column, or -1 or nothing in all rows."""
        if not isinstance(test_dataset, Dataset) or has_labels(
            test_dataset, where="test", wanted=self._wanted["label"]
        ):
            return self._evaluation_loader(test_dataset, "test")
        image = find_image_column(test_dataset.features, where="test", wanted=self._wanted["image"])
        column = self._wanted["label"] or "label"
        placeholders = np.zeros(len(test_dataset), dtype=np.int64)
        bare = test_dataset.select_columns([image])
        bare = bare.add_column(column, placeholders, feature=ClassLabel(names=self._names))
        return self._evaluation_loader(bare, _UNLABELLED)

    def _evaluation_loader(self, dataset: Split, name: str) -> DataLoader:
        """Return this process's share of a split, in its order."""
        split, columns = self._open(dataset, name)
        shares = self.accelerator.num_processes if self.accelerator.split_batches else 1
        loader = build_evaluation_loader(
            split,
            **columns,
            name=name,
            processor=self.processing_class,
            batch_size=self.args.per_device_eval_batch_size * shares,
            workers=self.args.dataloader_num_workers,
            skip_bad=self.bad_images.skip,
        )
        return self.accelerator.prepare(loader)

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> tuple:
        """Make the run one pass of the Trainer's inner loop."""
        steps, batch = self._total_steps(), self.get_total_train_batch_size(args)
        rows = num_rows(self._train_split[0]) if self._train_split else None
        return 1, steps, rows or steps * batch, steps * batch, batch, steps * args.gradient_accumulation_steps, steps

    # ------------------------------------------------------------------------------ steps
    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, from the start or from a checkpoint; in the end the model has the weights that were scored.

        Args:
            resume_from_checkpoint: folder of a checkpoint, or True for the newest whole one in `args.output_dir`.
            trial: as for the stock Trainer.
            ignore_keys_for_eval: without effect.

        Raises:
            DamagedFolderError: the checkpoint is not what its manifest says, or lacks a tensor.
            ValueError: there is no checkpoint, or it is of a run with another seed, batch size or number of rows.
            FloatingPointError: loss or gradient is not finite; no weight has moved.
        """
        if resume_from_checkpoint is True:
            newest = newest_checkpoint(Path(str(self.args.output_dir)))
            if newest is None:
                raise ValueError(f"{self.args.output_dir} has no whole checkpoint to resume from; start without")
            resume_from_checkpoint = str(newest)
        elif resume_from_checkpoint:
            check_folder(Path(resume_from_checkpoint))
        self._step = self._part = 0
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:  # a run that ends by an error or Ctrl-C likewise
            if self.average is not None:
                self.model.load_state_dict(self.average.module.state_dict())
                self.average = None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one batch, under the seed of its address."""
        step = self.state.global_step + 1
        if step != self._step:
            self._step, self._part, self.step_loss = step, 0, 0.0
        torch.manual_seed(seed_from("step", self.args.seed, step, self._part, self.args.process_index))
        self._part += 1
        if (passed_over := inputs.pop(PASSED_OVER, None)) is not None:
            self._note_passed_over(inputs["rows"], passed_over)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss.item()):
            rows = ", ".join(map(str, inputs["rows"][:8].tolist())) + (", ..." if len(inputs["rows"]) > 8 else "")
            raise FloatingPointError(self._not_finite(f"the loss is {loss.item()}", f", training rows {rows}"))
        self.step_loss += loss.item()
        return loss

    def _note_passed_over(self, rows: torch.Tensor, passed_over: torch.Tensor) -> None:
        """Record what a batch passed over; of several processes all take part, each batch."""
        total = int(self.accelerator.reduce(passed_over.sum().float().to(self.accelerator.device), "sum"))
        if total:
            taken = self._step * self.get_total_train_batch_size(self.args)
            pairs = [(rows.cpu(), passed_over.cpu())]
            self.bad_images.after_batches(self._samples, pairs, total=total, taken=taken)

    def measure(self, network: nn.Module, dataloader: DataLoader, split: str) -> Scores:
        """Score every row once; bad ones, where they are skipped, are recorded under the name of the split."""
        samples: Any = dataloader.dataset
        count = None if isinstance(samples, torch.utils.data.IterableDataset) else len(samples)
        self.callback_handler.eval_dataloader = dataloader  # progress bars ask for its length

        def after_batch(_: int) -> None:
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

        on_bad = self.bad_images.after_scoring(samples, split)
        options: dict[str, Any] = {"num_samples": count, "on_batch": after_batch, "on_bad": on_bad}
        return score(network, dataloader, self.accelerator, **options)

    def _average_points(self) -> None:
        """Let a schedule-free optimiser put its averaged point into the model; a step puts the other back."""
        if callable(getattr(self.optimizer, "eval", None)):
            self.optimizer.eval()

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Augment a training batch on the device; an evaluation batch is ready."""
        if self._preparation is not None and "keys" in inputs:
            return self._preparation(inputs, self.args.device)
        return super()._prepare_inputs(inputs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count as the stock Trainer does, which looks at pixels that a batch does not have yet."""
        height, width = self.processing_class.image_hw
        return 6 * len(inputs["rows"]) * 3 * height * width * self.model.num_parameters(exclude_embeddings=True)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the mean loss of a batch."""
        loss = self.task.loss(model, inputs)
        return (loss, {}) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(float(norm)):
            raise FloatingPointError(self._not_finite("the gradient is not finite", ""))
        return norm

    def _not_finite(self, what: str, rows: str) -> str:
        return (
            f"{what} at step {self._step}, process {self.args.process_index}{rows}; expected a finite number. The step "
            "was not taken; checkpoints are as they were. Lower the learning rate, clip the gradient (max_grad_norm), "
            "or use bf16 instead of fp16"
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the parameters that decay: as in recipes."""
        groups = build_optimizer(model, Optimization(weight_decay=1.0)).param_groups
        decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
        return [name for name, parameter in model.named_parameters() if id(parameter) in decayed]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimiser of `optimization`, with the averaged weights if it has them, or that of `args`."""
        if self.optimization is None:
            return super().create_optimizer(model)
        if self.optimizer is None:
            self.optimizer = build_optimizer(model or self.model, self.optimization, scaled=self.args.fp16)
        if self.average is None and self.optimization.ema_decay is not None:
            self.average = build_average(self.model, self.optimization.ema_decay)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Make the schedule of `optimization`, or that of `args`."""
        if self.optimization is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            rows = num_rows(self._train_split[0]) if self._train_split else None
            mixes = self.task.mixing is not None
            plan = plan_steps(self.optimization, num_images=rows, num_processes=self.args.world_size, even=mixes)
            if (plan.total_steps, plan.accumulation) != (num_training_steps, self.args.gradient_accumulation_steps):
                raise ValueError(
                    f"the arguments say {num_training_steps} steps of {self.args.gradient_accumulation_steps} batches, "
                    f"the recipe {plan.total_steps} of {plan.accumulation}; take both from training_arguments(recipe)"
                )
            self.lr_scheduler = build_schedule(optimizer or self.optimizer, self.optimization, plan)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # ------------------------------------------------------------------------------ evaluation
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Score every row of a split once, with the weights that would be saved as the result."""
        self._average_points()
        network = self.model_wrapped if self.average is None else self.average.module
        samples: Any = dataloader.dataset
        scores = self.measure(network, dataloader, "validation" if samples.name == "evaluation" else samples.name)
        predictions, labels = scores.logits.numpy(), scores.labels.numpy()
        if samples.name == _UNLABELLED:
            return EvalLoopOutput(predictions=predictions, label_ids=None, metrics={}, num_samples=len(predictions))
        metrics: dict[str, float] = {**scores.measure()}
        count = int(metrics.pop("n"))
        if self.compute_metrics is not None:
            metrics.update(self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels)))
        prefix = metric_key_prefix + "_"
        named = {key if key.startswith(prefix) else prefix + key: value for key, value in metrics.items()}
        return EvalLoopOutput(predictions=predictions, label_ids=labels, metrics=named, num_samples=count)

    # ------------------------------------------------------------------------------ the Hub
    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Refuse: `vit_hf.VitHfTrainer` is the class that pushes."""
        raise ValueError("this class does not push to the Hub; use vit_hf.VitHfTrainer, which is this one with the Hub")

    # ------------------------------------------------------------------------------ checkpoints
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as it would be scored; all processes call it."""
        self._average_points()
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        network = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with quiet_transformers():
            network.save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / MANIFEST).unlink(missing_ok=True)  # written over: until all is there it is no checkpoint
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            seal(folder)
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(folder.parent), save_total_limit=limit, best_model_checkpoint=best, use_mtime=True)
        self.accelerator.wait_for_everyone()

    def _facts(self) -> dict[str, int | None]:
        """What must not change on resume: all that the position in the data is drawn from."""
        rows = num_rows(self._train_split[0]) if self._train_split else None
        batch = self.get_total_train_batch_size(self.args)
        return {"seed": self.args.seed, "data seed": self._seed, "batch size": batch, "training rows": rows}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            parts = {"schedule": self.lr_scheduler, "scaler": self.accelerator.scaler, "bad_images": self.bad_images}
            write_state(Path(output_dir), self.model, self.optimizer, parts, self.average, self._facts())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            parts = {"schedule": self.lr_scheduler, "scaler": self.accelerator.scaler, "bad_images": self.bad_images}
            read_state(Path(checkpoint), self.model, self.optimizer, parts, self.average, self._facts())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.model if model is None else model, Path(resume_from_checkpoint) / WEIGHTS)

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        check_folder(best)
        if self.average is None:
            load_weights(self.model, best / WEIGHTS)
        else:  # the model gets them at the end of `train`
            load_weights(self.average.module, best / AVERAGE)

    def _save_scaler(self, output_dir: str) -> None:
        """It lies with optimiser and schedule."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """It lies with optimiser and schedule."""

    def _save_rng_state(self, output_dir: str) -> None:
        """There is none to save: every random number has an address."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """There is none to load."""


class _Epochs(TrainerCallback):
    """Counts epochs as passes over the rows, and acts for the "epoch" strategies where one has ended."""

    def __init__(self, trainer: VitHfTrainer, evaluate_every: float):
        self.trainer, self.evaluate_every = trainer, evaluate_every

    def on_train_begin(self, args, state, control, **_):
        length = self.trainer.steps_per_epoch
        state.num_train_epochs = 1 if math.isinf(length) else math.ceil(state.max_steps / length)
        if args.load_best_model_at_end and state.best_global_step and state.best_model_checkpoint is None:
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"  # the folder may have been moved
            if not best.is_dir():
                raise DamagedFolderError(
                    f"{best}, the best checkpoint of the run that is resumed, is gone; start a new run"
                )
            state.best_model_checkpoint = str(best)

    def on_optimizer_step(self, args, state, control, **_):
        if self.trainer.average is not None:
            self.trainer.average.update_parameters(self.trainer.model)

    def on_step_end(self, args, state, control, **_):
        step, length = state.global_step, self.trainer.steps_per_epoch
        if math.isfinite(length):
            state.epoch = round(step / length, 4)
        interval = length * self.evaluate_every
        passed = (step + 1e-9) // interval > (step - 1 + 1e-9) // interval  # 0 > 0 where the length is infinite
        if passed or step == state.max_steps:
            control.should_log |= args.logging_strategy == "epoch"
            control.should_evaluate |= args.eval_strategy == "epoch" and args.eval_delay <= (state.epoch or 0)
            control.should_save |= args.save_strategy == "epoch"

    def on_epoch_end(self, args, state, control, **_):
        control.should_log = control.should_evaluate = control.should_save = False  # done at the end of the last step


def check_arguments(args: TrainingArguments) -> None:
    """Raise ValueError for arguments that `VitHfTrainer` does not serve, or that the Trainer passes over in silence."""
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16 (mixed_precision) needs a GPU, this process has none; use bf16, or float32")
    launched = [os.environ.get(f"ACCELERATE_USE_{kind}", "false") for kind in ("FSDP", "DEEPSPEED")]
    if args.deepspeed or args.fsdp or "true" in launched:
        raise ValueError("FSDP and DeepSpeed are served by scripts/finetune_accelerate.py; use that, or DDP here")
    if args.fp16_full_eval or args.bf16_full_eval:
        raise ValueError("fp16_full_eval and bf16_full_eval are not served; bf16 or fp16 covers the evaluation too")
    if args.include_for_metrics or args.batch_eval_metrics:
        raise ValueError(
            "include_for_metrics and batch_eval_metrics are not served; compute_metrics gets the logits and labels of "
            "the whole split, once"
        )


def _check_model(model: Any, processor: Any) -> None:
    """Raise for what is no classifier of this package with its image processor, or learns otherwise.

    The classes may be those of a model repo's own code, which are others to Python.
    """
    inner = getattr(model, "_orig_mod", model)  # torch.compile's
    ours = getattr(getattr(inner, "config", None), "model_type", None) == VitHfConfig.model_type
    adapted = hasattr(inner, "peft_config") or getattr(inner, "_hf_peft_config_loaded", False)
    if adapted or not (ours and hasattr(inner, "classifier")):
        raise TypeError(
            f"model is {'one with adapters' if adapted else type(inner).__name__}; expected a "
            "VitHfForImageClassification; use transformers.Trainer, which trains all of this package, and adapters"
        )
    if not hasattr(processor, "image_hw"):
        raise TypeError(
            f"processing_class is {type(processor).__name__}; expected the model's VitHfImageProcessor: load it with "
            "VitHfImageProcessor.from_pretrained"
        )
    if (kind := inner.config.problem_type) not in (None, "single_label_classification"):
        raise ValueError(
            f"the model's problem_type is {kind!r}; expected one class a picture, which is what this class trains: set "
            "model.config.problem_type to None, or use transformers.Trainer"
        )


def _are_default(names: list[str], data_names: list[str]) -> bool:
    """Whether a model has no names of its own for as many classes as the data has."""
    return names == [f"LABEL_{index}" for index in range(len(data_names))]
