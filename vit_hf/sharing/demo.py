"""A page to try a classifier: drop a picture, read the likeliest classes, see what the model saw and where it looked.

The page is Gradio's (extra `demo`), but pictures are read by the package alone: Gradio hands over the uploaded file
undecoded, so that a hostile file meets `read_image` first, and EXIF, 16 bits, CMYK and palettes follow `to_rgb`.
Nothing is sent anywhere: no telemetry, no version check, no fonts from outside, no record of who asked what; uploads
lie in Gradio's temporary folder for at most two hours.
"""

import html
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from PIL import Image

from ..checkpoints.load import load_model
from ..data.images import MAX_PIXELS, SUFFIXES, read_rgb
from ..evaluation.scoring import classify
from ..image_processing_vit_hf import VitHfImageProcessor
from ..inspection.attention import Method, attention_map, enlarged, lay_over, model_view
from ..modeling_vit_hf import VitHfForImageClassification

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported, and by each part of it
import gradio as gr

MAX_FILE = "20mb"
_FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF or PPM"
_METHODS: list[tuple[str, Method]] = [("last step", "last"), ("all blocks", "rollout")]
_METHOD_TEXT = {
    "cls": "The share of each patch in what the class token reads in the last block",
    "gap": "The share of each patch in what all patches together read in the last block",
    "map": "The share of each patch in what the pooling reads after the last block",
}
_ABOUT_MAPS = (
    " (*last step*), or that share followed back through *all blocks* (attention rollout, Abnar and Zuidema 2020); "
    "yellow for the most, dark blue for the least. It shows where the model reads, not why it decides."
)
_ABOUT_PICTURES = (
    f"Pictures may be {_FORMATS}, up to {MAX_FILE[:-2]} MB and {MAX_PIXELS // 10**6} million pixels. They stay on the "
    "machine that serves this page and are deleted within two hours."
)
_CSS = """
.gradio-container {max-width: 1080px !important; margin: 0 auto !important}
#picture img {width: 100%; height: 100%; object-fit: contain}
#problem p {border-left: 4px solid #D55E00; padding: 0.5rem 0.75rem; background: var(--background-fill-secondary)}
"""


@dataclass(frozen=True)
class Answer:
    """What the page shows of one picture.

    Attributes:
        probabilities: of the likeliest classes, by name, the likeliest first.
        view: what the model saw, enlarged if small.
        attention: the same under the attention map.
        size: (width, height) of the upright picture, in pixels.
    """

    probabilities: dict[str, float]
    view: Image.Image
    attention: Image.Image
    size: tuple[int, int]


def answer(
    model: VitHfForImageClassification, processor: VitHfImageProcessor, path: str | Path, *, method: Method = "last"
) -> Answer:
    """Classify a picture file and draw where the model looked.

    Args:
        model: in evaluation mode.
        processor: the model's.
        path: picture file; its name without folders stands in errors.
        method: as `attention_map` takes it.

    Raises:
        ValueError: the file is no picture that can be used; the text says why.
    """
    picture = read_rgb(Path(path).read_bytes(), where=Path(path).name)
    [classes] = classify(model, processor, [picture], top_k=5)
    pixels = processor([picture], return_tensors="pt")["pixel_values"]  # (1, C, H, W)
    [view] = model_view(processor, pixels)
    overlay = lay_over(view, attention_map(model, pixels, method=method)[0])
    return Answer(_by_name(classes), enlarged(view), overlay, picture.size)


