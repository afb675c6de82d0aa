"""Student and teacher network: a transformer that also gives its last block's keys, and DINO's head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from engine.encoders.backbone import Backbone, create_transformer, describe_layout, load_backbone
from engine.encoders.encoder import EncoderConfig
from engine.encoders.facets import key_parameters, key_vectors
from engine.encoders.naming import State, drop_heads
from engine.pretraining.config import PretrainingConfig
from engine.pretraining.dino import DinoHead


class KeyTap(nn.Module):
    """Wrapper of a transformer's last block that keeps the keys of its latest forward pass."""

    keys: torch.Tensor

    def __init__(self, block: nn.Module, runs_block: bool) -> None:
        """With `runs_block` false, nothing behind the keys is computed or trained."""
        super().__init__()
        self.block = block
        self._runs_block = runs_block
        if not runs_block:
            block.requires_grad_(False)
            for parameter in key_parameters(block):
                parameter.requires_grad_(True)

    def forward(self, x: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        self.keys = key_vectors(self.block, x)
        output: torch.Tensor = self.block(x, *arguments, **keywords) if self._runs_block else x
        return output


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """`keys` (2, B, N, C) of the global views; `logits` (V B, K) of all V views, or None without a head."""

    keys: torch.Tensor
    logits: torch.Tensor | None


class Network(nn.Module):
    """Student or teacher: a transformer and, if the image-level loss is on, its head."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: Backbone, config: PretrainingConfig) -> None:
        """Wraps the last block of the backbone's transformer, which is modified."""
        super().__init__()
        has_head = config.dino.weight > 0
        model = backbone.model.requires_grad_(True)
        self.tap = KeyTap(model.blocks[-1], has_head)
        model.blocks[-1] = self.tap
        if not has_head:
            cast(nn.Module, model.norm).requires_grad_(False)
        self.transformer = model
        self.head = DinoHead(model.embed_dim, config.dino) if has_head else None
        self.layout = describe_layout(backbone)
        self.register_buffer("mean", torch.tensor(backbone.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).reshape(3, 1, 1), persistent=False)

    def forward(self, global_views: torch.Tensor, local_views: torch.Tensor) -> Outputs:
        """Views uint8 (B, 2, 3, G, G) and (B, n, 3, L, L); only the head uses the local ones."""
        num_images, num_views = global_views.shape[:2]
        tokens = self._tokens(global_views)
        keys = self.tap.keys[:, self.transformer.num_prefix_tokens :]
        keys = keys.reshape(num_views, num_images, *keys.shape[1:])
        if self.head is None:
            return Outputs(keys=keys, logits=None)
        if local_views.shape[1]:
            tokens = torch.cat([tokens, self._tokens(local_views)])
        return Outputs(keys=keys, logits=self.head(tokens))

    def _tokens(self, views: torch.Tensor) -> torch.Tensor:
        """Class tokens (V B, D) of V views uint8 (B, V, 3, S, S); mean tokens without a class token."""
        pixels = views.transpose(0, 1).flatten(0, 1).float() / 255.0
        tokens: torch.Tensor = self.transformer.forward_features((pixels - self.mean) / self.std)
        return tokens[:, 0] if self.transformer.num_prefix_tokens > 0 else tokens.mean(dim=1)

    def encoder_state(self) -> State:
        """The transformer's tensors under timm's names, as an encoder loads them."""
        last = f"blocks.{len(self.transformer.blocks) - 1}."
        state = self.transformer.state_dict()
        return drop_heads({name.replace(f"{last}block.", last): tensor for name, tensor in state.items()})


def build_network(config: PretrainingConfig) -> Network:
    """Make the initial network, a function of the configuration alone. Raises WeightsError."""
    encoder = EncoderConfig(name=config.name, weights=config.weights, seed=config.seed)
    backbone = load_backbone(encoder)
    if config.is_fresh:
        shape = {"patch_size": config.patch_size, "depth": config.depth}
        arguments = {name: value for name, value in shape.items() if value is not None}
        # Position embeddings are for the patch grid of the global views.
        model = create_transformer(config.name, config.seed, img_size=config.views.global_size, **arguments)
        backbone = replace(backbone, model=model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return Network(backbone, config)


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Trained parameters in two groups: matrices, and biases, norms and embeddings without weight decay."""
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_embedding = name.endswith(("pos_embed", "cls_token", "reg_token"))
            (others if parameter.ndim < 2 or is_embedding else decaying).append(parameter)
    return [{"params": decaying, "decays": True}, {"params": others, "decays": False, "weight_decay": 0.0}]
