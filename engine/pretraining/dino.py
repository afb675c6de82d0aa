"""Self-distillation without labels, DINO (Caron et al., ICCV 2021, arXiv 2104.14294)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn
from torch.nn.utils import parametrizations

from engine.bounds import Bounded, Bounds, NotNegative, Positive
from engine.training.distribution import mean_over_workers

_Part = Annotated[float, Bounds(0, 1, "a share", below=True)]
_Width = Annotated[int, Bounds(2, what="a whole number")]


@dataclass(frozen=True, kw_only=True)
class DinoConfig(Bounded):
    """The image-level loss; names and defaults follow the paper (section 3.1 and appendix C)."""

    weight: NotNegative = 1.0
    """Weight of this loss in the sum; 0 drops it, its head and its views."""
    num_prototypes: _Width = 4096
    """K, the number of outputs; the paper's 65536 are for ImageNet."""
    hidden_size: _Width = 2048
    """Width of the projection head."""
    bottleneck_size: _Width = 256
    """Width before the last layer."""
    student_temperature: Positive = 0.1
    """Softmax temperature of the student."""
    teacher_temperature: Positive = 0.04
    """Softmax temperature of the teacher at the start."""
    final_teacher_temperature: Positive = 0.07
    """Softmax temperature of the teacher after warm-up."""
    warmup_share: _Part = 0.1
    """Share of the run over which the teacher's temperature rises."""
    centre_momentum: _Part = 0.9
    """Momentum of the centre subtracted from teacher outputs to avoid collapse."""
    frozen_share: _Part = 0.01
    """Share of the run, from its start, over which the last layer is frozen."""

    def teacher_temperature_at(self, progress: float) -> float:
        """The teacher's temperature after the share `progress` of the run.

        >>> round(DinoConfig(warmup_share=0.5).teacher_temperature_at(0.25), 3)
        0.055
        """
        if progress >= self.warmup_share:
            return self.final_teacher_temperature
        rise = self.final_teacher_temperature - self.teacher_temperature
        return self.teacher_temperature + rise * progress / self.warmup_share


class DinoHead(nn.Module):
    """Class tokens (B, D) -> logits over prototypes (B, K): an MLP, a unit vector, a weight-normed layer."""

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
        # Norms are fixed to 1 (the paper's norm_last_layer): only directions are learned.
        norms = self.last_layer.parametrizations.weight.original0
        norms.data.fill_(1)
        norms.requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last_layer(nn.functional.normalize(self.mlp(tokens), dim=-1))
        return logits


class DinoLoss(nn.Module):
    """Cross-entropy between the student's views of an image and the teacher's other views (equation 1)."""

    centre: torch.Tensor

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self._config = config
        self.register_buffer("centre", torch.zeros(1, config.num_prototypes))

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor, batch_size: int, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and the mean entropy of the teacher's targets relative to the largest, log K.

        `student` (V B, K) are the logits of V views, one view after the other, the two global ones first;
        `teacher` (2 B, K) are those of the global views. Entropy that stays at 1 or falls to 0 is collapse.
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
