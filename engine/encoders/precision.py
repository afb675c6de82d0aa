"""Choice of the arithmetic in which an encoder's network is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from engine.encoders.encoder import DESCRIPTOR, EncoderConfig, EncoderPrecision
from engine.types import Precision

_CPU_INFO = Path("/proc/cpuinfo")
_AMPERE = (8, 0)


def resolve_precision(
    precision: EncoderPrecision, device: torch.device, cpu_info: Path = _CPU_INFO
) -> Precision:
    """The precision itself, or for "auto" the fastest that changes features little on this machine.

    That is bfloat16 where matrix products of bfloat16 are native: CUDA devices from compute capability 8.0,
    and CPUs with AMX tiles, where an encoder is at least twice as fast and features keep a cosine of 0.9999.
    Otherwise float32; with AVX-512 alone bfloat16 is slower.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        is_native = torch.cuda.get_device_capability(device) >= _AMPERE
    else:
        is_native = cpu_info.is_file() and has_amx_bfloat16(cpu_info.read_text())
    return "bfloat16" if is_native else "float32"


def resolve_encoder(config: EncoderConfig, device: torch.device) -> EncoderConfig:
    """The configuration with the precision that will be used, as versions and caches should record it."""
    if config.name == DESCRIPTOR:
        return replace(config, precision="float32")
    return replace(config, precision=resolve_precision(config.precision, device))


def has_amx_bfloat16(cpu_info: str) -> bool:
    """Whether the text of Linux's /proc/cpuinfo lists AMX tiles for bfloat16.

    >>> has_amx_bfloat16("flags\\t\\t: fpu amx_bf16 amx_tile"), has_amx_bfloat16("flags : avx512_bf16")
    (True, False)
    """
    return any(line.startswith("flags") and "amx_bf16" in line.split() for line in cpu_info.splitlines())
