"""What a model for masked images sees, predicts and should predict, side by side, and the command that draws it."""

import numpy as np
import pytest
import torch
from PIL import Image

from vit_hf import VitHfForMaskedImageModeling, VitHfImageProcessor
from vit_hf.cli import main
from vit_hf.inspection.reconstructions import draw_reconstructions

DECODER = {
    "decoder_num_hidden_layers": 1,
    "decoder_hidden_size": 16,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}


def some_pictures(count: int) -> list[tuple[str, Image.Image]]:
    numbers = np.random.default_rng(0)
    return [(f"no {i}", Image.fromarray(numbers.integers(0, 256, (16, 24, 3), dtype=np.uint8))) for i in range(count)]


@pytest.mark.parametrize("options", [{}, DECODER, {**DECODER, "norm_pix_loss": True}], ids=["simmim", "mae", "norm"])
def test_hidden_places_are_grey_then_predicted_then_real(options, tiny, randomise):
    model = randomise(VitHfForMaskedImageModeling(tiny(**options)))
    processor = VitHfImageProcessor(size={"height": 16, "width": 24})
    pictures, hidden = some_pictures(3), torch.rand(3, 12).argsort(dim=1) < 9
    figure, errors = draw_reconstructions(model, processor, pictures, hidden)
    drawn = [np.asarray(ax.images[0].get_array()) for ax in figure.axes]
    pixels = processor([picture for _, picture in pictures], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        predicted = model(pixels, hidden)
    numbers = ((predicted.reconstruction * 0.5 + 0.5) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for row, (name, picture) in enumerate(pictures):
        seen, filled, whole = drawn[3 * row : 3 * row + 3]
        place = hidden[row].reshape(4, 3).numpy().repeat(4, axis=0).repeat(8, axis=1)
        assert (whole == np.asarray(picture)).all()
        assert (seen[place] == 128).all()
        assert (seen[~place] == whole[~place]).all()
        assert (filled[~place] == whole[~place]).all()
        assert (filled[place] == numbers[row][place]).all()
        assert figure.texts[row].get_text() == f"{name}, error {errors[row]:.3f}"
    assert sum(errors) / 3 == pytest.approx(predicted.loss.item(), rel=1e-4)


def test_more_pictures_than_a_sheet_holds_raise(tiny):
    model = VitHfForMaskedImageModeling(tiny())
    with pytest.raises(ValueError, match="there are 25 pictures to reconstruct; expected 1 to 24"):
        draw_reconstructions(model, VitHfImageProcessor(), some_pictures(25), torch.ones(25, 12, dtype=torch.bool))


def test_the_command_draws_a_model_for_masked_images(tiny, randomise, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = randomise(VitHfForMaskedImageModeling(tiny(image_size=16, patch_size=4, **DECODER)))
    model.save_pretrained("model")
    VitHfImageProcessor(size={"height": 16, "width": 16}).save_pretrained("model")
    for name, picture in some_pictures(2):
        picture.save(f"{name[-1]}.png")
    assert main(["inspect", "model", "0.png", "1.png"]) == 0
    printed = capsys.readouterr().out
    assert "75% of each picture hidden: model-inspection/reconstructions.png" in printed
    assert "mean squared error of hidden pixels, mean of 2 pictures" in printed
    with Image.open("model-inspection/reconstructions.png") as drawn:
        assert drawn.size[0] > 300
    assert main(["inspect", "model", "--output", "other"]) == 1
    assert "there is nothing to reconstruct; give IMAGE ..." in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
