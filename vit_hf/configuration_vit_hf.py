"""Configuration of the Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) and its plain-ViT descendants.

One class describes the whole family: what other code bases keep in separate classes (DeiT III's LayerScale, the
registers of DINOv2, the attention pooling of big_vision, the hybrids of the paper) are fields here. Shapes in this
file: H x W pixels, h x w patch grid, D width.
"""

import math
import os
from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .files_vit_hf import MANIFEST, update_manifest

ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "swiglu")
POOLINGS = ("cls", "gap", "map")
POSITION_EMBEDDINGS = ("learned", "sincos2d")
PREFIX_POSITIONS = ("cls", "none", "all")
POSITION_INTERPOLATIONS = ("google", "timm", "torchvision", "transformers", "dino")
RESNET_STEM_STYLES = ("google", "timm")
# Smallest and largest value of each size. The largest are far above any published model (ViT-22B: 48 layers of width
# 6,144, MLP 24,576): a config from elsewhere that asks for more would only exhaust the memory.
SIZE_LIMITS = {
    "image_size": (1, 65_536),
    "patch_size": (1, 65_536),
    "num_channels": (1, 65_536),
    "hidden_size": (1, 65_536),
    "num_hidden_layers": (1, 1_024),
    "num_attention_heads": (1, 65_536),
    "intermediate_size": (1, 262_144),
    "representation_size": (1, 65_536),
    "num_register_tokens": (0, 65_536),
    "resnet_stem_width": (1, 65_536),
    "decoder_num_hidden_layers": (0, 1_024),
    "decoder_hidden_size": (1, 65_536),
    "decoder_num_attention_heads": (1, 65_536),
    "decoder_intermediate_size": (1, 262_144),
    "num_labels": (1, 1_000_000),
}
DTYPES = ("float32", "float64", "float16", "bfloat16")
# What transformers does by itself where a config.json has the field: fetch code or other files, patch or replace
# modules. That is for the caller to ask for, who passes it to `from_pretrained`. Of the attention backends a file may
# name those that torch holds.
CALLERS_FIELDS = (
    "adapter_kwargs", "allow_all_kernels", "code_revision", "configuration_files", "distributed_config",
    "experts_implementation", "extra_config_files", "extra_files", "fusion_config", "kernel_config",
    "per_layer_config", "quantization_config", "transformers_weights", "trust_remote_code", "use_kernels",
    "use_safetensors", "weights_only",
)  # fmt: skip
ATTENTION_FIELDS, ATTENTION_BACKENDS = (
    ("attn_implementation", "_attn_implementation"),
    ("eager", "sdpa", "flex_attention"),
)
CONFIG_BYTES = 64 << 20  # a million long label names
# What only a model for masked images looks at.
DECODER_FIELDS = (
    "decoder_num_hidden_layers", "decoder_hidden_size", "decoder_num_attention_heads", "decoder_intermediate_size",
    "norm_pix_loss",
)  # fmt: skip
AUTO_MAP = {
    "AutoConfig": "configuration_vit_hf.VitHfConfig",
    "AutoModel": "modeling_vit_hf.VitHfModel",
    "AutoModelForImageClassification": "modeling_vit_hf.VitHfForImageClassification",
    "AutoModelForMaskedImageModeling": "modeling_vit_hf.VitHfForMaskedImageModeling",
}


