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
from .modeling_vit_hf import VitHfForImageClassification, VitHfForMaskedImageModeling, VitHfModel
from .variants import variant

if TYPE_CHECKING:
    from .training.loop import train
    from .training.recipe import Recipe
    from .training.recipes import get_recipe

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
    "get_recipe",
    "train",
    "variant",
]


def __getattr__(name: str) -> Any:
    """Import the training side, which needs Accelerate and datasets, only when it is asked for."""
    modules = {"train": "loop", "Recipe": "recipe", "get_recipe": "recipes"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".training.{modules[name]}", __name__), name)
