"""Names of tensors in checkpoints, translated to timm's.

A checkpoint file may hold several networks, each below a prefix of its own (`state_dict/model.backbone.`,
`teacher/`, `model_ema/`; a slash follows the key of a container), and may name their tensors as timm, the
DINO releases, Hugging Face or CLIP do. Names are translated first; the prefix is then the one below which
most of the expected names are found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch

from engine.errors import WeightsError

State: TypeAlias = dict[str, torch.Tensor]
_Rules: TypeAlias = Sequence[tuple[re.Pattern[str], str]]

# Everything behind the last block, and what only pre-training needs: no feature depends on it.
_HEADS = re.compile(
    r"(?:head|head_dist|fc_norm|attn_pool|dino_head|ibot_head|fc|projector|predictor|pooler|classifier|lm_head)\."
    r"|mask_token$|decoder_|decoder\.|pre_logits\.|proj$|local_cls_norm\.|rope_embed\.|rope_embeddings\."
)
# Put into names by torch.compile, FSDP and activation checkpointing.
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGED = re.compile(r"(?:^|[._/])(?:ema|teacher|target|averaged?)(?:[._/]|$)")
_STUDENT = re.compile(r"(?:^|[._/])(?:student|online)(?:[._/]|$)")
# Below this share of the expected names a file is taken for another network.
_MIN_FOUND = 0.25


def _rules(*pairs: tuple[str, str]) -> _Rules:
    """Each pattern matches whole parts of a dotted name, wherever they stand in it."""
    return [(re.compile(rf"(?<![^./]){pattern}"), replacement) for pattern, replacement in pairs]


# Facebook's DINOv2 and DINOv3; blocks.0.7. is block 7 in chunk 0 of FSDP.
_RELEASES = _rules(
    (r"blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"register_tokens$", "reg_token"),
    (r"storage_tokens$", "reg_token"),
    (r"mlp\.w12\.", "mlp.fc1."),
    (r"mlp\.w1\.", "mlp.fc1_g."),
    (r"mlp\.w2\.", "mlp.fc1_x."),
    (r"mlp\.w3\.", "mlp.fc2."),
)
# transformers: ViT (also of DINO and MAE), Dinov2, DINOv3ViT.
_HUGGING_FACE = _rules(
    (r"embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.register_tokens$", "register_tokens"),
    (r"embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"(?:encoder\.)?layer\.(\d+)\.", r"blocks.\1."),
    (r"attention\.(?:attention\.)?(?:query|q_proj)\.", "attn.q."),
    (r"attention\.(?:attention\.)?(?:key|k_proj)\.", "attn.k."),
    (r"attention\.(?:attention\.)?(?:value|v_proj)\.", "attn.v."),
    (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"layernorm\.", "norm."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
    (r"layer_scale(\d)\.lambda1$", r"ls\1.gamma"),
    (r"mlp\.weights_in\.", "mlp.fc1."),
    (r"mlp\.weights_out\.", "mlp.fc2."),
)
_HUGGING_FACE_MLP = _rules((r"mlp\.up_proj\.", "mlp.fc1."), (r"mlp\.down_proj\.", "mlp.fc2."))
_HUGGING_FACE_GATED_MLP = _rules(
    (r"mlp\.gate_proj\.", "mlp.w1."), (r"mlp\.up_proj\.", "mlp.w2."), (r"mlp\.down_proj\.", "mlp.w3.")
)
# OpenAI and open_clip; the text tower's names do not begin with "visual.".
_CLIP = _rules(
    (r"visual\.conv1\.", "visual.patch_embed.proj."),
    (r"visual\.class_embedding$", "visual.cls_token"),
    (r"visual\.positional_embedding$", "visual.pos_embed"),
    (r"visual\.ln_pre\.", "visual.norm_pre."),
    (r"visual\.ln_post\.", "visual.norm."),
    (r"visual\.transformer\.resblocks\.(\d+)\.", r"visual.blocks.\1."),
    (r"ln_(\d)\.", r"norm\1."),
    (r"attn\.in_proj_(weight|bias)$", r"attn.qkv.\1"),
    (r"attn\.out_proj\.", "attn.proj."),
    (r"mlp\.c_fc\.", "mlp.fc1."),
    (r"mlp\.c_proj\.", "mlp.fc2."),
)


def translate_names(state: Mapping[str, torch.Tensor]) -> State:
    """The tensors by timm's names; prefixes and names of unknown parts stay.

    >>> list(translate_names({"vit.embeddings.patch_embeddings.projection.bias": torch.zeros(1)}))
    ['vit.patch_embed.proj.bias']
    >>> list(translate_names({"teacher.backbone.blocks.1.7.norm1.bias": torch.zeros(1)}))
    ['teacher.backbone.blocks.7.norm1.bias']
    """
    rules = _choose_rules(state)
    translated = {}
    for name, tensor in state.items():
        new_name = _WRAPPERS.sub("", name)
        for pattern, replacement in rules:
            new_name = pattern.sub(replacement, new_name)
        translated[new_name] = tensor
    return translated


def _choose_rules(names: Collection[str]) -> _Rules:
    text = "\n".join(names)
    if "embeddings.patch_embeddings." in text:
        mlp = _HUGGING_FACE_GATED_MLP if "mlp.gate_proj." in text else _HUGGING_FACE_MLP
        return [*_HUGGING_FACE, *mlp, *_RELEASES]
    if "visual.class_embedding" in text:
        return _CLIP
    return _RELEASES


def find_prefix(names: Collection[str], expected: Collection[str]) -> str | None:
    """The prefix, with its last separator, below which most of the `expected` names are found among `names`.

    None if less than a quarter is found below any prefix. Of equally complete networks an averaged one (EMA,
    teacher) comes first and a student last; then the shorter prefix, then the first in alphabetical order.

    >>> find_prefix(["student.a", "student.b", "teacher.a", "teacher.b", "teacher.c"], ["a", "b"])
    'teacher.'
    """
    wanted = frozenset(expected)
    counts = Counter(prefix for name in names for prefix, rest in _splits(name) if rest in wanted)
    most = max(counts.values(), default=0)
    if most < max(_MIN_FOUND * len(wanted), 1):
        return None
    return min((prefix for prefix, count in counts.items() if count == most), key=_rank)


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """All ways to cut a name into a prefix, with its last separator, and a rest within one container."""
    start = name.rfind("/") + 1
    yield name[:start], name[start:]
    for dot in re.finditer(r"\.", name[start:]):
        yield name[: start + dot.end()], name[start + dot.end() :]


def _rank(prefix: str) -> tuple[int, int, str]:
    preference = 0 if _AVERAGED.search(prefix) else 2 if _STUDENT.search(prefix) else 1
    return preference, len(re.findall(r"[./]", prefix)), prefix


def drop_heads(state: Mapping[str, torch.Tensor]) -> State:
    """The tensors that features can depend on: no classifier, pooling, projection head or decoder."""
    return {name: tensor for name, tensor in state.items() if not _HEADS.match(name)}


def adapt_to(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], what: str) -> State:
    """`state` with its tensors joined, split and shaped as a model with the `expected` tensors holds them.

    Tensors without counterpart keep their names. Raises WeightsError, opened by `what`, for an attention
    without key or value, and for biases that the model cannot hold.
    """
    adapted = _split_eva_biases(_fuse_projections(state, what), expected, what)
    if {"reg_token", "cls_token", "pos_embed"} <= adapted.keys() & expected.keys():
        adapted = _fold_class_position(adapted, expected)
    renamed: State = {}
    for name, tensor in adapted.items():
        scale = re.sub(r"ls(\d)\.gamma$", r"gamma_\1", name)  # Eva's
        renamed[scale if scale in expected else name] = tensor
    for name in ("cls_token", "pos_embed"):
        while name in renamed and renamed[name].ndim < 3:  # CLIP's
            renamed[name] = renamed[name][None]
    if "norm.weight" not in expected:  # no feature passes through it
        renamed = {name: tensor for name, tensor in renamed.items() if not name.startswith("norm.")}
    return renamed


def _fuse_projections(state: Mapping[str, torch.Tensor], what: str) -> State:
    """Separate query, key and value maps as one; a missing bias, as keys may have, is 0."""
    fused = {name: tensor for name, tensor in state.items() if not re.search(r"\.attn\.[qkv]\.", name)}
    for name in [name for name in state if name.endswith(".attn.q.weight")]:
        stem = name.removesuffix("q.weight")
        weights = [state.get(f"{stem}{part}.weight") for part in "qkv"]
        biases = [state.get(f"{stem}{part}.bias") for part in "qkv"]
        known = [weight for weight in weights if weight is not None]
        if len(known) < 3:
            raise WeightsError(f"{what}: {stem}q.weight has no key or value: give the complete checkpoint")
        fused[f"{stem}qkv.weight"] = torch.cat(known)
        if any(bias is not None for bias in biases):
            zeros = [weight.new_zeros(len(weight)) for weight in known]
            fused[f"{stem}qkv.bias"] = torch.cat(
                [zero if bias is None else bias for bias, zero in zip(biases, zeros, strict=True)]
            )
    return fused


def _split_eva_biases(state: State, expected: Mapping[str, torch.Tensor], what: str) -> State:
    """The bias of a fused map as Eva models keep it: apart and without the keys', or not at all if it is 0.

    DINOv3's release stores it even where it is 0, and most of timm's DINOv3 models have none.
    """
    split: State = {}
    for name, tensor in state.items():
        stem = name.removesuffix("qkv.bias")
        if stem == name or name in expected or f"{stem}qkv.weight" not in expected:
            split[name] = tensor
            continue
        query, _, value = tensor.chunk(3)
        if f"{stem}q_bias" in expected:
            split[f"{stem}q_bias"], split[f"{stem}v_bias"] = query, value
        elif bool(query.any()) or bool(value.any()):
            raise WeightsError(
                f"{what}: they have query and value biases, the model has none: give the --encoder of the "
                "same name that ends in _qkvb"
            )
    return split


def _fold_class_position(state: State, expected: Mapping[str, torch.Tensor]) -> State:
    """DINOv2 with registers adds a position to its class token, of which timm keeps the sum."""
    positions = state["pos_embed"]
    has_class_position = is_square(positions.shape[-2] - 1)
    if not has_class_position or not is_square(expected["pos_embed"].shape[1]):
        return state
    return state | {"cls_token": state["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}


def is_square(number: int) -> bool:
    """Whether an integer is a square number."""
    return number >= 0 and round(number**0.5) ** 2 == number
