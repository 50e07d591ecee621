"""Render the card of one or several finished runs of a recipe, or of a model folder, from their records.

python scripts/render_model_card.py runs/digits runs/digits-2 runs/digits-3 > model_cards/digits.md
"""

import sys

from vit_hf.sharing.card import render_card

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python scripts/render_model_card.py RUN [RUN ...]")
    try:
        card = render_card(sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(f"render_model_card: error: {error}")
    sys.stdout.buffer.write(card.encode())  # UTF-8, whatever the terminal is set to
