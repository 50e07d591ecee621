"""The pictures of a report: confident mistakes, what training showed, and what the network learned of places."""

from xml.etree.ElementTree import Element

import torch

from ...image_processing_vit_hf import VitHfImageProcessor
from ...inspection.distance import attention_distance, draw_attention_distance
from ...inspection.filters import draw_filters
from ...inspection.positions import draw_position_similarity
from ...modeling_vit_hf import VitHfForImageClassification, VitHfPreTrainedModel
from ..card.results import percent
from .augmentation import VERSIONS, Preview
from .gallery import PIXELATED, most_confident_mistakes, pixels_of, to_file, views
from .material import Material
from .page import Pictures, Section, section, tag, word
from .scores import missing, plot

_STRIP = 128  # pixels of the longer side of a small picture
_MEASURED = 32  # pictures whose attention distance is averaged


def mistakes_section(
    material: Material, model: VitHfForImageClassification, processor: VitHfImageProcessor, pictures: Pictures
) -> Section:
    """Return the mistakes that the model was surest of, as it saw them, beside its attention."""
    title = "Most confident mistakes"
    if material.predictions is None:
        return section("mistakes", title, missing("No predictions were recorded."))
    found, names = most_confident_mistakes(material.predictions.scores), material.label_names
    if not found:
        return section("mistakes", title, tag("p", "No picture was named wrongly."))
    if material.scored is None or material.columns is None:
        return section("mistakes", title, missing(f"The pictures are not shown. {material.absent}"))
    rows = [mistake.row for mistake in found]
    pixels = pixels_of(material.scored, rows, material.columns["image_column"], processor)
    cards = tag("ul", class_="cards")
    for place, (mistake, (view, attention)) in enumerate(zip(found, views(model, processor, pixels), strict=True), 1):
        true, named = names[mistake.true], names[mistake.named]
        sizes = "px" if max(view.size) <= PIXELATED else None
        pair = tag(
            "div",
            pictures.image(
                f"mistake_{place:02}", to_file(view), f"Row {mistake.row}, a picture of {true}.", class_=sizes
            ),
            pictures.image(f"mistake_{place:02}_attention", to_file(attention), "Where the model looked."),
            class_="pair",
        )
        said = tag("p", "Taken for ", tag("b", word(named)), f" with {percent(mistake.probability)}")
        truth = tag("p", "It is ", tag("b", word(true)), f" ({percent(mistake.true_probability)}), row {mistake.row:,}",
                    class_="label")  # fmt: skip
        cards.append(tag("li", pair, said, truth))
    note = (
        "Left the picture as the model sees it, right the attention of its last block: dark little, bright much. A "
        "sure mistake is often a wrong label, a second object, or a look at the background."
    )
    return section("mistakes", title, tag("p", note), cards)


def augmentation_section(
    material: Material, processor: VitHfImageProcessor, patch_hw: tuple[int, int], pictures: Pictures
) -> Section:
    """Return training pictures as training showed them."""
    title, recipe = "What training showed", material.recipe
    if recipe is None:
        return section("augmentation", title, missing("There is no recipe: this model was not trained here."))
    if material.trained is None or material.columns is None:
        why = material.absent or "The training pictures are not those that the run recorded."
        return section("augmentation", title, missing(f"The pictures are not shown. {why}"))
    preview = Preview(material.trained, material.columns, recipe, processor)
    names, classification = material.label_names, recipe.task == "classification"
    strips = tag("ul", class_="strips")
    for place, shown in enumerate(preview.versions(), 1):
        sizes = "px" if max(shown.plain.size) <= PIXELATED else None
        strip = tag("div", class_="strip")
        for number, picture in enumerate([shown.plain, *shown.augmented]):
            alt = f"Epoch {number}" if number else "As evaluation sees it"
            strip.append(pictures.image(f"training_{place}_{number}", to_file(picture, _STRIP), alt, class_=sizes))
        head = tag("p", word(names[shown.label])) if classification else None
        strips.append(tag("li", head, strip))
    said = f"First a picture as evaluation sees it, then as training saw it in epochs 1 to {VERSIONS}, drawn again."
    content: list[Element | None] = [tag("p", said), strips]
    if classification:
        content += _mixes(preview, names, pictures)
    else:
        content += _masks(preview, patch_hw, pictures)
    return section("augmentation", title, *content)


