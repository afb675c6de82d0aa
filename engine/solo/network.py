"""The network: backbone, feature pyramid, category and kernel heads, mask features.

Source: Wang et al., "SOLO: Segmenting Objects by Locations", arXiv 1912.04488, and "SOLOv2: Dynamic and Fast
Instance Segmentation", arXiv 2003.10152. Ours has a single category: object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import interpolate, max_pool2d

from engine.solo.backbone import Backbone, build_backbone
from engine.solo.config import NUM_LEVELS, SoloConfig
from engine.solo.layers import conv_block, with_coordinates

# Initial probability of objectness, so that the many empty cells do not dominate the loss of the first steps
# (Lin et al., arXiv 1708.02002, section 3.3).
_PRIOR = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class SoloOutputs:
    """Network outputs for B images and the G cells of all levels, each grid in row order.

    `objectness` (B, G) are logits, `kernels` are (B, G, E) and `mask_features` (B, E, H / 4, W / 4).
    """

    objectness: torch.Tensor
    kernels: torch.Tensor
    mask_features: torch.Tensor

    def mask_logits(self, image: int, cells: torch.Tensor) -> torch.Tensor:
        """Mask logits of N cells of one image, (N, H / 4, W / 4): a dynamic 1 x 1 convolution."""
        features = self.mask_features[image]
        # Under autocast on GPUs, norms return float32 and convolutions half precision.
        logits = self.kernels[image][cells].to(features.dtype) @ features.flatten(1)
        return logits.reshape(len(cells), *features.shape[1:])


class SoloNetwork(nn.Module):
    """Images (B, 3, H, W), RGB in [0, 1], H and W multiples of 32 -> SoloOutputs."""

    def __init__(self, config: SoloConfig, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = FeaturePyramid(backbone.channels, config.pyramid_channels)
        self.category_head = Tower(config.pyramid_channels, config.head_channels, config.head_depth, 1)
        assert self.category_head.prediction.bias is not None
        nn.init.constant_(self.category_head.prediction.bias, -math.log((1 - _PRIOR) / _PRIOR))
        self.kernel_head = Tower(
            config.pyramid_channels + 2, config.head_channels, config.head_depth, config.mask_channels
        )
        self.mask_branch = MaskBranch(config.pyramid_channels, config.mask_channels)
        self._grids = config.grid.sizes

    def forward(self, images: torch.Tensor) -> SoloOutputs:
        levels = self.pyramid(self.backbone(images))
        objectness, kernels = [], []
        for size, features in zip(self._grids, levels, strict=True):
            # Coordinates are added before resampling, so that they are the same in every grid.
            aligned = _to_grid(with_coordinates(features), size)
            objectness.append(self.category_head(aligned[:, :-2]).flatten(1))
            kernels.append(self.kernel_head(aligned).flatten(2).transpose(1, 2))
        return SoloOutputs(
            objectness=torch.cat(objectness, dim=1),
            kernels=torch.cat(kernels, dim=1),
            mask_features=self.mask_branch(levels[:-1]),
        )


class FeaturePyramid(nn.Module):
    """Four maps at strides 4 to 32 -> five of equal channels at strides 4 to 64 (Lin et al., 1612.03144)."""

    def __init__(self, in_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in in_channels)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        merged = [lateral(features) for lateral, features in zip(self.lateral, maps, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            coarser = interpolate(merged[finer + 1], scale_factor=2.0, mode="nearest")
            merged[finer] = merged[finer] + coarser
        levels = [smooth(features) for smooth, features in zip(self.smooth, merged, strict=True)]
        levels.append(max_pool2d(levels[-1], 1, stride=2))
        assert len(levels) == NUM_LEVELS
        return levels


class Tower(nn.Module):
    """Convolutions on a grid, shared by all levels, and a prediction per cell."""

    def __init__(self, in_channels: int, channels: int, depth: int, out_channels: int) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * depth
        self.convolutions = nn.Sequential(*map(conv_block, widths[:-1], widths[1:]))
        self.prediction = nn.Conv2d(channels, out_channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
        assert self.prediction.bias is not None
        nn.init.zeros_(self.prediction.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        predictions: torch.Tensor = self.prediction(self.convolutions(features))
        return predictions


class MaskBranch(nn.Module):
    """One map at stride 4 from the pyramid's strides 4 to 32 (arXiv 2003.10152, section 3.2, figure 3)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width = max(in_channels // 2, 1)
        # The coarsest level gets coordinates.
        self.levels = nn.ModuleList(
            _doubling(in_channels + (2 if doublings == 3 else 0), width, doublings) for doublings in range(4)
        )
        self.output = conv_block(width, out_channels, kernel_size=1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        maps = [*maps[:-1], with_coordinates(maps[-1])]
        upsampled = [level(features) for level, features in zip(self.levels, maps, strict=True)]
        output: torch.Tensor = self.output(sum(upsampled[1:], start=upsampled[0]))
        return output


def build_network(config: SoloConfig, pretrained: bool = True) -> SoloNetwork:
    """The network in training mode on the CPU; its random weights depend on the seed alone.

    If not `pretrained`, the backbone's weights are not loaded, as a checkpoint will replace them. Raises
    WeightsError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return SoloNetwork(config, build_backbone(config, pretrained)).train()


def _doubling(in_channels: int, channels: int, doublings: int) -> nn.Sequential:
    """`doublings` convolutions, each followed by 2 x upsampling; a convolution alone if there are none."""
    steps: list[nn.Module] = [conv_block(in_channels, channels)]
    for doubling in range(doublings):
        if doubling > 0:
            steps.append(conv_block(channels, channels))
        steps.append(nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False))
    return nn.Sequential(*steps)


def _to_grid(features: torch.Tensor, size: int) -> torch.Tensor:
    return interpolate(features, (size, size), mode="bilinear", align_corners=False)
