"""Generation: 200 digits painted and 200 spoken as asked, judged by classifiers trained on real ones alone.

The model learns from the training part with captions; each judge is a small convolutional network trained on the same real things, and its
accuracy on the real test part is recorded beside the result.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.generate import Generation
from bedplate.modality import audio
from benchmarks import things
from benchmarks.inputs import SCRATCH, SHARED
from benchmarks.record import append
from benchmarks.training import run_training

EACH = 20
CAPTIONS = {"mnist10k": "digit {}", "fsdd": "the word {}"}
FRAMES = 64
"""Log-mel frames that the judge of sounds looks at; shorter ones are filled with silence."""


class Judge(nn.Module):
    """A small convolutional classifier."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(48, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, classes),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(x)
        return scores


def train_judge(x: torch.Tensor, y: torch.Tensor, epochs: int = 6) -> Judge:
    """Adam, a few epochs."""
    torch.manual_seed(0)
    judge = Judge()
    optimiser = torch.optim.Adam(judge.parameters(), 2e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(judge(x[part]), y[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return judge.eval()


@torch.inference_mode()
def right(judge: Judge, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share that the judge reads as labelled, in percent."""
    return 100 * float((judge(x).argmax(1) == y).float().mean())


def as_input(values: list[np.ndarray], sense: str) -> torch.Tensor:
    """[n 1 h w] for the judge."""
    if sense == "image":
        return torch.from_numpy(np.stack([v.mean(-1) for v in values])[:, None].astype(np.float32) / 255)
    filled = [np.pad(v.astype(np.float32), ((0, max(0, FRAMES - len(v))), (0, 0)), constant_values=np.log(audio.LOG_FLOOR))[:FRAMES] for v in values]
    return torch.from_numpy((np.stack(filled)[:, None] + 4) / 3)


def make(model: Path, sense: str, caption: str, guidance: float, precision: Literal["float32", "int8"]) -> list[np.ndarray]:
    """EACH of every digit, as the judge looks at them: pictures, or log-mel frames of what was made audible."""
    values: list[np.ndarray] = []
    with Generation.load(model, EngineSettings(precision=precision, device="cpu")) as made:
        spec = made.model.config.senses.audio
        for digit, word in enumerate(things.WORDS):
            prompt = caption.format(word)
            if sense == "image":
                values += made.image(prompt, n=EACH, guidance=guidance, seed=digit)
            else:
                assert spec is not None
                values += [audio.log_mel(sound, spec) for sound in made.audio(prompt, n=EACH, most_s=1.2, guidance=guidance, seed=digit)]
    return values


def measure(name: str, budget: str, size: str, threads: int, guidance: float, folder: Path) -> None:
    """Train, make, judge, record."""
    what = {"mnist10k": things.digits, "fsdd": things.spoken_digits}[name]()
    corpus = things.build_corpus(what, folder, CAPTIONS[name])
    settings = [f'model.size="{size}"', f'run.budget="{budget}"', "model.context=512", f"run.threads={threads}", "sample.every_steps=0"]
    run = folder / f"run-{size}-{budget}"
    _, chosen = run_training(corpus.folder, run, [*settings, "health.max_epochs=1000", "data.packing.caption_first=1", "data.packing.known_share=0"])
    torch.set_num_threads(threads)
    values = {precision: make(run / "model", what.sense, CAPTIONS[name], guidance, precision) for precision in ("float32", "int8")}
    asked = torch.arange(10).repeat_interleave(EACH)
    real, labels = things.documents(what, corpus.specs, test=False)
    held_out, held_out_labels = things.documents(what, corpus.specs, test=True)
    judge = train_judge(as_input([d[0].value for d in real], what.sense), torch.from_numpy(labels))
    append(
        {"mnist10k": "generation_digits", "fsdd": "generation_spoken_digits"}[name],
        conditions={
            "size": size,
            "training": f"{budget}, {chosen.get('run.steps')} steps, with captions",
            "guidance": guidance,
            "made": len(values["float32"]),
            "threads": threads,
        },
        metrics={
            "recognised": ([right(judge, as_input(values["float32"], what.sense), asked)], "%"),
            "recognised_int8": ([right(judge, as_input(values["int8"], what.sense), asked)], "%"),
            "judge_on_real": ([right(judge, as_input([d[0].value for d in held_out], what.sense), torch.from_numpy(held_out_labels))], "%"),
        },
    )


def main() -> None:
    """Measure both, or the chosen one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=list(CAPTIONS))
    parser.add_argument("--budget", default="8m")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--guidance", type=float, default=2.0)
    arguments = parser.parse_args()
    if not SHARED.exists():
        print("generation: skipped, the development data is not here")
        return
    for name in arguments.sets:
        measure(name, arguments.budget, arguments.size, arguments.threads, arguments.guidance, SCRATCH / "generation" / name)


if __name__ == "__main__":
    main()
