"""A Vision Transformer from scratch for the Hugging Face ecosystem; importing it registers the Auto classes."""

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
    "VitHfConfig",
    "VitHfForImageClassification",
    "VitHfForMaskedImageModeling",
    "VitHfImageProcessor",
    "VitHfImageProcessorPil",
    "VitHfModel",
    "variant",
]
