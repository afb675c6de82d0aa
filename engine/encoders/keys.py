"""The key vectors of a transformer's last attention, and nothing behind them."""

from __future__ import annotations

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
        self.norms, self.projections = _key_paths(block)

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


def _key_paths(block: Any) -> tuple[nn.ModuleList, nn.ModuleList]:
    """For each attention of a block, the norm before it and the linear map to its keys."""
    if hasattr(block, "attns"):  # "Three things ...", arXiv 2203.09795: attentions in parallel
        norms = [branch.norm for branch in block.attns]
        projections = [_key_projection(branch.attn) for branch in block.attns]
    elif hasattr(block, "in_proj"):  # ViT-22B, arXiv 2302.05442: one map to MLP, query, key and value
        start = block.in_split[0] + block.in_split[1]
        norms = [block.in_norm]
        projections = [_rows(block.in_proj, start, start + block.in_split[2])]
    elif hasattr(block, "attn"):
        # Post-norm blocks attend to their input as it is; their norm1 comes after the attention.
        is_post_norm = isinstance(block, ResPostBlock | EvaBlockPostNorm)
        norms = [nn.Identity() if is_post_norm else block.norm1]
        projections = [_key_projection(block.attn)]
    else:
        raise WeightsError(f"no key projection known in a {type(block).__name__} of timm")
    return nn.ModuleList(norms), nn.ModuleList(projections)


def _key_projection(attention: Any) -> nn.Linear:
    """The linear map to the keys: separate, or the middle third of a fused one.

    Where Eva keeps the biases of a fused map apart, that of the keys is zero and no parameter.
    """
    separate = getattr(attention, "k_proj", None)
    if isinstance(separate, nn.Linear):
        return separate
    fused = attention.qkv
    if not isinstance(fused, nn.Linear):
        raise WeightsError(f"no key projection known in a {type(attention).__name__} of timm")
    width = fused.out_features // 3
    return _rows(fused, width, 2 * width)


def _rows(linear: nn.Linear, start: int, stop: int) -> nn.Linear:
    """The linear map to outputs `start` to `stop` of `linear`."""
    part = nn.Linear(linear.in_features, stop - start, bias=linear.bias is not None, device="meta")
    part.weight = nn.Parameter(linear.weight[start:stop].detach().clone())
    if linear.bias is not None:
        part.bias = nn.Parameter(linear.bias[start:stop].detach().clone())
    return part
