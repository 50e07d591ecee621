"""`vit-hf demo`: a page to try a model, or a Space folder that serves it."""

import argparse
from importlib.util import find_spec

from .words import Add, positive


def add_commands(add: Add) -> None:
    """Add the command."""
    demo = add("demo", _demo, "Open a page to try a classifier in the browser, or write it as a Space.")
    demo.add_argument("model", metavar="MODEL", help="model folder, weights file or Hub id")
    demo.add_argument("--port", type=positive, metavar="N", help="TCP port (default: a free one from 7860 on)")
    demo.add_argument("--share", choices=("yes", "no"), default="no", help="also through Gradio's tunnel (default: no)")
    demo.add_argument("--space", metavar="OUT", help="write a Space folder instead: app, model, requirements, README")


def _demo(options: argparse.Namespace) -> int:
    if find_spec("gradio") is None:
        raise ValueError('the page is made with Gradio, which is not installed: pip install "vit-hf[demo]"')
    if options.space:
        from ..sharing.space import write_space

        folder = write_space(options.model, options.space)
        print(f"Space: {folder}\n\nnext:\n  python {folder}/app.py")
        print(f"  hf upload YOUR_NAME/{folder.name} {folder} . --repo-type space")
        return 0
    from ..sharing.demo import build_page, launch

    page = build_page(options.model)
    print(f"page: {launch(page, port=options.port, share=options.share == 'yes')} (Ctrl-C ends it)", flush=True)
    page.block_thread()
    return 0