def _mixes(preview: Preview, names: tuple[str, ...], pictures: Pictures) -> list[Element | None]:
    mixes = preview.mixes()
    if not mixes:
        return []
    listed = tag("ul", class_="strips mixes")
    for place, mix in enumerate(mixes, 1):
        strip = tag("div", class_="strip three")
        for number, picture in enumerate([*mix.pictures, mix.mixed], 1):
            alt = f"Picture {number}" if number < 3 else "The two, mixed"
            sizes = "px" if max(picture.size) <= PIXELATED else None
            strip.append(pictures.image(f"mix_{place}_{number}", to_file(picture, _STRIP), alt, class_=sizes))
        first, second = (names[label] for label in mix.labels)
        said = tag("p", f"{mix.share:.0%} ", word(first, 30), f", {1 - mix.share:.0%} ", word(second, 30))
        listed.append(tag("li", said, strip))
    said = tag("p", "The first pairs of the first step: the two pictures, and what the model was given.")
    return [tag("h3", "Mixed"), said, listed]


def _masks(preview: Preview, patch_hw: tuple[int, int], pictures: Pictures) -> list[Element | None]:
    listed = tag("ul", class_="strips mixes")
    for place, masked in enumerate(preview.masks(patch_hw), 1):
        strip = tag("div", class_="strip three")
        for number, picture in enumerate([masked.picture, masked.seen], 1):
            alt = f"{masked.hidden:.0%} of it hidden" if number > 1 else "The picture"
            sizes = "px" if max(picture.size) <= PIXELATED else None
            strip.append(pictures.image(f"masked_{place}_{number}", to_file(picture, _STRIP), alt, class_=sizes))
        listed.append(tag("li", strip))
    head = tag("h3", "Hidden")
    return [head, tag("p", "The first pictures of the first step: whole, and what the model saw of them."), listed]


def network_section(
    material: Material, model: VitHfPreTrainedModel, processor: VitHfImageProcessor, pictures: Pictures
) -> Section:
    """Return what the network learned of places: positions, filters, and how far its heads look."""
    side, config = tag("div", class_="side"), model.config
    height, width = config.grid_hw
    side.append(plot(
        pictures, "positions", lambda theme: draw_position_similarity(model, theme=theme),
        alt=f"Similarity of the position embeddings on a grid of {height} x {width} patches.",
        caption=["How alike the position of each patch is to all others. A bright spot in its own place, with its row "
                 "and column, is a model that knows where patches lie."],
    ))  # fmt: skip
    if model.encoder.embeddings.patch_embeddings.stem is None:
        side.append(plot(
            pictures, "filters", lambda theme: draw_filters(model, theme=theme),
            alt="Principal components of the filters of the patch projection.",
            caption=["What patches are mostly compared with. Smooth waves and colour fields are a trained model; noise "
                     "is one that has not learned much."],
        ))  # fmt: skip
    rows, column = material.scored or material.trained, material.columns and material.columns["image_column"]
    if rows is not None and column is not None:
        numbers = torch.linspace(0, len(rows) - 1, min(_MEASURED, len(rows))).round().int().tolist()
        distances = attention_distance(model, pixels_of(rows, numbers, column, processor))
        side.append(plot(
            pictures, "attention_distance", lambda theme: draw_attention_distance(model, distances, theme=theme),
            alt=f"Mean attention distance of the heads of {config.num_hidden_layers} blocks, over {len(numbers)} "
                "pictures.",
            caption=[f"How far each head looks, over {len(numbers)} pictures. Heads near the bottom look at their "
                     "neighbourhood, like a convolution; heads near the dotted line look everywhere."],
        ))  # fmt: skip
    return section("network", "Inside the network", side)
