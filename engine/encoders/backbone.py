"""Transformers of timm with their weights: published, random or from a checkpoint file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import timm.models.eva
import timm.models.vision_transformer
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from engine.encoders.encoder import DESCRIPTOR, EMBEDDED, EncoderConfig
from engine.encoders.facets import Transformer
from engine.encoders.formats import check_network
from engine.encoders.layout import IMAGENET_MEAN, IMAGENET_STD, Layout, Statistics
from engine.encoders.names import SHORT_NAMES, change_architecture, suggest_names
from engine.encoders.naming import State, adapt_to, drop_heads, is_square
from engine.encoders.weights import Weights, check_fit, digest_state, read_weights, select_network
from engine.errors import WeightsError

# Made by jobs/pretrain_encoder.py; embedded.md beside it describes its training.
EMBEDDED_FILE = Path(__file__).with_name("embedded.safetensors")


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A transformer of timm with its weights, and the mean and deviation of RGB in [0, 1] that it expects."""

    architecture: str
    model: Transformer
    mean: Statistics
    std: Statistics
    weights_digest: str


def load_backbone(config: EncoderConfig) -> Backbone:
    """The whole transformer in float32 on the CPU, in evaluation mode, with the weights that `config` names.

    Position embeddings keep the grid that they were trained on; the model resamples them to the image's
    (timm's bicubic interpolation) in each forward pass.

    Mean and standard deviation are those that a file states (`Layout`); those of the published weights if
    these are loaded or a tag names them (`vit_base_patch8_224.dino`); and otherwise ImageNet's, as in the
    DINO release: an architecture's name alone does not tell how the weights in a file were trained.

    Raises: WeightsError for an unknown architecture and for weights that are missing, damaged, not finite or
    of another network.
    """
    if config.name == EMBEDDED:
        return _load_embedded(config)
    outline = _outline(config.name)
    if config.weights == "hub":
        model = _from_hub(config, outline)
    elif config.weights == "random":
        model = create_transformer(config.name, config.seed)
    else:
        return _from_file(config, outline)
    return _backbone(model, config, _published_statistics(config, outline))


def create_transformer(name: str, seed: int, **arguments: object) -> Transformer:
    """A new model at its own input size; its random weights depend on the seed alone.

    `arguments` are passed to timm's model: patch_size, depth, img_size, ...
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: Transformer = timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments)
    return model


def describe_layout(backbone: Backbone) -> Layout:
    """The layout to store with the backbone's weights. Raises WeightsError for non-square patches."""
    height, width = patch_size_of(backbone.model)
    if height != width:
        raise WeightsError(
            f"{backbone.architecture!r} has patches of {height} x {width} pixels, only squares can be written"
        )
    return Layout(
        architecture=backbone.architecture,
        patch_size=height,
        depth=len(backbone.model.blocks),
        mean=backbone.mean,
        std=backbone.std,
    )


def patch_size_of(model: Transformer) -> tuple[int, int]:
    """(height, width) in pixels of a patch."""
    height, width = model.patch_embed.feat_ratio(as_scalar=False)
    return int(height), int(width)


