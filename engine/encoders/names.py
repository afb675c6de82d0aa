"""Names of encoders: the short ones, and suggestions for names that timm does not know."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

SHORT_NAMES = {
    "dino": "vit_base_patch8_224.dino",
    "dinov2": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov3": "vit_base_patch16_dinov3.lvd1689m",
}
_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}
_FAMILY = re.compile(r"dino(?:v[23])?(?![a-z])")
_SIZE = re.compile(r"(?<![a-z])(tiny|small|base|large|huge|giant)(?![a-z])|vit_?([tsblhg])(?![a-z])")
_PATCH = re.compile(r"(?:patch_?|vit_?[tsblhg][_/]?)(\d+)")
_MAX_SUGGESTIONS = 4


def suggest_names(name: str, known: Sequence[str]) -> list[str]:
    """The names among `known`, at most 4, that were probably meant by `name`; none if nothing is similar.

    Names of the DINO repositories and of Hugging Face are read by their parts: family, size, patch size and
    registers. Others are compared by spelling.

    >>> known = ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "tiny_vit_21m_384"]
    >>> suggest_names("dinov2_vits14_reg", known)
    ['vit_small_patch14_reg4_dinov2']
    >>> suggest_names("facebook/dinov2-small", known)
    ['vit_small_patch14_dinov2']
    >>> suggest_names("tiny_vit_21m", known)
    ['tiny_vit_21m_384']
    """
    return _same_parts(name.lower(), known) or difflib.get_close_matches(
        name, known, n=_MAX_SUGGESTIONS, cutoff=0.5
    )


def change_architecture(name: str, patch_size: int | None, num_registers: int) -> str:
    """A timm architecture's name with another patch size, None for its own, and number of registers.

    >>> change_architecture("vit_small_patch14_dinov2", None, 4)
    'vit_small_patch14_reg4_dinov2'
    >>> change_architecture("vit_small_patch16_224", 8, 0)
    'vit_small_patch8_224'
    """
    changed = re.sub(r"_reg\d+", "", name)
    if patch_size is not None:
        changed = re.sub(r"patch\d+", f"patch{patch_size}", changed)
    if num_registers > 0:
        changed = re.sub(r"(patch\d+)", rf"\1_reg{num_registers}", changed)
    return changed


def _same_parts(name: str, known: Sequence[str]) -> list[str]:
    """The DINO ViTs among `known` that share most of the parts stated in `name`, short names first."""
    spelt = name.replace("-", "_")
    family = _FAMILY.search(spelt)
    if family is None:
        return []
    of_family = re.compile(rf"vit_.*[._]{family.group()}(?![a-z0-9])")
    ranks = {candidate: _count_shared(spelt, candidate) for candidate in known if of_family.match(candidate)}
    best = [candidate for candidate, rank in ranks.items() if rank == max(ranks.values())]
    return sorted(best, key=lambda candidate: (candidate.find("."), candidate))[:_MAX_SUGGESTIONS]


def _count_shared(name: str, candidate: str) -> int:
    """How many of size, patch size and registers a timm name shares with what `name` states."""
    size, patch = _SIZE.search(name), _PATCH.search(name)
    return (
        (size is not None and f"vit_{size.group(1) or _SIZES[size.group(2)]}_" in candidate)
        + (patch is not None and f"patch{patch.group(1)}_" in candidate)
        + (("_reg" in name) == ("_reg" in candidate))
    )
