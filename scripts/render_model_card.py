"""Render the card of one or several finished runs of a recipe, or of a model folder, from their records.

python scripts/render_model_card.py runs/digits runs/digits-2 runs/digits-3 > model_cards/digits.md
python scripts/render_model_card.py runs/digits runs/digits-2 --output model_cards/digits.md  # and digits.png, curves
"""

import argparse
import sys

from vit_hf.sharing.card import render_card, write_card

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or one model folder")
    parser.add_argument("--output", metavar="CARD.md", help="write the card there, and the learning curves beside it")
    options = parser.parse_args()
    try:
        if options.output:
            print(*write_card(options.runs, options.output), sep="\n")
        else:
            card = render_card(options.runs, curves="")  # the picture of a run does not lie beside what is printed
            sys.stdout.buffer.write(card.encode())  # UTF-8, whatever the terminal is set to
    except (OSError, ValueError) as error:
        sys.exit(f"render_model_card: error: {error}")
