"""Another pooling, last norm or representation head on a loaded model, as fine-tuning recipes ask for."""

from typing import Any

from ..modeling_vit_hf import VitHfForImageClassification

HEAD_FIELDS = ("pooling", "class_token", "fc_norm", "representation_size")
_CLASSIFIERS = ("classifier.", "distillation_classifier.")
_OF_THE_HEAD = ("vit.norm.", "vit.pooler.", *_CLASSIFIERS)


def replace_head(network: VitHfForImageClassification, fields: dict[str, Any]) -> VitHfForImageClassification:
    """Return the model with other `HEAD_FIELDS`: new parts start as in a new model, the classifier from zeros.

    All else keeps its weights. MAE fine-tunes with mean pooling and a new norm behind it (`pooling` "gap",
    `class_token` True, `fc_norm` True); the ViT paper drops the representation head (`representation_size` None).

    Args:
        network: as loaded; returned as it is where it has these values already.
        fields: some of `HEAD_FIELDS` with the values wanted.

    Raises:
        ValueError: the fields do not fit together, or would change more than the head, such as the number of tokens.
    """
    stored = network.config.to_dict()
    if all(stored[name] == value for name, value in fields.items()):
        return network
    config = type(network.config).from_dict(stored, **fields)
    new = VitHfForImageClassification(config).to(dtype=network.dtype)  # type: ignore[call-arg]
    state, wanted = network.state_dict(), new.state_dict()
    kept = {name: tensor for name, tensor in state.items() if name in wanted and tensor.shape == wanted[name].shape}
    changed = sorted(name for name in (state | wanted) if name not in kept and not name.startswith(_OF_THE_HEAD))
    if changed:
        raise ValueError(
            f"{', '.join(f'model.{name} {value!r}' for name, value in fields.items())} would change "
            f"{', '.join(changed[:3])} of the loaded model, not its head only; expected a pooling that its tokens "
            "allow: with mean pooling of a model with a class token set model.class_token true"
        )
    kept = {name: tensor for name, tensor in kept.items() if not name.startswith(_CLASSIFIERS)}
    new.load_state_dict(kept, strict=False)
    return new.train(network.training)
