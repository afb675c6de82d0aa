"""File formats and networks that cannot be an encoder, recognised so that the refusal can name them."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath

from engine.errors import WeightsError

_SAVE_STATE = "load it where it comes from and save model.state_dict() as a .pth or .safetensors file"
_GIVE_VIT = "give a Vision Transformer, for example of DINO, DINOv2 or DINOv3"
_GIVE_ORIGINAL = "give the checkpoint that it was converted from"

# File name patterns: the format and what to do instead.
_FILES = [
    (r"\.(?:onnx|engine|plan|trt|gguf|tflite|mlmodel)$", "a model converted for inference", _GIVE_ORIGINAL),
    (r"\.index\.json$", "the index of a sharded checkpoint", _SAVE_STATE),
    (r"-\d{5}-of-\d{5}\.", "one shard of a sharded checkpoint", _SAVE_STATE),
    (r"\.(?:npy|npz|msgpack)$", "a JAX or NumPy checkpoint", _SAVE_STATE),
    (r"\.(?:h5|hdf5|keras|pb)$", "a TensorFlow or Keras file", _SAVE_STATE),
    (r"\.pkl$", "a plain pickle, which may run code", _SAVE_STATE),
    (r"(?<!\.pth)\.(?:zip|tar|tgz|gz|7z)$", "an archive", "unpack it and give the checkpoint in it"),
]
# Tensor name patterns, matched behind any prefix: the network and what to do instead.
_NETWORKS = [
    (r"\S*\.lora_A\.", "a LoRA adapter", "merge it into its model and save model.state_dict()"),
    (r"layer1\.0\.conv1\.weight$", "a ResNet", _GIVE_VIT),
    (r"relative_position_bias_table$", "a BEiT or Swin Transformer", _GIVE_VIT),
    (r"(?:downsample_layers\.0\.|stages\.0\.blocks\.0\.conv_dw\.)", "a ConvNeXt", _GIVE_VIT),
    (r"(?:mask_decoder|prompt_encoder)\.", "a Segment Anything model", _GIVE_VIT),
    (r"vision_model\.", "a CLIP or SigLIP model of Hugging Face", _GIVE_VIT),
    (r"visual\.", "a CLIP checkpoint of open_clip", "give the --encoder with _clip_ in its name"),
    (r"(?:text_model|lm_head|attention\.self\.query)\.", "a language model", _GIVE_VIT),
    (r"model\.\d+\.conv\.", "a YOLO detector", _GIVE_VIT),
    (r"(?:down_blocks|up_blocks)\.", "a diffusion model", _GIVE_VIT),
]  # fmt: skip


def check_file_format(uri: str) -> None:
    """Raise WeightsError if a file name is of a format that holds no readable weights."""
    name = PurePosixPath(uri).name.lower()
    for pattern, title, advice in _FILES:
        if re.search(pattern, name):
            raise WeightsError(f"weights {uri!r} are {title}: {advice}")


def check_network(names: Collection[str], uri: str) -> None:
    """Raise WeightsError if the names of tensors show a network that is known not to fit."""
    for pattern, title, advice in _NETWORKS:
        if any(re.search(rf"(?<![^./]){pattern}", name) for name in names):
            raise WeightsError(f"weights {uri!r} are {title}: {advice}")
