"""One step of pre-training after the other, and the state between two of them."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from engine.device import autocast
from engine.errors import RunError
from engine.pretraining.config import PretrainingConfig
from engine.pretraining.dino import DinoLoss
from engine.pretraining.network import Network, Outputs, build_network, parameter_groups
from engine.pretraining.regions import contrast_regions
from engine.pretraining.schedules import Settings, settings_at
from engine.pretraining.views import Views
from engine.training.distribution import WorkerContext, mean_over_workers


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one step measured, over all workers.

    `region_accuracy` is the share of patches that find their region among their image's; `teacher_entropy`
    that of the teacher's targets, as a share of the largest; `key_spread` the distance of the keys from their
    mean, 0 to 1. Entropy at 0 or 1, or a spread near 0, is collapse. A loss that is off is 0.
    """

    loss: float
    dino: float
    regions: float
    region_accuracy: float
    teacher_entropy: float
    key_spread: float
    gradient_norm: float
    learning_rate: float
    weight_decay: float
    teacher_momentum: float


class Pretrainer:
    """Student, teacher and optimiser of one worker."""

    def __init__(self, config: PretrainingConfig, place: WorkerContext) -> None:
        self._config = config
        self._device = place.device
        self._student = build_network(config).to(place.device).train()
        # Copied before anything is learned: the teacher starts as the student.
        self._teacher = copy.deepcopy(self._student).requires_grad_(False).eval()
        self._dino = DinoLoss(config.dino).to(place.device)
        # DINO's betas are AdamW's own.
        self._optimiser = torch.optim.AdamW(parameter_groups(self._student))
        self._forward: nn.Module = self._student
        if place.world_size > 1:
            self._forward = nn.parallel.DistributedDataParallel(self._student)
        self.step = 0

    @property
    def patch_size(self) -> int:
        """Of the network, in pixels."""
        return self._student.layout.patch_size

    @property
    def encoder(self) -> Network:
        """What is trained for: the teacher, the better of the two (section 3.1 of the paper)."""
        return self._teacher

    def train_step(self, views: Views, progress: float) -> Figures:
        """Learn from a batch, with the schedules where they are when `progress`, 0 to 1, of the run is done.

        Raises RunError where the loss is no finite number; nothing has been learned from the batch then.
        """
        settings = settings_at(progress, self._config.batch_size, self._config.optimiser)
        self._set(settings)
        global_views, local_views, labels = (part.to(self._device, non_blocking=True) for part in views)
        with autocast(self._device, self._config.precision):
            student: Outputs = self._forward(global_views, local_views)
        loss, measured = self._losses(student, global_views, labels, progress)
        figures = mean_over_workers(torch.stack([loss.detach(), *measured])).tolist()
        if not math.isfinite(figures[0]):
            raise RunError(
                f"the loss is {figures[0]} at step {self.step + 1}: lower optimiser.learning-rate "
                "or raise optimiser.warmup-share, and start again; earlier checkpoints are whole"
            )
        gradient_norm = self._learn(loss, progress)
        self._follow(settings.teacher_momentum)
        self.step += 1
        return Figures(
            **dict(zip(_MEASURED, figures, strict=True)),
            gradient_norm=gradient_norm,
            **asdict(settings),
        )

    def _losses(
        self, student: Outputs, global_views: torch.Tensor, labels: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The sum of the losses, and the figures that `_MEASURED` names behind it."""
        config = self._config
        zero = student.keys.new_zeros((), dtype=torch.float32)
        dino, entropy, regions, accuracy = zero, zero, zero, zero
        if student.logits is not None:
            teacher = self._targets(global_views)
            dino, entropy = self._dino(student.logits, teacher, len(global_views), progress)
            self._dino.update_centre(teacher)
        if config.regions.weight > 0:
            contrast = contrast_regions(
                student.keys, labels.transpose(0, 1).flatten(2).long(), config.regions
            )
            regions, accuracy = contrast.loss, contrast.accuracy
        loss = config.dino.weight * dino + config.regions.weight * regions
        return loss, [dino.detach(), regions.detach(), accuracy, entropy, _spread(student.keys)]

    @torch.no_grad()
    def _targets(self, global_views: torch.Tensor) -> torch.Tensor:
        with autocast(self._device, self._config.precision):
            logits: torch.Tensor | None = self._teacher(global_views, global_views[:, :0]).logits
        assert logits is not None
        return logits

    def _learn(self, loss: torch.Tensor, progress: float) -> float:
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self._student.head is not None and progress < self._config.dino.frozen_share:
            for parameter in self._student.head.last_layer.parameters():
                parameter.grad = None
        longest = self._config.optimiser.clip_norm
        norms = [nn.utils.clip_grad_norm_(parameter, longest) for parameter in self._student.parameters()]
        self._optimiser.step()
        return float(torch.stack(norms).norm())

    @torch.no_grad()
    def _follow(self, momentum: float) -> None:
        """Move the teacher towards the student."""
        for slow, fast in zip(self._teacher.parameters(), self._student.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)

    def _set(self, settings: Settings) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = settings.learning_rate
            group["weight_decay"] = settings.weight_decay if group["decays"] else 0.0

    def state(self) -> dict[str, Any]:
        """All that the next step depends on: tensors and plain values."""
        return {
            "student": self._student.state_dict(),
            "teacher": self._teacher.state_dict(),
            "dino": self._dino.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, under the same configuration."""
        self._student.load_state_dict(state["student"])
        self._teacher.load_state_dict(state["teacher"])
        self._dino.load_state_dict(state["dino"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]


_MEASURED = ("loss", "dino", "regions", "region_accuracy", "teacher_entropy", "key_spread")


@torch.no_grad()
def _spread(keys: torch.Tensor) -> torch.Tensor:
    """Root mean square distance of unit keys (2, B, N, C) from their mean: 1 everywhere, 0 collapsed."""
    directions = nn.functional.normalize(keys.float(), dim=-1).flatten(0, 2)
    return (1 - directions.mean(dim=0).square().sum()).clamp(min=0).sqrt()
