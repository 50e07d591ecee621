"""Where what can be computed again is kept on disk.

The folder is `vit-hf` under HF_HOME (`~/.cache/huggingface` unless set), beside the caches of the other Hugging Face
libraries; the environment variable VIT_HF_CACHE names another. In it lie `features` (of frozen models) and `pixels`
(decoded pictures). Files may be deleted at any time.
"""

import os
from pathlib import Path

from huggingface_hub import constants

VARIABLE = "VIT_HF_CACHE"
REMEDY = f"free the space, or name another folder in the environment variable {VARIABLE}"


def cache_folder(kind: str) -> Path:
    """Return the folder for files of a kind: "features" or "pixels"."""
    chosen = os.environ.get(VARIABLE)
    return (Path(chosen).expanduser() if chosen else Path(constants.HF_HOME) / "vit-hf") / kind
