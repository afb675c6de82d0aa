"""Any timm VisionTransformer or Eva as an encoder: the keys of its last attention (METHODS section 1)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import timm.models.eva
import timm.models.vision_transformer
import torch
from numpy.typing import NDArray
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from engine.device import autocast, reproducible, upload_images
from engine.encoders.encoder import EMBEDDED, EncoderConfig, check_images, patch_grid
from engine.encoders.keys import Transformer, keep_keys_only
from engine.encoders.layout import IMAGENET_MEAN, IMAGENET_STD, Layout, Statistics
from engine.encoders.weights import State, Weights, check_fit, digest_state, drop_heads, read_weights
from engine.errors import WeightsError

# Made by jobs/pretrain_encoder.py; embedded.md beside it says from what.
EMBEDDED_FILE = Path(__file__).with_name("embedded.safetensors")


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A transformer of timm's, with its weights and the RGB statistics (of values in [0, 1]) they expect."""

    architecture: str
    model: Transformer
    mean: Statistics
    std: Statistics
    weights_digest: str


def load_vit(config: EncoderConfig, device: torch.device) -> VitEncoder:
    """The encoder of a timm ViT on `device`. Raises WeightsError, ConfigurationError."""
    return VitEncoder(load_backbone(config), config, device)


def load_backbone(config: EncoderConfig) -> Backbone:
    """The whole transformer in float32 on the CPU, in evaluation mode, with the weights that `config` names.

    Position embeddings keep the grid that they were trained on; the model resamples them to the image's
    (timm's bicubic interpolation) in each forward pass.

    Mean and standard deviation are what a file states about itself (`Layout`), as are its patch size and
    depth; those of the published weights where those are loaded or a tag names them
    (`vit_base_patch8_224.dino`); and ImageNet's, as in the DINO release, otherwise: an architecture alone
    says nothing about how the weights in a file were trained.
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
    """A new model at its own input size, its random weights drawn from the seed and from nothing else.

    `arguments` are those of timm's model: patch_size, depth, img_size, ...
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: Transformer = timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments)
    return model


def describe_layout(backbone: Backbone) -> Layout:
    """What a file of the backbone's weights has to state. Raises WeightsError if patches are no squares."""
    height, width = _patch_size(backbone.model)
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


class VitEncoder:
    """Keys of the last attention of a transformer; see `engine.encoders.Encoder`.

    Batches are filled up with black images to `batch_size`, so that all run through the same kernels and an
    image's features do not depend on how many others there are.
    """

    def __init__(self, backbone: Backbone, config: EncoderConfig, device: torch.device) -> None:
        """Takes the backbone over: its last block and head are cut off and it moves to `device`."""
        self.name = config.name
        self.weights_digest = backbone.weights_digest
        self.patch_size = _patch_size(backbone.model)
        self.grid = patch_grid(config.image_size, self.patch_size, config.name)
        self.image_size = (self.grid[0] * self.patch_size[0], self.grid[1] * self.patch_size[1])
        self.feature_size = keep_keys_only(backbone.model)
        self._model = backbone.model.to(device)
        self._mean = torch.tensor(backbone.mean, device=device)
        self._std = torch.tensor(backbone.std, device=device)
        self._batch_size = config.batch_size
        self._precision = config.precision
        self._device = device

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """B images uint8 (H, W, 3) -> float16 (B, h, w, C) on the encoder's device; see `Encoder.encode`."""
        check_images(images, self.patch_size)
        if not images:
            return torch.zeros((0, *self.grid, self.feature_size), dtype=torch.float16, device=self._device)
        starts = range(0, len(images), self._batch_size)
        parts = [self._encode_batch(images[start : start + self._batch_size]) for start in starts]
        return torch.cat(parts)  # outside inference mode: what leaves is an ordinary tensor

    @torch.inference_mode()
    def _encode_batch(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        pixels = upload_images(images, self._batch_size, self._device).float() / 255.0
        inputs = ((pixels - self._mean) / self._std).permute(0, 3, 1, 2).contiguous()
        with reproducible(self._device), autocast(self._device, self._precision):
            tokens = self._model.forward_features(inputs)
        keys = tokens[: len(images), self._model.num_prefix_tokens :].float()
        height, width = (size // patch for size, patch in zip(inputs.shape[2:], self.patch_size, strict=True))
        keys = keys.reshape(len(images), height, width, self.feature_size)
        return torch.nn.functional.normalize(keys, dim=-1).to(torch.float16)


def _outline(name: str) -> Transformer:
    """The architecture, without memory behind it. Raises WeightsError unless it can be an encoder."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise WeightsError(f"timm knows no model {architecture!r}{_suggestion(name, timm.list_models())}")
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
    matches = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f": did you mean {', '.join(matches)}?" if matches else ": timm.list_models() lists what it has"


def _published_statistics(config: EncoderConfig, outline: Transformer) -> tuple[Statistics, Statistics]:
    """Mean and standard deviation of the inputs of the weights that a name stands for."""
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
    """The model that a checkpoint file holds. Raises WeightsError where it is of another architecture."""
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
    """The model that travels with the package; its file says what it is."""
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
    """Fill `model` from a checkpoint. Raises WeightsError where it does not fit."""
    _fit_position_grid(model, weights.state, config)
    state = _rename(model, weights.state, config)
    expected = drop_heads(model.state_dict())
    what = f"weights {config.weights!r} do not fit {config.name!r}"
    check_fit(state, expected, what)
    model.load_state_dict(state, strict=False)


def _fit_position_grid(model: Transformer, state: State, config: EncoderConfig) -> None:
    """Give `model` the grid of the checkpoint's position embeddings, which may be another than its own."""
    if model.pos_embed is None or "pos_embed" not in state:
        return
    num_tokens = state["pos_embed"].shape[1]
    side = math.isqrt(num_tokens)
    if num_tokens == model.pos_embed.shape[1]:
        return
    if num_tokens - side**2 > model.num_prefix_tokens:
        raise WeightsError(
            f"weights {config.weights!r} have {num_tokens} position embeddings, no square grid and not the "
            f"{model.pos_embed.shape[1]} of {config.name!r}"
        )
    height, width = _patch_size(model)
    model.set_input_size(img_size=(side * height, side * width))


def _rename(model: Transformer, state: State, config: EncoderConfig) -> State:
    """The state in timm's naming; what it cannot name stays as it is, for `check_fit` to list."""
    if isinstance(model, Eva):
        state = _without_empty_biases(model, state, config)
        return drop_heads(timm.models.eva.checkpoint_filter_fn(state, model))
    return drop_heads(timm.models.vision_transformer.checkpoint_filter_fn(dict(state), model))


def _without_empty_biases(model: Eva, state: State, config: EncoderConfig) -> State:
    """DINOv3's release stores query and value biases that most of timm's DINOv3 models leave out as zero."""
    known = model.state_dict()
    biases = [name for name in state if name.endswith("attn.qkv.bias") and name not in known]
    if any(name.endswith("attn.q_bias") for name in known):
        return state
    if any(part.any() for name in biases for part in state[name].chunk(3)[::2]):
        raise WeightsError(
            f"weights {config.weights!r} have query and value biases and {config.name!r} has none: take the "
            "model of the same name that ends in _qkvb"
        )
    return {name: tensor for name, tensor in state.items() if name not in biases}


def _patch_size(model: Transformer) -> tuple[int, int]:
    """(height, width) in pixels of what becomes one token."""
    height, width = model.patch_embed.feat_ratio(as_scalar=False)
    return int(height), int(width)