def _by_name(classes: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Probabilities by name; the second class of a name (ImageNet has two cranes) is told apart by a number."""
    named: dict[str, float] = {}
    for name, probability in classes:
        again = sum(name == other for other, _ in classes[: len(named)])
        named[f"{name} ({again + 1})" if again else name] = probability
    return named


# ---------------------------------------------------------------------------------------------- words
def say_preprocessing(processor: VitHfImageProcessor) -> str:
    """Say in a sentence what the processor does to a picture."""
    settings: Any = processor
    steps = []
    if settings.do_resize:
        size, how = settings.size, Image.Resampling(settings.resample).name.lower()
        to = f"{size.height} x {size.width} pixels (height x width)" if size.height else ""
        if not to:
            edge, edge_name = (size.shortest_edge, "shorter") if size.shortest_edge else (size.longest_edge, "longer")
            to = f"{edge} pixels on its {edge_name} edge"
        smooth = "" if settings.antialias else ", without antialiasing"
        steps.append(f"resized to {to} by {how} resampling{smooth}")
    if settings.do_center_crop:
        steps.append(f"cut to its central {settings.crop_size.height} x {settings.crop_size.width} pixels")
    if settings.do_rescale:
        steps.append("scaled from 0..255 to 0..1" if abs(settings.rescale_factor * 255 - 1) < 1e-6 else "rescaled")
    if settings.do_normalize:
        mean, std = (", ".join(f"{n:g}" for n in values) for values in (settings.image_mean, settings.image_std))
        steps.append(f"normalised (mean {mean}; standard deviation {std})")
    *first, last = steps or ["left as it is"]
    return f"{', '.join(first)} and {last}" if first else last


def say_model(model: VitHfForImageClassification) -> str:
    """Say in a sentence what the model is."""
    config = model.config
    (height, width), (patch_height, patch_width) = config.image_hw, config.patch_hw
    return (
        f"Vision Transformer · {model.num_parameters():,} parameters · {config.num_labels:,} classes · "
        f"{height} x {width} pixels in patches of {patch_height} x {patch_width}"
    )


def say_results(results: dict[str, Any]) -> str:
    """Say the scores that a run recorded; "" where it recorded none."""
    if "top1" not in results:
        return ""
    data = results.get("data", {})
    source = data.get("source") if isinstance(data, dict) else data
    where = f" of {Path(str(source)).name if Path(str(source)).is_absolute() else source}" if source else ""
    split = f", split {results['split']}" if "split" in results else ""
    return f"Top-1 accuracy {results['top1']:.2%} on {results['n']:,} pictures{where}{split}"


def read_results(source: str | Path) -> dict[str, Any]:
    """Return the recorded results beside a model, {} where there are none."""
    path = Path(source) / "results.json"
    if not Path(source).exists():
        try:
            path = Path(hf_hub_download(str(source), "results.json"))
        except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError):
            return {}
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def find_examples(source: str | Path) -> list[str]:
    """Return the example pictures in the folder of a run, by name."""
    folder = Path(source) / "examples"
    return [str(path) for path in sorted(folder.glob("*")) if path.suffix.lower() in SUFFIXES]


# ---------------------------------------------------------------------------------------------- the page
def build_page(path_or_hub_id: str | Path, *, name: str | None = None, scores: str | None = None) -> gr.Blocks:
    """Load a classifier and build its page.

    Args:
        path_or_hub_id: as `load_model` takes it: a model or run folder, a weights file of any library, or a Hub id.
        name: heading of the page; the folder's name or the Hub id when None.
        scores: line below it; from the results.json beside the model when None.

    Raises:
        ValueError: see `load_model`; a model for masked images, or one that does not take RGB.
        OSError: there is no such model.
    """
    model, processor = load_model(path_or_hub_id)
    if model.config.num_channels != 3:
        raise ValueError(f"{path_or_hub_id} takes {model.config.num_channels} channels; the page prepares RGB pictures")
    local = Path(path_or_hub_id).exists()
    name = name or (Path(path_or_hub_id).resolve().name if local else str(path_or_hub_id))
    about = say_model(model)
    scores = say_results(read_results(path_or_hub_id)) if scores is None else scores

    def run(upload: dict[str, Any] | None, method: Method) -> list[Any]:
        if not upload or not upload["path"]:
            return _nothing("Choose a picture first: drop one into the field, or click it.")
        try:
            found = answer(model, processor, upload["path"], method=method)
        except ValueError as error:
            why = html.escape(str(error).rsplit("; ", 1)[0])  # the last part is advice for data sets
            gr.Warning(f"This picture cannot be used. {why}.")
            return _nothing(f"This picture cannot be used. {why}.")
        width, height = found.size
        told = f"Your picture of {height} x {width} pixels was {say_preprocessing(processor)}."
        return [
            found.probabilities,
            gr.Row(visible=True),
            found.view,
            told,
            found.attention,
            gr.Markdown(visible=False),
        ]

    with gr.Blocks(title=f"{name} · vit-hf", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {html.escape(name)}\n{about}" + (f"  \n{html.escape(scores)}" if scores else ""))
        with gr.Row():
            with gr.Column(min_width=300):
                picture = gr.Image(
                    label="Picture", sources=["upload", "clipboard"], height=300, buttons=[], elem_id="picture",
                    alt_text="the picture to classify",
                )  # fmt: skip
                button = gr.Button("Classify", variant="primary", elem_id="classify")
                if examples := (find_examples(path_or_hub_id) if local else []):
                    gr.Examples(examples, picture, label="Examples", cache_examples=False)
            with gr.Column(min_width=300):
                label = gr.Label(label="Likeliest classes", num_top_classes=5, elem_id="classes")
                problem = gr.Markdown(visible=False, elem_id="problem")
        with gr.Row(visible=False) as row:
            drawn: dict[str, Any] = {"interactive": False, "format": "png", "buttons": ["download", "fullscreen"]}
            with gr.Column(min_width=300):
                view = gr.Image(label="What the model sees", elem_id="view", alt_text="what the model sees", **drawn)
                told = gr.Markdown(elem_id="preprocessing")
            with gr.Column(min_width=300):
                attention = gr.Image(
                    label="Where it looks", elem_id="attention", alt_text="attention map over the picture", **drawn
                )
                method = gr.Radio(_METHODS, value="last", label="Attention of", elem_id="method")
                gr.Markdown(_METHOD_TEXT[model.config.pooling] + _ABOUT_MAPS)
        gr.Markdown(_ABOUT_PICTURES)
        outputs = [label, row, view, told, attention, problem]
        # Without preprocessing Gradio checks that the file is an upload of its own, and opens nothing.
        asked: dict[str, Any] = {"fn": run, "inputs": [picture, method], "preprocess": False, "api_name": "classify"}
        one: dict[str, Any] = {"outputs": outputs, "concurrency_id": "model", "concurrency_limit": 1}
        gr.on([button.click, method.input], **asked, **one)
        gr.on([picture.upload, picture.clear], _nothing, api_visibility="private", **one)  # the old answer goes
    page.queue(max_size=64, default_concurrency_limit=1)
    return page


def _nothing(problem: str = "") -> list[Any]:
    """Return an empty page, with what went wrong in words."""
    return [None, gr.Row(visible=False), None, "", None, gr.Markdown(problem, visible=bool(problem))]


def launch(page: gr.Blocks, *, port: int | None = None, share: bool = False) -> str:
    """Start serving the page and return its address; `page.block_thread()` then waits for Ctrl-C.

    Args:
        page: from `build_page`.
        port: TCP port; the first free one from 7860 on when None.
        share: open a tunnel through Gradio's servers, for a week; everyone with the address can use the page.

    The page is bound to 127.0.0.1, or to what GRADIO_SERVER_NAME says, which Spaces set.

    Raises:
        OSError: the port is taken.
    """
    theme = gr.themes.Default(primary_hue="blue", secondary_hue="blue", neutral_hue="slate")
    quiet: dict[str, Any] = {"quiet": True, "prevent_thread_lock": True, "inline": False, "footer_links": []}
    alone: dict[str, Any] = {"ssr_mode": False, "enable_monitoring": False, "mcp_server": False, "run_history": False}
    try:
        _, local, public = page.launch(
            server_port=port, share=share, max_file_size=MAX_FILE, theme=theme, css=_CSS, **quiet, **alone
        )
    except OSError as error:
        if port is None or "empty port" not in str(error):
            raise
        raise OSError(f"port {port} is taken; choose another, or leave --port out to take a free one") from error
    return public or local


__all__ = [
    "Answer",
    "answer",
    "build_page",
    "find_examples",
    "launch",
    "read_results",
    "say_model",
    "say_preprocessing",
    "say_results",
]
