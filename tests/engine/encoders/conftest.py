"""Small transformers with random weights, and their checkpoint files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn


@pytest.fixture
def make_model() -> Callable[..., nn.Module]:
    """`make_model(name, seed=1, **arguments)` is a model of timm with random weights, none of them 0.

    Fresh models have biases of 0 and, with layer scale, blocks almost without effect.
    """

    def make(name: str = "test_vit", seed: int = 1, **arguments: object) -> nn.Module:
        torch.manual_seed(seed)
        model = timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model

    return make


@pytest.fixture
def save_weights(tmp_path: Path) -> Callable[[Mapping[str, object], str], str]:
    """`save_weights(content, "a.pth")` is the path of a file with this content, in the suffix's format."""

    def save(content: Mapping[str, object], name: str) -> str:
        path = tmp_path / name
        if path.suffix == ".safetensors":
            safetensors.torch.save_file({key: value.contiguous() for key, value in content.items()}, path)
        else:
            torch.save(content, path)
        return str(path)

    return save
