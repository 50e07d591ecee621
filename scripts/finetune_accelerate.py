"""Train or fine-tune by a recipe under `accelerate launch`: several GPUs, several machines, or two CPU processes.

The options are those of `vit-hf train`; the loop itself is `vit_hf/training/loop.py`. The batch size of a recipe is
global: it is divided by the number of processes, so the batches are the same however many there are. The recipe also
decides the precision (`--mixed_precision` after the script's name), not the launcher.

    accelerate launch --multi_gpu --num_processes 8 scripts/finetune_accelerate.py vit_finetune \
        --model.init_from FOLDER_OR_HUB_ID --data SOURCE
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 scripts/finetune_accelerate.py digits
"""

import sys

from vit_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
