"""Train or fine-tune by a recipe through `transformers.Trainer`, on one process or several.

The options are those of `vit-hf train`, and so are the numbers; `vit_hf/training/trainer.py` tells what differs from
the stock Trainer, and serves those who have arguments and data of their own.

    python scripts/finetune_trainer.py digits --output runs/digits-trainer
    python scripts/finetune_trainer.py digits --output runs/digits-trainer --resume auto
    accelerate launch --multi_gpu --num_processes 8 scripts/finetune_trainer.py vit_finetune \
        --model.init_from FOLDER_OR_HUB_ID --data SOURCE
"""

import sys
from typing import Any

from vit_hf.cli.words import read_overrides
from vit_hf.training.trainer_run import train_with_trainer

USAGE = "usage: finetune_trainer.py RECIPE [--output DIR] [--resume auto|PATH] [--FIELD VALUE ...]"

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(USAGE)
    fields: dict[str, Any] = {**read_overrides(sys.argv[2:])}
    output, resume = fields.pop("output", None), fields.pop("resume", None)
    try:
        result = train_with_trainer(sys.argv[1], output=output, resume=resume, **fields)
    except (ValueError, OSError) as error:  # of what was asked for, in a line as `vit-hf train` says it
        sys.exit(f"finetune_trainer.py: error: {error}")
    if result.is_main_process:
        if result.was_finished:
            print(f"{result.output} is finished; there is nothing to do")
        top1, count, split = (result.results[name] for name in ("top1", "n", "split"))
        print(f"test: top-1 {top1:.2%} on {count:,} pictures ({split}); model and metrics: {result.output}")
