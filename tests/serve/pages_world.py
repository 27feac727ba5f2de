"""A gateway with something to see: bases and adapters with their lineage, an audit, a run that has ended and one under way."""

import dataclasses
import fcntl
import math
import os
import random
import time
from contextlib import contextmanager

from serve_gateway import USER, serving

from bedplate.core.artifact import seal
from bedplate.core.events import EventLog
from bedplate.core.generation import Piece, Usage, WorkerCard
from bedplate.serve.limits import LimitSettings, LimitsSettings
from bedplate.serve.settings import ModelSettings
from bedplate.testing.generators import FakeGenerator


def artifact(folder, kind, parents=None, about=None):
    folder.mkdir(parents=True)
    (folder / "content.txt").write_text(f"{kind} {folder.name}")
    return seal(folder, kind, parents=parents, about=about).digest


def write_run(folder, steps, of=400, loss=9.4, finished=True, began_s=None, seed=3):
    """Events as a training run writes them."""
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    at = [began_s or time.time() - steps * 1.9]
    log = EventLog(folder / "events.jsonl", clock=lambda: at[0])
    (folder / "run.toml").write_text("# kind: pretrain\n[model]\nsize = \"mini\"  # given\n")
    log.emit("run_started", kind="pretrain", settings={}, environment={"processor": "a test"})
    for step in range(1, steps + 1):
        at[0] += 1.9
        fall = 2.3 + (loss - 2.3) * math.exp(-step / 70)
        text, image = fall + draw.gauss(0, 0.09), 0.35 + 0.9 * math.exp(-step / 110) + draw.gauss(0, 0.02)
        log.emit(
            "step", step=step, steps=of, tokens=step * 32768, loss=text + image, loss_text=text, loss_image=image, gradient_norm=1.1 + abs(draw.gauss(0, 0.2)),
            lr=3e-3 * min(1, step / 40) * (1 if step < 300 else 1 - (step - 300) / 120), step_s=1.9, loader_s=0.02, memory_bytes=1.9e9, units_per_s=17200 + draw.gauss(0, 240),
        )  # fmt: skip
        if step % 50 == 0:
            log.emit("evaluated", step=step, loss=fall + 0.45 + 0.9 * math.exp(-step / 110), loss_text=fall + 0.05, loss_image=0.4 + 0.9 * math.exp(-step / 110), bits_per_byte=fall / 2.9)
            log.emit("checkpoint_saved", step=step, path=f"checkpoints/{step}", seconds=0.4)
    if finished:
        log.emit("run_finished", seconds=steps * 1.9)
    log.close()


@contextmanager
def held(folder):
    """As long as this lasts, the run looks alive."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


class Scripted:
    """A generator that says what it is told to, piece by piece: also what no model should."""

    def __init__(self, pieces, step_s=0.0):
        self.pieces, self.step_s = pieces, step_s
        self.fake = FakeGenerator()

    def workers(self):
        return [WorkerCard("", "generate", {"model": "5" * 64}, 4096)]

    def submit(self, ask, deliver):
        def say():
            for text in self.pieces:
                time.sleep(self.step_s)
                deliver(Piece(text=text))
            deliver(Piece(finish="stop", usage=Usage(7, 0, len(self.pieces))))

        import threading

        threading.Thread(target=say, daemon=True).start()
        return type("Ticket", (), {"cancel": lambda self: None})()

    def count(self, ask):
        return 7

    def load(self):
        return self.fake.load()

    def close(self):
        self.fake.close()


@contextmanager
def world(folder, step_s=0.01, scopes=(*USER, "admin"), generator=None, **changes):
    """The gateway, all of it; `settings` may be changed."""
    corpus = artifact(folder / "work" / "corpus", "corpus")
    tokenizer = artifact(folder / "work" / "tokenizer", "tokenizer", {"corpus": corpus})
    model = artifact(folder / "work" / "harbour-20m", "model", {"corpus": corpus, "tokenizer": tokenizer})
    adapters = {name: folder / "work" / name for name in ("triage", "summary", "sorter")}
    digests = {name: artifact(path, "adapter", {"base": model, "examples": name[0] * 64}) for name, path in adapters.items()}
    write_run(folder / "work" / "pretrain-harbour", 400, began_s=time.time() - 9000)
    write_run(folder / "work" / "adapt-triage", 140, loss=4.2, finished=False, seed=5)
    fake = generator or FakeGenerator(workers=("triage", "summary"), predictors={"sorter": "classify"}, digest=model, step_s=step_s)
    if generator is None:
        fake._cards = {n: dataclasses.replace(c, digests={"model": model} | ({"adapter": digests[n]} if n else {})) for n, c in fake._cards.items()}
    settings = {
        "models": {"harbour": ModelSettings(str(folder / "work" / "harbour-20m"), adapters={n: str(p) for n, p in adapters.items()})},
        "audit": folder / "audit",
        "runs": (folder / "work",),
        "limits": LimitsSettings(key=LimitSettings(requests_per_minute=120, tokens_per_minute=20_000, concurrent=8)),
    } | changes
    with held(folder / "work" / "adapt-triage"), serving(folder / "gateway", fake=fake, scopes=scopes, name="harbour", **settings) as served:
        yield served
