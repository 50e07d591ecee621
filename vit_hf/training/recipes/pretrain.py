"""Recipes for pre-training: what comes out is to be fine-tuned."""

from ...data.transforms import Augmentation
from ..recipe import DataFields, ModelFields, Optimization, Recipe


def vit_i21k_pretrain() -> Recipe:
    """Pre-train B/16 on ImageNet-21k with a sigmoid for each class and a representation head.

    Source: google-research/big_vision `configs/vit_i21k.py`, B/16 with its setting "light2" (AugReg, arXiv 2106.10270);
    the representation head, Linear + tanh of the model's width, is that of the ViT paper and of `vit_i1k.py` beside it.
    The classifier's bias of -10 at the start has no equal here; nor have RandAugment levels above 10 ("medium1" of the
    published B/16).
    Command: vit-hf train vit_i21k_pretrain --data FOLDER (with train and val; val holds 51,200 pictures there)
    Expected: fine-tuned on ImageNet-1k at 384 px, the published B/16 of AugReg reaches 85.49%.
    Result: not yet run here.
    """
    return Recipe(
        name="vit_i21k_pretrain",
        data=DataFields(source="imagenet21k"),
        model=ModelFields(variant="B/16", config={"pooling": "gap", "representation_size": 768}),
        augmentation=Augmentation(
            crop="inception", flip=True, randaugment_ops=2, randaugment_magnitude=30, mixup_alpha=0.2
        ),
        optimization=Optimization(
            epochs=300.0,
            batch_size=4096,
            learning_rate=1e-3,
            warmup_steps=10_000,
            weight_decay=0.1,
            loss="bce",
        ),
        mixed_precision="bf16",
        keep="last",
        workers=16,
    )


def simmim_pretrain() -> Recipe:
    """Pre-train B/16 without labels: 60% of the picture is hidden in squares of 32 px and predicted.

    Source: microsoft/SimMIM `configs/vit_base__800ep/simmim_pretrain__vit_base__img224__800ep.yaml` and `config.py`
    (arXiv 2111.09886), 16 processes of 128 pictures. Its learning rate falls to a tenth at epoch 700; here it follows a
    cosine down to its `MIN_LR`. Its relative position bias, shared by the blocks, is learned positions here. Rates are
    scaled by batch / 512 there, the lowest and the first too: 5e-6 and 5e-7 become 2e-5 and 2e-6.
    Command: vit-hf train simmim_pretrain --data ILSVRC/imagenet-1k
    Expected: fine-tuned on ImageNet-1k at 224 px: 83.8% top-1.
    Result: not yet run here.
    """
    return Recipe(
        name="simmim_pretrain",
        data=DataFields(source="ILSVRC/imagenet-1k", test_split="validation"),
        model=ModelFields(
            variant="B/16", config={"hidden_act": "gelu", "layer_scale_init": 0.1, "drop_path_rate": 0.1}
        ),
        augmentation=Augmentation(
            crop="inception", crop_area=(0.67, 1.0), flip=True, mask_ratio=0.6, mask_patch_size=32
        ),
        optimization=Optimization(
            epochs=800.0,
            batch_size=2048,
            learning_rate=1e-4,
            learning_rate_batch_size=512,
            warmup_learning_rate=2e-6,
            min_learning_rate=2e-5,
            warmup_epochs=10.0,
            weight_decay=0.05,
            clip_norm=5.0,
        ),
        task="masked_image_modeling",
        mixed_precision="bf16",
        keep="last",
        workers=8,
    )
