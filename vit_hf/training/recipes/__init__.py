"""The named recipes: `RECIPES` is the list that `vit-hf recipes` prints, `get_recipe` finds them by name.

Each is a function whose docstring gives the source of its numbers, the command, what is published there and the result
measured here, or "not yet run here". What a number of the source becomes in other units:

- RandAugment: timm's m9-mstd0.5 is magnitude 27, std 1.5, probability 0.5; big_vision's randaug(2,10) is magnitude 30
  (see `vit_hf.data.transforms.RandAugment`).
- Weight decay: big_vision's 1e-4 stands outside the learning rate of 1e-3, so that it is 0.1 of torch's AdamW.
- Evaluation: pictures are resized to the model's size, as in google-research/vision_transformer; big_vision, DeiT, MAE
  and DINO resize the shorter side to 8/7 of it and cut out the centre.
- Pixels: a new model's image processor scales to -1 to 1 as Google's code; DeiT, MAE, SimMIM and CCT take mean and
  standard deviation of the data.
"""

import difflib
from collections.abc import Callable
from pathlib import Path

from ..recipe import Recipe
from .cifar100 import cifar100_finetune, cifar100_mae, cifar100_scratch
from .finetune import (
    augreg_transfer,
    big_vision_transfer,
    head_only,
    linear_probe,
    mae_finetune,
    vit_finetune,
    vit_finetune_imagenet,
)
from .pretrain import simmim_pretrain, vit_i21k_pretrain
from .scratch import better_plain_vit, deit, digits

RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        *(digits, cifar100_scratch, cifar100_mae, cifar100_finetune),
        *(deit, better_plain_vit),
        *(vit_finetune, vit_finetune_imagenet, augreg_transfer, big_vision_transfer, mae_finetune),
        *(linear_probe, head_only),
        *(vit_i21k_pretrain, simmim_pretrain),
    )
}


def get_recipe(name: str | Path) -> Recipe:
    """Return a named recipe, or read one from a YAML file.

    Raises:
        FileNotFoundError: a name that ends in .yaml or .yml and no such file.
        ValueError: an unknown name (the known ones are listed), or a faulty file.
    """
    text = str(name)
    if text in RECIPES:
        return RECIPES[text]()
    if text.endswith((".yaml", ".yml")):
        if not Path(text).is_file():
            raise FileNotFoundError(
                f"no recipe file {Path(text).absolute()}; expected a YAML file as `recipe.yaml` of a run"
            )
        return Recipe.from_yaml(text)
    near = difflib.get_close_matches(text, RECIPES, n=1, cutoff=0.5)
    raise ValueError(
        f"unknown recipe {text!r}; expected one of {', '.join(RECIPES)}, or a YAML file"
        + (f" (did you mean {near[0]}?)" if near else "")
    )


__all__ = ["RECIPES", "get_recipe"]
