"""A Vision Transformer from scratch for the Hugging Face ecosystem; importing it registers the Auto classes."""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)

from .configuration_vit_hf import VitHfConfig
from .image_processing_vit_hf import VitHfImageProcessor, VitHfImageProcessorPil
from .masked_vit_hf import VitHfForMaskedImageModeling
from .modeling_vit_hf import VitHfForImageClassification, VitHfModel
from .variants import variant

if TYPE_CHECKING:
    from .checkpoints.export import export_checkpoint
    from .checkpoints.load import load_checkpoint
    from .sharing.trainer import VitHfTrainer
    from .training.loop import train
    from .training.recipe import Recipe
    from .training.recipes import get_recipe
    from .training.trainer_run import train_with_trainer

AutoConfig.register("vit_hf", VitHfConfig, exist_ok=True)
AutoModel.register(VitHfConfig, VitHfModel, exist_ok=True)
AutoModelForImageClassification.register(VitHfConfig, VitHfForImageClassification, exist_ok=True)
AutoModelForMaskedImageModeling.register(VitHfConfig, VitHfForMaskedImageModeling, exist_ok=True)
AutoImageProcessor.register(
    VitHfConfig,
    image_processor_classes={"torchvision": VitHfImageProcessor, "pil": VitHfImageProcessorPil},
    exist_ok=True,
)

__version__ = "0.1.0"
__all__ = [
    "Recipe",
    "VitHfConfig",
    "VitHfForImageClassification",
    "VitHfForMaskedImageModeling",
    "VitHfImageProcessor",
    "VitHfImageProcessorPil",
    "VitHfModel",
    "VitHfTrainer",
    "export_checkpoint",
    "get_recipe",
    "load_checkpoint",
    "train",
    "train_with_trainer",
    "variant",
]


def __getattr__(name: str) -> Any:
    """Import what loads further libraries (Accelerate, datasets, torchvision's models) only when it is asked for."""
    modules = {
        "train": "training.loop",
        "VitHfTrainer": "sharing.trainer",
        "train_with_trainer": "training.trainer_run",
        "Recipe": "training.recipe",
        "get_recipe": "training.recipes",
        "load_checkpoint": "checkpoints.load",
        "export_checkpoint": "checkpoints.export",
    }
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{modules[name]}", __name__), name)
