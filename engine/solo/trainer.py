"""One training step of SOLO, and the state between two steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.device import autocast
from engine.encoders.weights import check_fit
from engine.errors import RunError
from engine.solo.batch import Batch
from engine.solo.network import SoloOutputs, build_network
from engine.solo.objective import LossSums, batch_losses
from engine.solo.training_config import TrainingConfig
from engine.solo.weights import load_network
from engine.training.distribution import WorkerContext, total_over_workers
from engine.training.schedule import build_optimiser, learning_rate_at


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Metrics of one step, over all workers.

    `fallback_share` is the share of masks whose loss is by pixels, because the object contains no superpixel;
    `unread` is the number of images that could not be read.
    """

    loss: float
    focal: float
    mask: float
    soft: float
    fallback_share: float
    positives: float
    unread: float
    gradient_norm: float
    learning_rate: float


class SoloTrainer:
    """The network and the optimiser of one worker."""

    def __init__(self, config: TrainingConfig, context: WorkerContext, pretrained: bool = True) -> None:
        """With `pretrained` false the backbone's weights are not loaded, since a state will be."""
        self._config = config
        self._context = context
        self.network = build_network(config.solo, pretrained).to(context.device)
        self._optimiser = build_optimiser(self.network, config.optimiser)
        self._scaler = torch.amp.GradScaler(context.device.type, enabled=config.precision == "float16")
        self._forward: nn.Module = self.network
        if context.world_size > 1:
            self._forward = nn.parallel.DistributedDataParallel(self.network)
        self.step = 0

    def train_step(self, batch: Batch) -> StepMetrics:
        """Learn from this worker's part of a batch.

        Raises RunError, and leaves the weights unchanged, if the loss or its gradient is not finite; for a
        loss it names the images.
        """
        config = self._config
        rate = learning_rate_at(self.step, config.steps, config.optimiser)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        batch = batch.to(self._context.device)
        with autocast(self._context.device, self._config.precision):
            outputs: SoloOutputs = self._forward(batch.images.float() / 255)
        sums = batch_losses(outputs, batch, config.objective)
        unread = sum(bool(failure) for failure in batch.failures)
        counts = total_over_workers(torch.cat([sums.counts(), sums.focal.new_tensor([unread])]))
        loss = sums.total(counts[0], counts[1], config.objective)
        values = total_over_workers(_values(sums, loss, counts)).tolist()
        if not math.isfinite(values[0]):
            raise RunError(_non_finite(values[0], float(loss.detach()), self.step, batch))
        norm = self._learn(loss)
        self.step += 1
        return StepMetrics(
            **dict(zip(("loss", "focal", "mask", "soft"), values, strict=True)),
            fallback_share=float(counts[2] / counts[1].clamp(min=1e-6)),
            positives=float(counts[0]),
            unread=float(counts[3]),
            gradient_norm=norm,
            learning_rate=rate,
        )

    def _learn(self, loss: torch.Tensor) -> float:
        self._optimiser.zero_grad(set_to_none=True)
        # Workers' gradients are averaged, and each holds a part of the sum.
        torch.autograd.backward(self._scaler.scale(loss * self._context.world_size))
        self._scaler.unscale_(self._optimiser)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self._config.optimiser.clip_norm)
        # In float16 the scaler skips such a step and scales the next ones down.
        if self._config.precision != "float16" and not bool(torch.isfinite(norm)):
            raise RunError(
                f"the gradient is {float(norm)} at step {self.step + 1}: lower optimiser.learning_rate and "
                "start again; earlier checkpoints are intact"
            )
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return float(norm)

    def load_initial(self, uri: str) -> None:
        """Load the weights of a trained network. Raises WeightsError if its architecture differs."""
        state = load_network(uri, self._context.device)[0].state_dict()
        check_fit(state, self.network.state_dict(), f"the network {uri!r} is of another configuration")
        self.network.load_state_dict(state)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on: tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "step": self.step,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of the same configuration."""
        self.network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        self.step = state["step"]


def _values(sums: LossSums, loss: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """This worker's part of the loss and of its three terms, the latter without their weights."""
    masks = counts[1].clamp(min=1e-6)
    return torch.stack(
        [loss, sums.focal / counts[0].clamp(min=1), sums.mask_term / masks, sums.soft / masks]
    ).detach()


def _non_finite(total: float, own: float, step: int, batch: Batch) -> str:
    images = ", ".join(map(repr, batch.image_ids))
    where = f"among {images}" if not math.isfinite(own) else "on another worker"
    return (
        f"the loss is {total} at step {step + 1}, {where}: lower optimiser.learning_rate or raise "
        "optimiser.warmup_steps, and start again; earlier checkpoints are intact"
    )
