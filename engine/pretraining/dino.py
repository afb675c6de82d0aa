"""Self-distillation without labels, DINO (Caron et al., ICCV 2021, arXiv 2104.14294)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrizations

from engine.errors import ConfigurationError
from engine.training.distribution import mean_over_workers


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """The image-level loss; names and defaults follow the paper (section 3.1 and appendix C)."""

    weight: float = 1.0
    """Share of this loss in the sum; 0 leaves it, its head and its views out."""
    num_prototypes: int = 4096
    """K, the outputs between which views must agree; the paper's 65536 are for ImageNet."""
    hidden_size: int = 2048
    """Width of the projection head."""
    bottleneck_size: int = 256
    """Width before the last layer."""
    student_temperature: float = 0.1
    """Sharpness of the student."""
    teacher_temperature: float = 0.04
    """Sharpness of the teacher at the start."""
    final_teacher_temperature: float = 0.07
    """Sharpness of the teacher once it is warm."""
    warmup_share: float = 0.1
    """Part of the run in which the teacher's temperature rises."""
    centre_momentum: float = 0.9
    """Of the moving average of the teacher's outputs, which is taken off them against collapse."""
    frozen_share: float = 0.01
    """Part of the run in which the last layer stays as it began."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ConfigurationError(f"dino.weight must not be negative, got {self.weight}")
        for name in ("num_prototypes", "hidden_size", "bottleneck_size"):
            if getattr(self, name) < 2:
                raise ConfigurationError(f"dino.{name} must be at least 2, got {getattr(self, name)}")
        for name in ("student_temperature", "teacher_temperature", "final_teacher_temperature"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"dino.{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup_share", "centre_momentum", "frozen_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"dino.{name} must be in [0, 1), got {getattr(self, name)}")

    def teacher_temperature_at(self, progress: float) -> float:
        """The teacher's temperature when the share `progress` of the run is done.

        >>> round(DinoConfig(warmup_share=0.5).teacher_temperature_at(0.25), 3)
        0.055
        """
        if progress >= self.warmup_share:
            return self.final_teacher_temperature
        rise = self.final_teacher_temperature - self.teacher_temperature
        return self.teacher_temperature + rise * progress / self.warmup_share


class DinoHead(nn.Module):
    """Class tokens (B, D) -> logits over prototypes (B, K): three layers, a unit vector, a normed layer."""

    def __init__(self, in_size: int, config: DinoConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.bottleneck_size),
        )
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        last = nn.Linear(config.bottleneck_size, config.num_prototypes, bias=False)
        self.last_layer = parametrizations.weight_norm(last)
        # The norms stay 1 (the paper's norm_last_layer), only directions are learned.
        norms = self.last_layer.parametrizations.weight.original0
        norms.data.fill_(1)
        norms.requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last_layer(nn.functional.normalize(self.mlp(tokens), dim=-1))
        return logits


class DinoLoss(nn.Module):
    """Cross-entropy of the student's views of an image against the teacher's other views (equation 1)."""

    centre: torch.Tensor

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self._config = config
        self.register_buffer("centre", torch.zeros(1, config.num_prototypes))

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor, batch_size: int, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and the mean entropy of the teacher's targets as a share of the largest, log K.

        `student` (V B, K) are logits of V views in turn, the first two of them global; `teacher` (2 B, K)
        those of the global views. An entropy that stays at 1 or falls to 0 is collapse.
        """
        temperature = self._config.teacher_temperature_at(progress)
        targets = ((teacher.float() - self.centre) / temperature).softmax(dim=-1)
        entropy = torch.special.entr(targets).sum(dim=-1).mean() / torch.tensor(targets.shape[-1]).log()
        log_likelihoods = (student.float() / self._config.student_temperature).log_softmax(dim=-1)
        terms = [
            -(target * log_likelihood).sum(dim=-1).mean()
            for i, target in enumerate(torch.split(targets, batch_size))
            for j, log_likelihood in enumerate(torch.split(log_likelihoods, batch_size))
            if i != j
        ]
        return torch.stack(terms).mean(), entropy

    @torch.no_grad()
    def update_centre(self, teacher: torch.Tensor) -> None:
        """Move the centre towards the mean of the teacher's logits over all workers (equation 4)."""
        mean = mean_over_workers(teacher.float().mean(dim=0, keepdim=True))
        self.centre.lerp_(mean, 1 - self._config.centre_momentum)
