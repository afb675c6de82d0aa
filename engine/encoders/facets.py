"""Patch features inside a transformer: the queries, keys or values of an attention, or a block's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from timm.models.eva import Eva, EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn

from engine.encoders.encoder import Facet
from engine.errors import ConfigurationError, WeightsError

Transformer: TypeAlias = VisionTransformer | Eva
Projection: TypeAlias = Literal["query", "key", "value"]

# In the order in which fused linear maps hold their rows.
_PROJECTIONS: tuple[Projection, ...] = ("query", "key", "value")


class AttentionProjection(nn.Module):
    """Replaces a transformer's block and returns its queries, keys or values instead of its output.

    (B, N, D) tokens -> (B, N, C): all heads side by side, before any norm or rotary embedding. Blocks with
    several attentions in parallel give the projections of all.
    """

    def __init__(self, block: nn.Module, projection: Projection) -> None:
        super().__init__()
        maps = _projection_maps(block, projection)
        self.norms = nn.ModuleList(part.norm for part in maps)
        self.projections = nn.ModuleList(part.copied() for part in maps)

    @property
    def feature_size(self) -> int:
        """C, the width of all heads together."""
        return sum(int(projection.out_features) for projection in self.projections)  # type: ignore[misc, arg-type]

    def forward(
        self,
        x: torch.Tensor,
        rope: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """Project tokens `x`. timm passes the rest to every block; it acts after the projection."""
        del rope, attn_mask, is_causal
        parts = [project(norm(x)) for norm, project in zip(self.norms, self.projections, strict=True)]
        return torch.cat(parts, dim=-1)


def keep_facet(model: Transformer, facet: Facet, layer: int) -> int:
    """Make `model.forward_features` return one facet of block `layer`, and return its width.

    A negative `layer` counts from the last block, -1. Whatever follows the facet is removed from the model,
    so that it is neither computed nor kept in memory. A token is a block's output (the residual stream); only
    the last block's passes through the final norm.

    Raises: ConfigurationError if the model has no block `layer`; WeightsError for a block without known
    projections.
    """
    depth = len(model.blocks)
    if not -depth <= layer < depth:
        raise ConfigurationError(
            f"layer {layer} is out of range: the encoder has {depth} blocks, 0 to {depth - 1}, or "
            f"-1 (the last) to {-depth}"
        )
    last = layer % depth
    blocks = model.blocks[: last + 1]
    feature_size = int(model.embed_dim)
    if facet != "token":
        blocks[last] = AttentionProjection(blocks[last], facet)
        feature_size = blocks[last].feature_size
    model.blocks = blocks
    if facet != "token" or last < depth - 1:
        model.norm = nn.Identity()
    return feature_size


def key_vectors(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Keys (B, N, C) of a whole block for tokens (B, N, D), as `AttentionProjection` returns them.

    Gradients reach the block's own parameters.
    """
    return torch.cat([part.project(x) for part in _projection_maps(block, "key")], dim=-1)


def key_parameters(block: nn.Module) -> list[nn.Parameter]:
    """The parameters of a block that its keys depend on; all rows of a fused map, though a third matters."""
    parts = [part for keys in _projection_maps(block, "key") for part in (keys.norm, keys.linear)]
    return [parameter for part in parts for parameter in part.parameters()]


@dataclass(frozen=True)
class _ProjectionMap:
    """The norm before an attention, and the rows of the linear map after it that make one projection.

    `bias` (rows,) replaces the linear map's own.
    """

    norm: nn.Module
    linear: nn.Linear
    rows: slice
    bias: torch.Tensor | None

    def project(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.norm(x), self.linear.weight[self.rows], self.bias)

    def copied(self) -> nn.Linear:
        """The rows as a linear map of their own, so that the rest can be freed."""
        weight = self.linear.weight[self.rows].detach().clone()
        has_bias = self.bias is not None
        part = nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias, device="meta")
        part.weight = nn.Parameter(weight)
        if self.bias is not None:
            part.bias = nn.Parameter(self.bias.detach().clone())
        return part


def _projection_maps(block: Any, projection: Projection) -> list[_ProjectionMap]:
    """How each attention of a block makes the projection."""
    if hasattr(block, "attns"):  # "Three things ...", arXiv 2203.09795: attentions in parallel
        return [_attention_map(branch.norm, branch.attn, projection) for branch in block.attns]
    if hasattr(block, "in_proj"):  # ViT-22B, arXiv 2302.05442: one map to MLP, query, key and value
        part = 1 + _PROJECTIONS.index(projection)
        start = sum(block.in_split[:part])
        return [_rows(block.in_norm, block.in_proj, start, start + block.in_split[part])]
    if hasattr(block, "attn"):
        # Post-norm blocks attend to their input as it is; their norm1 comes after the attention.
        is_post_norm = isinstance(block, ResPostBlock | EvaBlockPostNorm)
        norm = nn.Identity() if is_post_norm else block.norm1
        return [_attention_map(norm, block.attn, projection)]
    raise WeightsError(f"no {projection} projection known in a {type(block).__name__} of timm")


def _attention_map(norm: nn.Module, attention: Any, projection: Projection) -> _ProjectionMap:
    """A separate linear map, or a third of a fused one."""
    letter = projection[0]
    separate = getattr(attention, f"{letter}_proj", None)
    if isinstance(separate, nn.Linear):
        return _rows(norm, separate, 0, separate.out_features)
    fused = attention.qkv
    if not isinstance(fused, nn.Linear):
        raise WeightsError(f"no {projection} projection known in a {type(attention).__name__} of timm")
    width = fused.out_features // 3
    start = _PROJECTIONS.index(projection) * width
    # Eva may keep the biases of a fused map apart; those of the keys are a buffer of zeros.
    apart = getattr(attention, f"{letter}_bias", None) if projection != "key" else None
    return _rows(norm, fused, start, start + width, apart)


def _rows(
    norm: nn.Module, linear: nn.Linear, start: int, stop: int, bias: torch.Tensor | None = None
) -> _ProjectionMap:
    rows = slice(start, stop)
    if bias is None and linear.bias is not None:
        bias = linear.bias[rows]
    return _ProjectionMap(norm=norm, linear=linear, rows=rows, bias=bias)
