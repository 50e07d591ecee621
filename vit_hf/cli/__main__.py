"""`python -m vit_hf.cli` is `vit-hf`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
