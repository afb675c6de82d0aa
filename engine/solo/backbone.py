"""Any timm network as a source of feature maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

import math

import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.functional import interpolate, max_pool2d

from engine.encoders.backbone import load_backbone
from engine.encoders.encoder import EncoderConfig
from engine.encoders.facets import Transformer
from engine.encoders.layout import IMAGENET_MEAN, IMAGENET_STD
from engine.encoders.weights import check_fit, read_weights, select_network
from engine.errors import WeightsError
from engine.solo.config import SoloConfig
from engine.solo.layers import group_norm, with_frozen_batch_norm, with_group_norm

STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module):
    """Images (B, 3, H, W), RGB in [0, 1], H and W multiples of 32 -> maps at the strides 4, 8, 16, 32.

    `channels` holds the numbers of channels of the four maps.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        body: nn.Module,
        channels: tuple[int, ...],
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.body = body
        self.channels = channels
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = self.body((images - self.mean) / self.std)
        return maps


class SimplePyramid(nn.Module):
    """Four maps from the last map of a Vision Transformer.

    Transposed convolutions of stride 2 give the finer strides, max pooling the coarser ones. For patch sizes
    that are no power of two (14), maps are interpolated to the strides.

    Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", arXiv 2203.16527,
    section 3.
    """

    def __init__(self, transformer: Transformer, channels: int) -> None:
        super().__init__()
        self.transformer = transformer
        self._last = len(transformer.blocks) - 1
        width, patch = transformer.embed_dim, int(transformer.patch_embed.patch_size[0])
        self._patch = patch
        self.levels = nn.ModuleList(_upsampling(width, channels, patch / stride) for stride in STRIDES)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        height, width = images.shape[2:]
        # The patch size may not divide the image's, which is then enlarged to the next multiple.
        size = tuple(math.ceil(side / self._patch) * self._patch for side in (height, width))
        if size != (height, width):
            images = interpolate(images, size, mode="bilinear", align_corners=False)
        (last,) = self.transformer.forward_intermediates(
            images, indices=[self._last], norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return [
            _to_size(level(last), (height // stride, width // stride))
            for level, stride in zip(self.levels, STRIDES, strict=True)
        ]


def build_backbone(config: SoloConfig, pretrained: bool) -> Backbone:
    """The backbone with the weights that `config` names, or with random ones if not `pretrained`.

    Raises WeightsError for a network that timm does not know or that has no such maps, and for weights that
    are missing or of another network.
    """
    architecture = config.backbone.partition(".")[0]
    if not timm.is_model(architecture):
        raise WeightsError(f"timm knows no model {architecture!r}: timm.list_models() lists all models")
    with torch.device("meta"):
        outline = timm.create_model(config.backbone, num_classes=0)
    if isinstance(outline, VisionTransformer | Eva):
        return _transformer_backbone(config, config.backbone_weights if pretrained else "random")
    return _convolutional_backbone(config, config.backbone_weights if pretrained else "random")


def _transformer_backbone(config: SoloConfig, weights: str) -> Backbone:
    loaded = load_backbone(EncoderConfig(name=config.backbone, weights=weights, seed=config.seed))
    transformer = loaded.model.train().requires_grad_(True)
    patch = int(transformer.patch_embed.patch_size[0])
    side = math.ceil(config.image_size / patch) * patch
    # Resize position embeddings to the training size once instead of in every forward pass.
    transformer.set_input_size(img_size=(side, side))
    # Parameters of the classifier get no gradient, which distributed training would report as an error.
    transformer.prune_intermediate_layers([len(transformer.blocks) - 1], prune_norm=False, prune_head=True)
    channels = config.pyramid_channels
    pyramid = SimplePyramid(transformer, channels)
    return Backbone(pyramid, (channels,) * len(STRIDES), loaded.mean, loaded.std)


def _convolutional_backbone(config: SoloConfig, weights: str) -> Backbone:
    try:
        with torch.device("meta"):
            outline = timm.create_model(config.backbone, features_only=True)
        reductions: list[int] = outline.feature_info.reduction()
        # Of several maps with the same stride, the last is the deepest.
        indices = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]
        body = timm.create_model(
            config.backbone,
            features_only=True,
            out_indices=indices,
            pretrained=weights == "hub",
        )
    except (RuntimeError, ValueError, AttributeError, OSError) as error:
        raise WeightsError(
            f"backbone {config.backbone!r} with weights {weights!r} gives no feature maps at the strides "
            f"{STRIDES} ({type(error).__name__}): give a ResNet or similar network, or a Vision Transformer; "
            "offline, give a file as backbone_weights"
        ) from error
    if weights not in ("hub", "random"):
        _load_file(body, config.backbone, weights)
    channels = tuple(body.feature_info.channels())
    body = with_group_norm(body) if config.trains_norms else with_frozen_batch_norm(body)
    return Backbone(body, channels)


def _load_file(body: nn.Module, name: str, weights: str) -> None:
    """Load `body` from a checkpoint of the whole network; further entries are ignored."""
    expected = body.state_dict()
    state = select_network(read_weights(weights).state, expected, weights)
    used = {name: state[name] for name in expected if name in state}
    counters = {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")}
    check_fit(counters | used, expected, f"weights {weights!r} do not fit {name!r}")
    body.load_state_dict(counters | used)


def _upsampling(width: int, channels: int, scale: float) -> nn.Sequential:
    """Upsampling of a transformer's map by the power of two nearest to `scale`, at least 1."""
    steps: list[nn.Module] = []
    for _ in range(max(round(math.log2(scale)), 0)):
        steps += [nn.ConvTranspose2d(width, width, 2, stride=2), group_norm(width), nn.GELU()]
    return nn.Sequential(*steps, nn.Conv2d(width, channels, 1, bias=False), group_norm(channels))


def _to_size(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    height, width = features.shape[2:]
    if (height, width) == size:
        return features
    factor = height // size[0]
    if (size[0] * factor, size[1] * factor) == (height, width):
        return max_pool2d(features, factor)
    return interpolate(features, size, mode="bilinear", align_corners=False)
