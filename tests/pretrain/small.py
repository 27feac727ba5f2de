"""A small trainable model and an endless source of rows, to test training's own machinery apart from real networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bedplate.core.config import Resolved, from_mapping
from bedplate.core.run import Run
from bedplate.modality.sequence import Batch
from bedplate.pretrain.optim import Optimiser
from bedplate.pretrain.schedule import Schedule
from bedplate.pretrain.settings import PretrainSettings
from bedplate.pretrain.step import Stepper
from bedplate.pretrain.training import Training

VOCABULARY = 32


@dataclass
class Sums:
    sums: dict[str, Tensor]
    weights: dict[str, float] = field(default_factory=lambda: {"text": 1.0})


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))) ** 2)


class SmallModel(nn.Module):
    """Predicts the next token from the last two; with noise in its loss, so that wrong seeds are noticed."""

    def __init__(self, width: int = 16, noise: float = 0.01) -> None:
        super().__init__()
        self.noise = noise
        self.embed_tokens = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def loss_names(self) -> list[str]:
        return ["text"]

    def losses(self, batch: Batch, generator: torch.Generator) -> Sums:
        x = self.embed_tokens(batch.tokens)
        x = x + torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(x)[:, :-1].flatten(0, 1)
        each = torch.nn.functional.cross_entropy(logits, batch.tokens[:, 1:].flatten(), reduction="none")
        return Sums({"text": (each * batch.token_loss[:, 1:].flatten()).sum()})


class SmallRows:
    """Rows of a noisy counting language; row r is a pure function of r."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def row(self, number: int, context: int) -> np.ndarray:
        rng = np.random.default_rng([7, number])
        return (rng.integers(VOCABULARY) + np.cumsum(1 + (rng.random(context) < 0.1))) % VOCABULARY

    def batches(self, first_row: int, rows: int, context: int, most_rows: int) -> list[Batch]:
        return [self.batch(first_row + start, min(most_rows, rows - start), context) for start in range(0, rows, most_rows)]

    def batch(self, first_row: int, rows: int, context: int) -> Batch:
        self.asked.append((first_row, rows, context))
        tokens = np.stack([self.row(first_row + r, context) for r in range(rows)])
        targets = np.random.default_rng([8, first_row]).random(tokens.shape) < 0.8
        targets[:, 0] = False
        zeros = np.zeros(tokens.shape, np.int64)
        return Batch(tokens, zeros, zeros, zeros, targets, {}, {}, {})


def small_settings(tree: dict | None = None) -> PretrainSettings:
    """Settings of a run of 40 steps that resolve to themselves; `tree` replaces some."""
    base: dict = {
        "model": {"context": 16},
        "run": {"steps": 40, "rows_per_step": 4, "rows_per_micro": 2, "threads": 1},
        "checkpoint": {"every_s": 0.0, "every_steps": 10},
        "evaluate": {"every_steps": 20},
        "sample": {"every_steps": 0},
    }
    for table, values in (tree or {}).items():
        base[table] = {**base.get(table, {}), **values}
    return from_mapping(PretrainSettings, base)


def small_training(
    folder: Path, tree: dict | None = None, model: nn.Module | None = None, rows: SmallRows | None = None, **more
) -> Training:
    """A training of the small model in `folder`."""
    settings = small_settings(tree)
    torch.manual_seed(settings.run.seed)
    model = model or SmallModel()
    rows = rows or SmallRows()
    run = Run.open(folder, "pretrain", Resolved(settings, {}))
    optimiser = Optimiser(model.named_parameters(), settings.optim)
    return Training(
        settings=settings,
        run=run,
        model=model,
        stepper=Stepper(model, optimiser, torch.device("cpu"), seed=settings.run.seed),
        schedule=Schedule(settings.schedule, settings.run.steps, settings.run.rows_per_step, settings.model.context),
        loader=rows,
        validation=[rows.batch(10**6, 8, settings.model.context)],
        token_bytes=np.ones(VOCABULARY, np.int64),
        epochs=more.pop("epochs", lambda positions: 0.0),
        **more,
    )
