"""One training step of pre-training, and the state between two steps."""

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
from engine.pretraining.schedules import ScheduledValues, schedules_at
from engine.pretraining.views import Views
from engine.training.distribution import WorkerContext, mean_over_workers


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Metrics of one step, over all workers.

    `region_accuracy` is the share of patches whose most similar region, in their image, is their own;
    `teacher_entropy` the entropy of the teacher's targets relative to the largest; `key_spread` the distance
    of the keys from their mean, 0 to 1. Entropy at 0 or 1, or a spread near 0, is collapse. A loss with
    weight 0 is reported as 0.
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

    def __init__(self, config: PretrainingConfig, context: WorkerContext) -> None:
        self._config = config
        self._device = context.device
        self._student = build_network(config).to(context.device).train()
        # The teacher starts as a copy of the student.
        self._teacher = copy.deepcopy(self._student).requires_grad_(False).eval()
        self._dino = DinoLoss(config.dino).to(context.device)
        # DINO's betas are AdamW's defaults.
        self._optimiser = torch.optim.AdamW(parameter_groups(self._student))
        self._forward: nn.Module = self._student
        if context.world_size > 1:
            self._forward = nn.parallel.DistributedDataParallel(self._student)
        self.step = 0

    @property
    def patch_size(self) -> int:
        """Side of the network's patches in pixels."""
        return self._student.layout.patch_size

    @property
    def encoder(self) -> Network:
        """The teacher, which is the better encoder of the two (section 3.1 of the paper)."""
        return self._teacher

    def train_step(self, views: Views, progress: float) -> StepMetrics:
        """Learn from a batch, with the schedules at `progress`, the share of the run after this step.

        Raises RunError, and leaves the weights unchanged, if the loss is not finite.
        """
        values = schedules_at(progress, self._config.batch_size, self._config.optimiser)
        self._set_schedules(values)
        global_views, local_views, labels = (part.to(self._device, non_blocking=True) for part in views)
        with autocast(self._device, self._config.precision):
            student: Outputs = self._forward(global_views, local_views)
        loss, measured = self._losses(student, global_views, labels, progress)
        means = mean_over_workers(torch.stack([loss.detach(), *measured])).tolist()
        if not math.isfinite(means[0]):
            raise RunError(
                f"the loss is {means[0]} at step {self.step + 1}: lower optimiser.learning_rate or raise "
                "optimiser.warmup_share, and start again; earlier checkpoints are intact"
            )
        gradient_norm = self._learn(loss, progress)
        self._update_teacher(values.teacher_momentum)
        self.step += 1
        return StepMetrics(
            **dict(zip(_MEASURED, means, strict=True)),
            gradient_norm=gradient_norm,
            **asdict(values),
        )

    def _losses(
        self, student: Outputs, global_views: torch.Tensor, labels: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The weighted sum of the losses, and the other values that `_MEASURED` names."""
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
        max_norm = self._config.optimiser.clip_norm
        norms = [nn.utils.clip_grad_norm_(parameter, max_norm) for parameter in self._student.parameters()]
        self._optimiser.step()
        return float(torch.stack(norms).norm())

    @torch.no_grad()
    def _update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student (exponential moving average)."""
        for slow, fast in zip(self._teacher.parameters(), self._student.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)

    def _set_schedules(self, values: ScheduledValues) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = values.learning_rate
            group["weight_decay"] = values.weight_decay if group["decays"] else 0.0

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on: tensors and plain values."""
        return {
            "student": self._student.state_dict(),
            "teacher": self._teacher.state_dict(),
            "dino": self._dino.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state of the same configuration."""
        self._student.load_state_dict(state["student"])
        self._teacher.load_state_dict(state["teacher"])
        self._dino.load_state_dict(state["dino"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]


_MEASURED = ("loss", "dino", "regions", "region_accuracy", "teacher_entropy", "key_spread")


@torch.no_grad()
def _spread(keys: torch.Tensor) -> torch.Tensor:
    """Root mean square distance of unit keys (2, B, N, C) from their mean: 1 if spread evenly, 0 if equal."""
    directions = nn.functional.normalize(keys.float(), dim=-1).flatten(0, 2)
    return (1 - directions.mean(dim=0).square().sum()).clamp(min=0).sqrt()
