"""Heads for continuous units: a flow-matching MLP that can generate, a regression that makes good features, a length head that knows when to end.

Flow: between noise e and a unit x lies z = t x + (1 - t) e. The head sees z, t and the trunk's state before the unit, and predicts x itself;
sampling follows dz/dt = (x - z) / (1 - t) from noise to a unit. Predicting x keeps the target on the data's own manifold, which matters for
wide units. Source: MAR (arXiv 2406.11838) for a head per unit; JiT (arXiv 2511.13720) for x-prediction, the time's distribution and the weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bedplate.model.senses import grid_position

TIME_MEAN, TIME_STD = -0.8, 0.8
LEAST_REMAINING = 0.05
"""1 - t is never taken as less than this in weights and steps."""


def draws(device: torch.device) -> int:
    """Noise draws a unit: the head is small beside the trunk, so on a GPU more of them are nearly free."""
    return 2 if device.type == "cpu" else 4


class FlowBlock(nn.Module):
    """Residual MLP whose norm is shifted, scaled and gated by the condition (adaLN)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulate = nn.Linear(width, 3 * width)
        self.rise = nn.Linear(width, 2 * width)
        self.fall = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """A step of the network.

        Args:
            x: [... w].
            modulation: what `modulate` makes of the condition.
        """
        shift, scale, gate = modulation.chunk(3, -1)
        inner = F.layer_norm(x, (x.shape[-1],)) * (1 + scale) + shift
        result: Tensor = x + gate * self.fall(F.silu(self.rise(inner)))
        return result


class FlowHead(nn.Module):
    """Predicts a clean unit from a noisy one, the time and the trunk's state."""

    def __init__(self, unit_width: int, hidden_size: int, width: int, blocks: int) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Linear(unit_width, width)
        self.condition = nn.Linear(hidden_size, width)
        self.place = nn.Linear(hidden_size, width, bias=False)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(FlowBlock(width) for _ in range(blocks))
        self.last = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, unit_width)

    def conditions(self, hidden: Float[Tensor, "n d"], grid: Int[Tensor, "n 3"]) -> Float[Tensor, "n w"]:
        """What is known of a unit before it is there: the state before it and where it will stand."""
        result: Tensor = self.condition(hidden) + self.place(grid_position(grid, hidden.shape[-1]).to(hidden.dtype))
        return result

    def forward(self, noisy: Float[Tensor, "... p"], time: Float[Tensor, "... 1"], condition: Float[Tensor, "... w"]) -> Float[Tensor, "... p"]:
        """The clean unit that is expected."""
        return self._clean(noisy, *self._modulations(condition + self.time(time_code(time).to(condition.dtype))))

    def _modulations(self, condition: Float[Tensor, "... w"]) -> tuple[list[Tensor], Tensor]:
        """What the condition does to each block, and to the last norm."""
        condition = F.silu(condition)
        blocks: Iterable[Any] = self.blocks
        return [block.modulate(condition) for block in blocks], self.last(condition)

    def _clean(self, noisy: Float[Tensor, "... p"], modulations: Sequence[Tensor], last: Tensor) -> Float[Tensor, "... p"]:
        x = self.enter(noisy)
        for block, modulation in zip(self.blocks, modulations):
            x = block(x, modulation)
        shift, scale = last.chunk(2, -1)
        result: Tensor = self.leave(F.layer_norm(x, (x.shape[-1],)) * (1 + scale) + shift)
        return result

    def loss_sum(
        self, units: Float[Tensor, "n p"], condition: Float[Tensor, "n w"], wanted: Float[Tensor, "n"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Weighted squared error summed over the wanted units (mean over their values and over the noise draws).

        Args:
            units: clean units.
            condition: from `conditions`.
            wanted: 1 where the unit is a target, else 0. Noise is drawn for every unit, so what is a target does not change the draws.
            generator: the only source of noise.
        """
        n, p = units.shape
        repeats = draws(units.device)
        noise = torch.randn((n, repeats, p), generator=generator, device=units.device)
        time = torch.sigmoid(TIME_MEAN + TIME_STD * torch.randn((n, repeats, 1), generator=generator, device=units.device))
        noisy = time * units[:, None] + (1 - time) * noise  # [n r p]
        predicted = self(noisy, time, condition[:, None])
        weight = 1 / (1 - time).clamp_min(LEAST_REMAINING).square()
        error = ((predicted.float() - units[:, None]).square() * weight).mean((1, 2))  # [n]
        result: Tensor = (error * wanted).sum()
        return result

    @torch.no_grad()
    def sample(
        self,
        condition: Float[Tensor, "n w"],
        noise: Float[Tensor, "n p"],
        steps: int = 20,
        unconditional: Float[Tensor, "n w"] | None = None,
        guidance: float | Float[Tensor, "n 1"] = 1.0,
    ) -> Float[Tensor, "n p"]:
        """Units from noise by Euler steps.

        Args:
            condition: from `conditions`.
            noise: where they begin, of spread 1.
            steps: Euler steps.
            unconditional: conditions of the same units without the caption.
            guidance: 1 follows the condition; more exaggerates what it changes.
        """
        z, n = noise, len(noise)
        both = condition if unconditional is None else torch.cat([condition, unconditional])
        times = self.time(time_code(torch.arange(steps, device=condition.device)[:, None] / steps).to(condition.dtype))  # [s w]: the same for all units
        modulations, last = self._modulations(both + times[:, None])  # [s n 3w], [s n 2w]: of all steps at once, as they do not depend on the unit
        for step in range(steps):
            now = [modulation[step] for modulation in modulations]
            if unconditional is None:
                clean = self._clean(z.to(condition), now, last[step]).float()
            else:
                made = self._clean(z.to(condition).repeat(2, 1), now, last[step]).float()
                clean = made[n:] + guidance * (made[:n] - made[n:])
            z = z + (clean - z) / max(1 - step / steps, LEAST_REMAINING) / steps
        return z


def time_code(time: Float[Tensor, "... 1"]) -> Float[Tensor, "... 64"]:
    """sin-cos features of a time in 0..1."""
    frequency = torch.exp(-math.log(1000.0) * torch.arange(32, device=time.device) / 31) * 1000.0
    angles = time * frequency
    return torch.cat([angles.sin(), angles.cos()], -1)


class UnitHeads(nn.Module):
    """All heads of one sense."""

    def __init__(self, unit_width: int, hidden_size: int, flow_width: int, flow_blocks: int) -> None:
        super().__init__()
        self.flow = FlowHead(unit_width, hidden_size, flow_width, flow_blocks)
        self.regression = nn.Linear(hidden_size, unit_width)
        self.end = nn.Linear(hidden_size, 1)

    def regression_sum(self, hidden: Float[Tensor, "n d"], units: Float[Tensor, "n p"], wanted: Float[Tensor, "n"]) -> Float[Tensor, ""]:
        """Squared error against each unit normalised by its own mean and spread, mean over values, summed over the wanted units."""
        mean, spread = units.mean(1, keepdim=True), units.var(1, keepdim=True, unbiased=False)
        target = (units - mean) / (spread + 1e-2).sqrt()
        result: Tensor = ((self.regression(hidden).float() - target).square().mean(1) * wanted).sum()
        return result

    def end_sum(self, hidden: Float[Tensor, "n d"], last: Float[Tensor, "n"], wanted: Float[Tensor, "n"]) -> Float[Tensor, ""]:
        """Whether the state after a unit knows that it was the last one, in nats, summed over the wanted units."""
        return (F.binary_cross_entropy_with_logits(self.end(hidden)[:, 0].float(), last, reduction="none") * wanted).sum()
