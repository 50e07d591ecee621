"""Recipes that start from a pre-trained model: any folder or Hub id of this package, or weights of another library.

The start is not part of them: `--model.init_from`. All that they say of the network is changed in what is loaded.
"""

import dataclasses

from ...data.transforms import Augmentation
from ..recipe import DataFields, ModelFields, Optimization, Recipe


def vit_finetune() -> Recipe:
    """Fine-tune a pre-trained ViT on CIFAR-100 as the paper does, by SGD at 384 px.

    Source: google-research/vision_transformer `vit_jax/configs/common.py` and `vit.py`: SGD with momentum 0.9, batch
    512, clip 1, cosine after 500 warm-up steps of 10,000, no weight decay, 384 px, inception crop and flip, head from
    zero, representation head dropped, 2% of train held out. The paper searched learning rates 0.001, 0.003, 0.01 and
    0.03 for CIFAR. Its momentum in bfloat16 has no equal here.
    Command: vit-hf train vit_finetune --model.init_from FOLDER_OR_HUB_ID (another set: --data SOURCE)
    Expected: from ImageNet-21k B/16 92.06%, B/32 92.31%, L/16 92.91%, L/32 93.29%, R50+B/16 90.88%.
    Result: not yet run here.
    """
    return Recipe(
        name="vit_finetune",
        data=DataFields(source="uoft-cs/cifar100", validation_fraction=0.02),
        model=ModelFields(config={"image_size": 384, "representation_size": None}),
        augmentation=Augmentation(crop="inception", flip=True),
        optimization=Optimization(
            max_steps=10_000,
            batch_size=512,
            optimizer="sgd",
            learning_rate=0.03,
            warmup_steps=500,
        ),
        mixed_precision="bf16",
        workers=4,
    )


def vit_finetune_imagenet() -> Recipe:
    """Fine-tune a pre-trained ViT on ImageNet-1k as the paper does: `vit_finetune` with twice the steps.

    Source: as `vit_finetune`, with 20,000 steps and 1% of train held out. The paper searched learning rates 0.003,
    0.01, 0.03 and 0.06 for ImageNet.
    Command: vit-hf train vit_finetune_imagenet --model.init_from FOLDER_OR_HUB_ID
    Expected: from ImageNet-21k B/16 84.53%, L/16 84.47% top-1 on the validation set.
    Result: not yet run here.
    """
    recipe = vit_finetune()
    return dataclasses.replace(
        recipe,
        name="vit_finetune_imagenet",
        data=DataFields(source="ILSVRC/imagenet-1k", test_split="validation", validation_fraction=0.01),
        optimization=dataclasses.replace(recipe.optimization, max_steps=20_000),
        workers=8,
    )


def augreg_transfer() -> Recipe:
    """Fine-tune an AugReg checkpoint in 500 steps.

    Source: google-research/vision_transformer `vit_jax/configs/augreg.py` and `common.py`: as `vit_finetune` with 500
    steps, 100 of them warm-up, pictures resized to 448 px and cropped to 384, no dropout. The source trains on the
    whole training split; here 2% are held out to choose by.
    Command: vit-hf train augreg_transfer --model.init_from FOLDER_OR_HUB_ID --data SOURCE
    Expected: nothing is published for 500 steps; the source's 20,000 steps on ImageNet-1k: B/16 85.49%, S/16 83.73%.
    Result: not yet run here.
    """
    recipe = vit_finetune()
    return dataclasses.replace(
        recipe,
        name="augreg_transfer",
        model=ModelFields(config={"image_size": 384, "hidden_dropout_prob": 0.0}),
        augmentation=Augmentation(crop="random", resize=(448, 448), flip=True),
        optimization=dataclasses.replace(recipe.optimization, max_steps=500, warmup_steps=100),
    )


def big_vision_transfer() -> Recipe:
    """Fine-tune an AugReg checkpoint on CIFAR-100 with big_vision's settings, which were chosen on held-out pictures.

    Source: google-research/big_vision `configs/transfer.py`. Other sets there, by --data and overrides: ImageNet-1k
    learning rate 0.03, 20,000 steps, crop inception, 1% held out; Pets and Flowers 0.003, 500 steps, 100 of them
    warm-up, crop inception, 10% held out (crop inception takes resize none). The source keeps the shape of a picture
    when it resizes to 448; ours makes it square, as CIFAR's are.
    Command: vit-hf train big_vision_transfer --model.init_from FOLDER_OR_HUB_ID
    Expected: AugReg B/32, mean of five runs: CIFAR-100 91.35%, ImageNet-1k 83.27%, Pets 93.78%, Flowers 99.43%.
    Result: not yet run here.
    """
    recipe = augreg_transfer()
    return dataclasses.replace(
        recipe,
        name="big_vision_transfer",
        model=ModelFields(config={"image_size": 384}),
        optimization=dataclasses.replace(recipe.optimization, learning_rate=0.01, max_steps=10_000, warmup_steps=500),
    )


