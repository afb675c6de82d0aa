"""Small layers shared by several parts of the network."""

from __future__ import annotations

import math

import torch
from timm.layers import BatchNormAct2d
from torch import nn

_MAX_GROUPS = 32


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with gcd(32, channels) groups (Wu & He, arXiv 1803.08494).

    >>> group_norm(48).num_groups
    16
    """
    return nn.GroupNorm(math.gcd(_MAX_GROUPS, channels), channels)


def conv_block(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
    """Convolution, GroupNorm, ReLU; the spatial size is kept."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, group_norm(out_channels), nn.ReLU(inplace=True))


def with_group_norm(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm replaced by GroupNorm, in place unless the module is one itself."""
    if isinstance(module, nn.BatchNorm2d):
        norm = group_norm(module.num_features)
        # timm's BatchNormAct2d includes the activation.
        return nn.Sequential(norm, module.act) if isinstance(module, BatchNormAct2d) else norm
    for name, child in list(module.named_children()):
        replaced = with_group_norm(child)
        if replaced is not child:
            setattr(module, name, replaced)
    return module


class FrozenBatchNorm(nn.Module):
    """BatchNorm with fixed statistics, weight and bias: a constant affine map."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", (norm.bias - norm.running_mean * scale).detach())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scale, shift = self.scale.to(features.dtype), self.shift.to(features.dtype)
        return features * scale[:, None, None] + shift[:, None, None]


def with_frozen_batch_norm(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm replaced by FrozenBatchNorm, in place unless it is one itself."""
    if isinstance(module, nn.BatchNorm2d):
        norm = FrozenBatchNorm(module)
        return nn.Sequential(norm, module.act) if isinstance(module, BatchNormAct2d) else norm
    for name, child in list(module.named_children()):
        replaced = with_frozen_batch_norm(child)
        if replaced is not child:
            setattr(module, name, replaced)
    return module


def with_coordinates(features: torch.Tensor) -> torch.Tensor:
    """Features (B, C, H, W) with two more channels: x and y of pixel centres, -1 to 1 (CoordConv)."""
    batch, _, height, width = features.shape
    y, x = ((torch.arange(size, device=features.device) + 0.5) * (2 / size) - 1 for size in (height, width))
    planes = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    coordinates = planes.to(features.dtype).expand(batch, 2, height, width)
    return torch.cat([features, coordinates], dim=1)
