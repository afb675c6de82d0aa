"""The results of pre-training: the encoder's file, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import safetensors.torch
import torch

from engine import __version__
from engine.encoders.encoder import EMBEDDED
from engine.encoders.layout import Layout, add_layout
from engine.encoders.naming import State
from engine.pretraining.config import PretrainingConfig

ENCODER_KEY = "encoder.safetensors"
CARD_KEY = "card.md"
_MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Card:
    """The content of a model card; `metrics` are of the last step, `rejected` is image ids with reasons."""

    layout: Layout
    corpora: tuple[str, ...]
    num_images: int
    rejected: Mapping[str, str]
    config: PretrainingConfig
    steps: int
    minutes: float
    device: str
    metrics: Mapping[str, float]


def pack_encoder(state: State, layout: Layout) -> bytes:
    """A float16 .safetensors file for `--encoder ARCHITECTURE --weights FILE`."""
    halves = {name: tensor.detach().cpu().to(torch.float16).contiguous() for name, tensor in state.items()}
    return add_layout(safetensors.torch.save(halves), layout)


def write_card(card: Card) -> str:
    """Format the card as Markdown."""
    layout = card.layout
    losses = [
        f"{name} (weight {loss.weight:g})"
        for name, loss in (("DINO", card.config.dino), ("contrast of regions", card.config.regions))
        if loss.weight > 0
    ]
    num_samples = card.steps * card.config.batch_size
    return "\n".join(
        [
            f"# {layout.architecture}, patches of {layout.patch_size} pixels, {layout.depth} blocks",
            "",
            f"Use: `--encoder {layout.architecture} --weights {ENCODER_KEY}`",
            "",
            f"- Images: {card.num_images} of {', '.join(card.corpora)}; no labels were used",
            *_rejected_lines(card.rejected),
            f"- Started from: {EMBEDDED if card.config.name == EMBEDDED else card.config.weights} weights",
            f"- Losses: {', '.join(losses)}",
            f"- Steps: {card.steps} of {card.config.batch_size} images, "
            f"{num_samples / card.num_images:.1f} epochs, {card.minutes:.1f} minutes on {card.device}",
            f"- Code: maskmill {__version__}",
            "",
            "## Metrics of the last step",
            "",
            *(f"- {name}: {value:g}" for name, value in card.metrics.items()),
            "",
            "## Configuration",
            "",
            "```json",
            json.dumps(asdict(card.config), indent=1, sort_keys=True),
            "```",
            "",
        ]
    )


def _rejected_lines(rejected: Mapping[str, str]) -> list[str]:
    if not rejected:
        return []
    shown = [f"  - {image_id}: {reason}" for image_id, reason in sorted(rejected.items())[:_MAX_LISTED]]
    more = len(rejected) - len(shown)
    return [
        f"- Not readable: {len(rejected)}",
        *shown,
        *([f"  - and {more} more"] if more else []),
    ]