def as_pair(value: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """Return (height, width) of a size that is given as one int or as a pair."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


@strict
class VitHfConfig(PreTrainedConfig):
    """Everything that fixes the architecture of a Vision Transformer; the defaults are B/16 of the paper at 224 px.

    Args:
        image_size: height and width of the input in pixels, one int or (height, width). The position embeddings are
            stored for this size.
        patch_size: height and width of a patch in pixels, one int or (height, width); divides `image_size`. With a
            ResNet stem it is the stride of stem and patch projection together, as in the name "R50+B/16".
        num_channels: channels of the input image (3 for RGB).
        hidden_size: width D of the tokens (paper, Table 1); a multiple of `num_attention_heads`.
        num_hidden_layers: number of encoder blocks.
        num_attention_heads: heads of each self-attention.
        intermediate_size: width of the MLP's hidden layer (4 D in the paper).
        hidden_act: "gelu_pytorch_tanh" (the official JAX code), "gelu" (erf form: timm, torchvision, transformers),
            "quick_gelu" (x * sigmoid(1.702 x): OpenAI's CLIP), or "swiglu": a gated MLP, silu(a) * b on the two halves
            of a first layer of twice `intermediate_size` (DINOv2 giant).
        hidden_dropout_prob: dropout after the position embedding, the attention's output and both MLP layers, in
            [0, 1) (paper, Table 3: 0.1 or 0).
        attention_probs_dropout_prob: dropout on the attention weights, in [0, 1).
        drop_path_rate: stochastic depth, in [0, 1): probability that a sample skips a residual branch of the last
            block, growing linearly from 0 at the first (Huang et al. 2016, arXiv 1603.09382; rates of DeiT).
        layer_norm_eps: added to the variance in every LayerNorm (official code: 1e-6).
        qkv_bias: whether query, key and value projections have biases.
        patch_bias: whether the patch projection has a bias (CLIP: no).
        embedding_norm: LayerNorm on the embedded tokens before the first block (CLIP's `ln_pre`).
        pooling: what the head sees. "cls" the class token; "gap" the mean of the patch tokens (official
            `classifier="gap"`); "map" attention pooling of the patch tokens by a learned probe (big_vision's MAPHead).
        class_token: whether a class token stands first; None: with pooling "cls" only. True with pooling "gap" is the
            fine-tuned MAE.
        fc_norm: the last LayerNorm comes after the pooling instead of before it (MAE fine-tuning, timm's `fc_norm`);
            `last_hidden_state` is then not normalised.
        distilled: the first register is DeiT's distillation token (arXiv 2012.12877): a classifier of its own reads
            it, and the logits are the mean of both classifiers. Needs a register and pooling "cls".
        representation_size: width of the hidden layer Linear + tanh before the classifier that the paper uses in
            pre-training (`pre_logits`); None for fine-tuning.
        num_register_tokens: extra learned tokens between class token and patches (Darcet et al. 2024, arXiv
            2309.16588).
        prefix_positions: which tokens before the patches have position embeddings: "cls" the class token (paper),
            "none" (DeiT III, big_vision), "all" the registers too (DeiT's distillation token).
        layer_scale_init: start value of a learned scale per channel on each residual branch (CaiT, arXiv 2103.17239;
            DeiT III: 1e-4); None for none.
        qk_norm: LayerNorm on the queries and keys of each head (ViT-22B, arXiv 2302.05442).
        position_embedding: "learned", or "sincos2d": the fixed 2-D table of big_vision and MAE (class token: zeros).
        position_interpolation: how positions are resampled to another grid: "google" bilinear with aligned corners,
            "timm" bicubic with antialias, "torchvision" bicubic with aligned corners, "transformers" plain bicubic,
            "dino" bicubic by the factor (size + 0.1) / stored size (DINO, DINOv2 without registers).
        resnet_stem_layers: residual blocks per stage of a ResNetV2 stem before the patches, e.g. [3, 4, 9] for R50;
            [] for the root block alone; None for no stem.
        resnet_stem_width: channels of the stem's root convolution (64 times the official `width_factor`); a
            multiple of 32, the number of groups of its GroupNorm.
        resnet_stem_style: "google": filters divided by std + 1e-5, GroupNorm eps 1e-6 (official code); "timm":
            by sqrt(variance + 1e-8), GroupNorm eps 1e-5.
        decoder_num_hidden_layers: form of `VitHfForMaskedImageModeling`, the only class that looks at this and the
            fields below. 0: SimMIM, the encoder sees a mask token in place of each hidden patch, one linear layer
            predicts the pixels. More: MAE (He et al. 2022, arXiv 2111.06377), the encoder sees the visible patches
            only, so many decoder blocks see all; no ResNet stem, which mixes the pixels of neighbouring patches.
            Decoder blocks are of the encoder's kind (activation, biases, QK-norm, dropout) without LayerScale and drop
            path.
        decoder_hidden_size: width of the decoder's tokens; a multiple of 4 and of `decoder_num_attention_heads`.
        decoder_num_attention_heads: heads of each self-attention of the decoder.
        decoder_intermediate_size: width of the hidden layer of the decoder's MLPs.
        norm_pix_loss: MAE predicts each patch less its mean, divided by its standard deviation (paper, section 3; its
            better half of Table 1d).

    Raises:
        StrictDataclassError: (huggingface_hub) a field has the wrong type, or sizes, values and label names do not
            fit together; the message says what was found, what is expected and the remedy.

    `id2label` names the classes, `num_labels` counts them (2 when neither is given, as everywhere in transformers).
    """

    model_type = "vit_hf"
    # FSDP2 units: the blocks, and what surrounds them with the root module.
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"layers.*": "free_full_weight", "norm": "keep_full_weight"}
    _auto_class: ClassVar[str | None] = "AutoConfig"

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_pytorch_tanh"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    patch_bias: bool = True
    embedding_norm: bool = False
    pooling: str = "cls"
    class_token: bool | None = None
    fc_norm: bool = False
    distilled: bool = False
    representation_size: int | None = None
    num_register_tokens: int = 0
    prefix_positions: str = "cls"
    layer_scale_init: float | int | None = None
    qk_norm: bool = False
    position_embedding: str = "learned"
    position_interpolation: str = "google"
    resnet_stem_layers: list[int] | tuple[int, ...] | None = None
    resnet_stem_width: int = 64
    resnet_stem_style: str = "google"
    decoder_num_hidden_layers: int = 0
    decoder_hidden_size: int = 512
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    norm_pix_loss: bool = False

    def __post_init__(self, **kwargs):
        for name in ("image_size", "patch_size", "resnet_stem_layers"):
            if isinstance(value := getattr(self, name), tuple):
                setattr(self, name, list(value))  # as JSON gives it back
        _check_label_tables(self.id2label, self.label2id)
        for name, dtype in (("dtype", self.dtype), ("torch_dtype", kwargs.get("torch_dtype"))):
            if isinstance(dtype, str) and dtype not in DTYPES:
                raise ValueError(f"{name} is {dtype[:40]!r}; expected one of {', '.join(DTYPES)}")
        if kwargs.get("num_labels") is None:
            kwargs.pop("num_labels", None)
        else:
            if type(kwargs["num_labels"]) is not int:
                raise ValueError(f"num_labels is {kwargs['num_labels']!r}; expected an int")
            _check_size("num_labels", kwargs["num_labels"])  # before a name is made for each
            if self.id2label is not None and kwargs["num_labels"] != len(self.id2label):
                raise ValueError(
                    f"num_labels is {kwargs['num_labels']} but id2label names {len(self.id2label)} classes; give "
                    "id2label only, num_labels follows from it"
                )
        super().__post_init__(**kwargs)
        if self.label2id is None and self.id2label is not None:
            self.label2id = {name: index for index, name in self.id2label.items()}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the JSON form from a folder or the Hub, as `PreTrainedConfig` does.

        Raises:
            OSError: there is none, or it is no JSON object; among those a nesting or a number without end.
        """
        try:
            form, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except OSError:
            raise
        except (ValueError, RecursionError, TypeError, AttributeError) as error:
            raise OSError(
                f"config.json of {pretrained_model_name_or_path} cannot be read ({str(error)[:200]})"
            ) from error
        if not isinstance(form, dict):
            raise OSError(
                f"config.json of {pretrained_model_name_or_path} holds a {type(form).__name__}, no JSON object"
            )
        return form, rest

    @classmethod
    def _dict_from_json_file(cls, json_file):
        if (size := os.path.getsize(json_file)) > CONFIG_BYTES:
            raise OSError(f"{json_file} has {size:,} bytes; expected at most {CONFIG_BYTES:,}: download it anew")
        return super()._dict_from_json_file(json_file)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Build a config from its JSON form; fields in `kwargs` replace those of the form before the checks run.

        Other label names, or another number of them, replace all that the form says of labels. `kwargs` that are no
        fields go to `PreTrainedConfig.from_dict`.

        Raises:
            ValueError: the form has a field that is the caller's choice (`CALLERS_FIELDS`), or one that would replace
                something of this class.
        """
        _check_form(cls, config_dict)
        labels = ("id2label", "label2id", "num_labels")
        names = {field.name for field in fields(cls)} - {"dtype"} | {"num_labels"}
        given = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
        given = {name: value for name, value in given.items() if value is not None or name not in labels}
        stored = dict(config_dict)
        count = len(stored["id2label"]) if stored.get("id2label") else stored.get("num_labels", 2)
        if "id2label" in given or given.get("num_labels", count) != count:
            stored = {name: value for name, value in stored.items() if name not in labels}
        return super().from_dict({**stored, **given}, **kwargs)

    @property
    def output_attentions(self) -> bool | None:
        """Whether attention maps are returned by default; unlike elsewhere, with any attention backend."""
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool | None):
        self._output_attentions = value

    def validate_output_attentions(self):
        """Accept attention maps with any backend: the model computes them itself."""

    @property
    def image_hw(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return as_pair(self.image_size)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return as_pair(self.patch_size)

    @property
    def grid_hw(self) -> tuple[int, int]:
        """(height, width) of the patch grid, in patches."""
        return patch_grid(self.image_hw, self.patch_hw)

    @property
    def has_cls_token(self) -> bool:
        """Whether a class token stands before the patches."""
        return self.pooling == "cls" if self.class_token is None else self.class_token

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class token and registers."""
        return int(self.has_cls_token) + self.num_register_tokens

    @property
    def num_prefix_positions(self) -> int:
        """Position embeddings before those of the patches; they are never resampled."""
        counts = {"cls": int(self.has_cls_token), "none": 0, "all": self.num_prefix_tokens}
        return counts[self.prefix_positions]

    @property
    def stem_stride(self) -> int:
        """Pixels per cell of the feature map that the patch projection sees: 1 without a ResNet stem."""
        return 1 if self.resnet_stem_layers is None else 4 * 2 ** max(len(self.resnet_stem_layers) - 1, 0)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Write config.json and the code, as `PreTrainedConfig` does, and their entries in a manifest that is there."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if os.path.isfile(os.path.join(save_directory, MANIFEST)):
            code = {f"{kind.__module__.rpartition('.')[2]}.py" for kind in (type(self), VitHfConfig, update_manifest)}
            written = {"config.json", *code} & set(os.listdir(save_directory))
            update_manifest(save_directory, sorted(written))

    def validate_architecture(self):
        """Run the checks of sizes and values in an order in which each may rely on the one before."""
        self._check_numbers()
        self._check_values()
        self._check_divisibility()
        self._check_decoder()

    def _check_numbers(self):
        """Sizes within `SIZE_LIMITS`, probabilities in [0, 1), finite numbers."""
        for name in SIZE_LIMITS:
            value = getattr(self, name)
            if name in ("image_size", "patch_size"):
                if not isinstance(value, int) and len(value) != 2:
                    raise ValueError(f"{name} has {len(value)} numbers ({value}); give one int or (height, width)")
                _check_size(name, *as_pair(value))
            elif value is not None:
                _check_size(name, value)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a probability in [0, 1)")
        if not 0 < self.layer_norm_eps < 1:
            raise ValueError(f"layer_norm_eps is {self.layer_norm_eps}; expected a small positive number such as 1e-6")
        if self.layer_scale_init is not None and not math.isfinite(self.layer_scale_init):
            raise ValueError(
                f"layer_scale_init is {self.layer_scale_init}; expected a finite number such as 1e-4, or None for none"
            )

    def _check_values(self):
        """Values out of the known sets."""
        for name, known in (
            ("hidden_act", ACTIVATIONS),
            ("pooling", POOLINGS),
            ("position_embedding", POSITION_EMBEDDINGS),
            ("prefix_positions", PREFIX_POSITIONS),
            ("position_interpolation", POSITION_INTERPOLATIONS),
            ("resnet_stem_style", RESNET_STEM_STYLES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)[:80]!r}; expected one of {', '.join(known)}")
        if self.pooling == "cls" and not self.has_cls_token:
            raise ValueError("pooling is 'cls' and class_token False; use pooling 'gap' or 'map', or a class token")
        if self.distilled:
            plain = self.pooling == "cls" and not self.fc_norm and self.representation_size is None
            if not plain or self.num_register_tokens < 1:
                raise ValueError(
                    f"distilled needs num_register_tokens of at least 1 (found {self.num_register_tokens}), pooling "
                    f"'cls' (found {self.pooling!r}), no fc_norm (found {self.fc_norm}) and no representation_size "
                    f"(found {self.representation_size})"
                )

    def _check_divisibility(self):
        """The width divides by the heads, the image by the patch, the patch by the stem's stride."""
        if self.hidden_size % self.num_attention_heads:
            below = self.hidden_size // self.num_attention_heads * self.num_attention_heads
            fitting = [size for size in (below, below + self.num_attention_heads) if size > 0]
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}; "
                f"use hidden_size {' or '.join(map(str, fitting))}"
            )
        if self.position_embedding == "sincos2d" and self.hidden_size % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by 4, which position_embedding 'sincos2d' needs "
                "(sine and cosine of two axes); use a multiple of 4, or position_embedding 'learned'"
            )
        if self.resnet_stem_layers is not None:
            counts = self.resnet_stem_layers
            if len(counts) > 8 or any(count < 1 for count in counts) or sum(counts) > 256:  # ResNet-200 has 66
                raise ValueError(
                    f"resnet_stem_layers is {str(counts)[:80]}; expected 0 to 8 stages of 1 or more blocks, 256 in all "
                    "at most, such as [3, 4, 9]"
                )
            if self.resnet_stem_width % 32:
                raise ValueError(f"resnet_stem_width is {self.resnet_stem_width}; expected a positive multiple of 32")
            if any(size % self.stem_stride for size in self.patch_hw):
                raise ValueError(
                    f"patch_size {self.patch_size} is not divisible by the stride {self.stem_stride} of a ResNet stem "
                    f"with {len(self.resnet_stem_layers)} stages; use {self.stem_stride} or a multiple of it"
                )
        patch_grid(self.image_hw, self.patch_hw)

    def _check_decoder(self):
        """The decoder of a model for masked images: its width divides, and nothing shows it what is hidden."""
        layers, width, heads = (getattr(self, name) for name in DECODER_FIELDS[:3])
        if not layers:
            if self.norm_pix_loss:
                raise ValueError(
                    "norm_pix_loss is True and decoder_num_hidden_layers 0: SimMIM predicts plain pixels; expected a "
                    "decoder of 1 or more layers, or norm_pix_loss False"
                )
            return
        if self.resnet_stem_layers is not None:
            raise ValueError(
                f"decoder_num_hidden_layers is {layers} with resnet_stem_layers {self.resnet_stem_layers}: the stem's "
                "convolutions would show hidden pixels to the visible patches beside them; use resnet_stem_layers None "
                "(a variant without stem, such as B/16), or decoder_num_hidden_layers 0 (SimMIM)"
            )
        unit = math.lcm(4, heads)
        if width % unit:
            fitting = [size for size in (width // unit * unit, (width // unit + 1) * unit) if size]
            raise ValueError(
                f"decoder_hidden_size {width} is not divisible by 4 (sine and cosine of two axes) and by "
                f"decoder_num_attention_heads {heads}; use decoder_hidden_size {' or '.join(map(str, fitting))}"
            )
        if self.norm_pix_loss and math.prod(self.patch_hw) * self.num_channels < 2:
            raise ValueError(
                "norm_pix_loss is True with patches of one number each, which have no deviation; use larger patches"
            )

    def validate_labels(self):
        """`id2label` counts 0, 1, ... without gaps, and `label2id` is its inverse."""
        if self.id2label is None:
            return
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(
                f"id2label has the indices {sorted(self.id2label)[:10]}; expected 0 to "
                f"{len(self.id2label) - 1}, each once"
            )
        if self.label2id is not None:
            wrong = [name for name, index in self.label2id.items() if self.id2label.get(int(index)) != name]
            if wrong or len(self.label2id) != len(set(self.id2label.values())):
                raise ValueError(
                    f"label2id and id2label do not match (first differing name: {(wrong or ['missing names'])[0]!r}); "
                    "give id2label only, label2id follows from it"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, which names the code files so that the Auto classes find them without `vit_hf`."""
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP)}


def _check_form(cls: type, form: dict[str, Any]) -> None:
    """Raise if the JSON form of a config asks for what only the caller may ask for, or would replace methods."""
    own = {field.name for field in fields(cls)}
    settable = {"model_type", "num_labels", "output_attentions", "torch_dtype", "name_or_path"}
    for name, value in form.items():
        if name in ATTENTION_FIELDS:
            if value is not None and value not in ATTENTION_BACKENDS:
                raise ValueError(
                    f"the config's {name} is {str(value)[:80]!r}; expected one of {', '.join(ATTENTION_BACKENDS)}: "
                    "remove it, and pass attn_implementation to from_pretrained"
                )
        elif (name in CALLERS_FIELDS and value is not None) or (name not in own | settable and hasattr(cls, name)):
            raise ValueError(
                f"the config has the field {name!r}, which no file may set: remove it, and pass it to from_pretrained "
                "if it is wanted"
            )


def _check_label_tables(id2label: Any, label2id: Any) -> None:
    """Raise unless both are tables of a sane length with integers on the side of the indices, each index once."""
    for name, table in (("id2label", id2label), ("label2id", label2id)):
        if table is None:
            continue
        if not isinstance(table, dict):
            raise ValueError(f"'{name}' is a {type(table).__name__}; expected {{0: first name, 1: ...}} or its inverse")
        if table:
            _check_size("num_labels", len(table))
        try:
            indices = {int(index) for index in (table if name == "id2label" else table.values())}
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} has an index that is no integer ({str(error)[:80]}); expected 0, 1, ..."
            ) from error
        if name == "id2label" and len(indices) < len(table):
            raise ValueError(f"id2label has {len(table)} entries for {len(indices)} indices; expected each once")
        odd = next((label for label in (table.values() if name == "id2label" else table) if type(label) is not str), "")
        if odd != "":
            raise ValueError(
                f"{name} has the label {str(odd)[:80]} of type {type(odd).__name__}; expected names as text"
            )


def _check_size(name: str, *values: int) -> None:
    """Raise unless all values of a size lie within its `SIZE_LIMITS`."""
    smallest, largest = SIZE_LIMITS[name]
    for value in values:
        if not smallest <= value <= largest:
            raise ValueError(
                f"{name} is {value if abs(value) < 1e18 else 'a longer number'}; expected {smallest:,} to {largest:,}"
            )


def patch_grid(image_hw: tuple[int, int], patch_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the patch grid (h, w) of an image.

    Args:
        image_hw: (height, width) of the image in pixels.
        patch_hw: (height, width) of a patch in pixels.

    Raises:
        ValueError: a side is not divisible by the patch; the message names the two nearest sizes that fit.
    """
    for side, size, patch in zip(("height", "width"), image_hw, patch_hw, strict=True):
        if size % patch or size < patch:
            below = size // patch * patch
            fitting = f"{below} or {below + patch}" if below else f"{patch} or {2 * patch}"
            raise ValueError(f"image_size {size} ({side}) is not divisible by patch_size {patch}; use {fitting}")
    return image_hw[0] // patch_hw[0], image_hw[1] // patch_hw[1]


__all__ = ["VitHfConfig"]