def mae_finetune() -> Recipe:
    """Fine-tune a B/16 that was pre-trained by masked autoencoding, with a learning rate that falls with depth.

    Source: facebookresearch/mae `FINETUNE.md`, `main_finetune.py` and `util/lr_decay.py` (arXiv 2111.06377); mean
    pooling before the last norm. L/16: --optimization.learning_rate 1e-3 --optimization.layer_decay 0.75
    --optimization.epochs 50 --model.drop_path_rate 0.2.
    Command: vit-hf train mae_finetune --model.init_from FOLDER_OR_HUB_ID (there 7 h on 32 V100)
    Expected: B 83.57% +- 0.08%, L 85.87% +- 0.07% top-1 on the ImageNet-1k validation set, four runs each.
    Result: not yet run here.
    """
    return Recipe(
        name="mae_finetune",
        data=DataFields(source="ILSVRC/imagenet-1k", test_split="validation"),
        model=ModelFields(
            config={
                "image_size": 224,
                "pooling": "gap",
                "class_token": True,
                "fc_norm": True,
                "drop_path_rate": 0.1,
            }
        ),
        augmentation=Augmentation(
            crop="inception",
            crop_area=(0.08, 1.0),
            flip=True,
            randaugment_ops=2,
            randaugment_magnitude=27,
            randaugment_std=1.5,
            randaugment_probability=0.5,
            erasing=0.25,
            mixup_alpha=0.8,
            cutmix_alpha=1.0,
        ),
        optimization=Optimization(
            epochs=100.0,
            batch_size=1024,
            learning_rate=5e-4,
            learning_rate_batch_size=256,
            min_learning_rate=1e-6,
            warmup_epochs=5.0,
            weight_decay=0.05,
            layer_decay=0.65,
            clip_norm=None,
            label_smoothing=0.1,
        ),
        mixed_precision="bf16",
        keep="last",
        workers=8,
    )


def linear_probe() -> Recipe:
    """Train a linear classifier on the features of a frozen model, on ImageNet-1k: how good the features are.

    Source: facebookresearch/dino `eval_linear.py` (arXiv 2104.14294): SGD with momentum 0.9, 0.001 x batch / 256, no
    weight decay, cosine to 0 without warm-up, 100 epochs, 8 processes of 128 pictures, crop and flip only. There the
    classifier sees more than here: the class tokens of the last four blocks (S), or class token and mean patch (B). MAE
    probes by LARS with batches of 16,384 and a BatchNorm before the classifier, which have no equal here.
    Command: vit-hf train linear_probe --model.init_from FOLDER_OR_HUB_ID
    Expected: DINO S/16 77.0%, B/16 78.2% top-1 on the validation set, with those features; MAE B/16 67.8% in its way.
    Result: not yet run here.
    """
    return Recipe(
        name="linear_probe",
        data=DataFields(source="ILSVRC/imagenet-1k", test_split="validation"),
        model=ModelFields(config={"image_size": 224}, freeze=("vit.*",)),
        augmentation=Augmentation(crop="inception", crop_area=(0.08, 1.0), flip=True),
        optimization=Optimization(
            epochs=100.0,
            batch_size=1024,
            optimizer="sgd",
            learning_rate=1e-3,
            learning_rate_batch_size=256,
            clip_norm=None,
        ),
        mixed_precision="bf16",
        keep="last",
        workers=8,
    )


def head_only() -> Recipe:
    """Train what follows the encoder only, the classifier and a representation head if there is one.

    Source: the fine-tuning tutorials' `--freeze-layers`, which leave `head` and `pre_logits` to train; all else is
    `vit_finetune`. The pattern takes all of the encoder but its pooler.
    Command: vit-hf train head_only --model.init_from FOLDER_OR_HUB_ID --data SOURCE
    Expected: nothing is published for this.
    Result: not yet run here.
    """
    return dataclasses.replace(
        vit_finetune(),
        name="head_only",
        model=ModelFields(config={"image_size": 384}, freeze=("vit.[!p]*",)),
    )