def _outline(name: str) -> Transformer:
    """The architecture without allocated weights. Raises WeightsError unless it can be an encoder."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        models = timm.list_models(pretrained="dino" in name.lower())
        known = [EMBEDDED, DESCRIPTOR, *SHORT_NAMES, *models]
        raise WeightsError(f"timm knows no model {architecture!r}{_suggestion(name, known)}")
    published = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in published:
        raise WeightsError(f"timm publishes no weights {name!r}{_suggestion(name, published)}")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    if not isinstance(model, VisionTransformer | Eva):
        raise WeightsError(
            f"{name!r} is a {type(model).__name__}, which has no patch keys: give a VisionTransformer or Eva "
            "of timm (DINO, DINOv2, DINOv3, ...), for example vit_base_patch8_224.dino"
        )
    return model


def _suggestion(name: str, known: Sequence[str]) -> str:
    matches = suggest_names(name, known)
    return f": did you mean {', '.join(matches)}?" if matches else ": timm.list_models() lists what it has"


def _published_statistics(config: EncoderConfig, outline: Transformer) -> tuple[Statistics, Statistics]:
    """Mean and standard deviation of the inputs of the published weights that a name stands for."""
    named = outline.pretrained_cfg if config.weights == "hub" or "." in config.name else {}
    return tuple(named.get("mean", IMAGENET_MEAN)), tuple(named.get("std", IMAGENET_STD))


def _backbone(
    model: Transformer, config: EncoderConfig, statistics: tuple[Statistics, Statistics]
) -> Backbone:
    return Backbone(
        architecture=config.name.partition(".")[0],
        model=model.eval().requires_grad_(False),
        mean=statistics[0],
        std=statistics[1],
        weights_digest=digest_state(drop_heads(model.state_dict())),
    )


def _from_hub(config: EncoderConfig, outline: Transformer) -> Transformer:
    source = outline.pretrained_cfg
    if not any(source.get(key) for key in ("hf_hub_id", "url", "file")):
        raise WeightsError(
            f"timm publishes no weights for {config.name!r}: give --weights FILE, or --weights random"
        )
    try:
        return create_transformer(config.name, config.seed, pretrained=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"cannot get the weights of {config.name!r} from the hub (offline?): download them elsewhere and "
            f"give --weights FILE, or use --encoder embedded ({type(error).__name__})"
        ) from error


def _from_file(config: EncoderConfig, outline: Transformer) -> Backbone:
    """The model in a checkpoint file. Raises WeightsError if it is of another architecture."""
    weights = read_weights(config.weights)
    layout = weights.layout
    if layout is None:
        model = create_transformer(config.name, config.seed)
        statistics = _published_statistics(config, outline)
    else:
        _check_architecture(layout, config)
        model = create_transformer(
            layout.architecture, config.seed, patch_size=layout.patch_size, depth=layout.depth
        )
        statistics = layout.mean, layout.std
    _load(model, weights, config)
    return _backbone(model, config, statistics)


def _load_embedded(config: EncoderConfig) -> Backbone:
    """The model that comes with the package; its file states its layout."""
    layout = read_weights(str(EMBEDDED_FILE)).layout
    assert layout is not None
    config = replace(config, name=layout.architecture, weights=str(EMBEDDED_FILE))
    return _from_file(config, _outline(layout.architecture))


def _check_architecture(layout: Layout, config: EncoderConfig) -> None:
    if layout.architecture != config.name.partition(".")[0]:
        raise WeightsError(
            f"weights {config.weights!r} are of a {layout.architecture}, not of {config.name!r}: "
            f"give --encoder {layout.architecture}"
        )


def _load(model: Transformer, weights: Weights, config: EncoderConfig) -> None:
    """Fill `model` from a checkpoint. Raises WeightsError if it does not fit."""
    try:
        state = _fitting_state(model, weights, config)
    except WeightsError:
        check_network(weights.state, config.weights)  # a file of another kind is told by its name
        raise
    model.load_state_dict(state, strict=False)


def _fitting_state(model: Transformer, weights: Weights, config: EncoderConfig) -> State:
    """The model's tensors in a checkpoint. The model takes over the checkpoint's position grid."""
    what = f"weights {config.weights!r} do not fit {config.name!r}"
    expected = drop_heads(model.state_dict())
    state = adapt_to(expected, select_network(weights.state, expected, config.weights), what)
    _check_patches_and_registers(model, state, config, what)
    _fit_position_grid(model, state, what)
    state = _convert_by_timm(model, state)
    check_fit(state, drop_heads(model.state_dict()), what)
    return state


def _check_patches_and_registers(model: Transformer, state: State, config: EncoderConfig, what: str) -> None:
    """Raise WeightsError if they differ: timm would resample patches and fail on registers."""
    expected = model.state_dict()
    patches, expected_patches = _patch_shape(state), _patch_shape(expected)
    registers, expected_registers = _num_registers(state), _num_registers(expected)
    if patches and expected_patches and patches != expected_patches:
        complaint = "their patches are {} x {} pixels, the model's {} x {}".format(
            *patches, *expected_patches
        )
    elif registers != expected_registers:
        complaint = f"they have {registers} register tokens, the model has {expected_registers}"
    else:
        return
    architecture = config.name.partition(".")[0]
    sibling = change_architecture(architecture, patches[0] if patches else None, registers)
    if sibling == architecture or not timm.is_model(sibling):
        sibling = "with the name of their own architecture"
    raise WeightsError(f"{what}: {complaint}: give --encoder {sibling}")


def _num_registers(state: State) -> int:
    return state["reg_token"].shape[1] if "reg_token" in state else 0


def _patch_shape(state: State) -> tuple[int, ...]:
    """(height, width) of the convolution that embeds patches; () for a linear map, which does not tell."""
    weight = state.get("patch_embed.proj.weight")
    return tuple(weight.shape[2:]) if weight is not None else ()


def _fit_position_grid(model: Transformer, state: State, what: str) -> None:
    """Give `model` the position grid of the checkpoint, if it is another than its own."""
    if model.pos_embed is None or "pos_embed" not in state:
        return
    num_positions, num_expected = state["pos_embed"].shape[1], model.pos_embed.shape[1]
    if num_positions == num_expected:
        return
    num_patches = num_positions - (0 if model.no_embed_class else model.num_prefix_tokens)
    if not is_square(num_patches) or num_patches == 0:
        raise WeightsError(
            f"{what}: they have {num_positions} position embeddings, the model has {num_expected}, and only "
            "square grids are recognised by their number: resample them to a square grid"
        )
    side = round(num_patches**0.5)
    height, width = patch_size_of(model)
    model.set_input_size(img_size=(side * height, side * width))


def _convert_by_timm(model: Transformer, state: State) -> State:
    """Apply timm's own conversion of older checkpoints; unknown names stay, for `check_fit` to list."""
    if isinstance(model, Eva):
        return drop_heads(timm.models.eva.checkpoint_filter_fn(state, model))
    return drop_heads(timm.models.vision_transformer.checkpoint_filter_fn(dict(state), model))
