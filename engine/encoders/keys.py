"""The key vectors of a transformer's last attention, and nothing behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from timm.models.eva import Eva, EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn

from engine.errors import WeightsError

Transformer: TypeAlias = VisionTransformer | Eva


class KeyProjection(nn.Module):
    """Stands in for a transformer's last block and returns its keys instead of its output.

    (B, N, D) tokens -> (B, N, C) keys of all heads side by side, before any norm or rotary embedding of the
    keys. Blocks with several attentions in parallel give the keys of all.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        paths = _key_paths(block)
        self.norms = nn.ModuleList(path.norm for path in paths)
        self.projections = nn.ModuleList(path.copied() for path in paths)

    @property
    def feature_size(self) -> int:
        """C, the width of a key with all heads."""
        return sum(int(projection.out_features) for projection in self.projections)  # type: ignore[misc, arg-type]

    def forward(
        self,
        x: torch.Tensor,
        rope: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """Keys of tokens `x`. The other arguments are a block's, given by timm; keys come before them."""
        del rope, attn_mask, is_causal
        keys = [project(norm(x)) for norm, project in zip(self.norms, self.projections, strict=True)]
        return torch.cat(keys, dim=-1)


def keep_keys_only(model: Transformer) -> int:
    """Make `model.forward_features` return the last attention's keys, and return their width.

    The last block is replaced by its key projection and the final norm removed, so that neither the last
    attention nor anything behind it is computed or kept in memory. The model is changed.
    """
    projection = KeyProjection(model.blocks[-1])
    model.blocks[-1] = projection
    model.norm = nn.Identity()
    return projection.feature_size


def key_vectors(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The keys (B, N, C) that a whole block makes of tokens (B, N, D), as `KeyProjection` gives them.

    Gradients reach the block's own parameters.
    """
    return torch.cat([path.project(x) for path in _key_paths(block)], dim=-1)


def key_parameters(block: nn.Module) -> list[nn.Parameter]:
    """The parameters of a block that its keys depend on; of a fused map all, though only a third counts."""
    parts = [part for path in _key_paths(block) for part in (path.norm, path.linear)]
    return [parameter for part in parts for parameter in part.parameters()]


@dataclass(frozen=True)
class _KeyPath:
    """The norm before an attention, and the rows of a linear map behind it that make the keys."""

    norm: nn.Module
    linear: nn.Linear
    start: int
    stop: int

    def project(self, x: torch.Tensor) -> torch.Tensor:
        rows = slice(self.start, self.stop)
        bias = None if self.linear.bias is None else self.linear.bias[rows]
        return nn.functional.linear(self.norm(x), self.linear.weight[rows], bias)

    def copied(self) -> nn.Linear:
        """The rows as a linear map of their own, so that the rest can be forgotten."""
        linear = self.linear
        has_bias = linear.bias is not None
        part = nn.Linear(linear.in_features, self.stop - self.start, bias=has_bias, device="meta")
        part.weight = nn.Parameter(linear.weight[self.start : self.stop].detach().clone())
        if has_bias:
            part.bias = nn.Parameter(linear.bias[self.start : self.stop].detach().clone())
        return part


def _key_paths(block: Any) -> list[_KeyPath]:
    """For each attention of a block, how its keys are made."""
    if hasattr(block, "attns"):  # "Three things ...", arXiv 2203.09795: attentions in parallel
        return [_key_path(branch.norm, branch.attn) for branch in block.attns]
    if hasattr(block, "in_proj"):  # ViT-22B, arXiv 2302.05442: one map to MLP, query, key and value
        start = block.in_split[0] + block.in_split[1]
        return [_KeyPath(block.in_norm, block.in_proj, start, start + block.in_split[2])]
    if hasattr(block, "attn"):
        # Post-norm blocks attend to their input as it is; their norm1 comes after the attention.
        is_post_norm = isinstance(block, ResPostBlock | EvaBlockPostNorm)
        return [_key_path(nn.Identity() if is_post_norm else block.norm1, block.attn)]
    raise WeightsError(f"no key projection known in a {type(block).__name__} of timm")


def _key_path(norm: nn.Module, attention: Any) -> _KeyPath:
    """The linear map to the keys is separate, or the middle third of a fused one.

    Where Eva keeps the biases of a fused map apart, that of the keys is zero and no parameter.
    """
    separate = getattr(attention, "k_proj", None)
    if isinstance(separate, nn.Linear):
        return _KeyPath(norm, separate, 0, separate.out_features)
    fused = attention.qkv
    if not isinstance(fused, nn.Linear):
        raise WeightsError(f"no key projection known in a {type(attention).__name__} of timm")
    width = fused.out_features // 3
    return _KeyPath(norm, fused, width, 2 * width)
