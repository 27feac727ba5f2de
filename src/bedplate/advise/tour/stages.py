"""The tour's stages in order, each with a check that can fail. What a stage found is kept, so that a second run goes on where the first stopped.

    TOUR/raw/ corpus/ run/ made/ state.json report.html
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.advise.tour import open_weights
from bedplate.advise.tour.gather import NAMED, NAMES, gather, load_digits
from bedplate.core.config import Resolved, load
from bedplate.core.errors import BedplateError, StateError
from bedplate.core.events import read_events
from bedplate.core.files import read_json, write_bytes, write_json, write_text
from bedplate.core.run import Run

Found = dict[str, Any]
"""What a stage found, as JSON."""


@dataclass(frozen=True)
class TourSettings:
    """How long the tour may take and how much it reads."""

    minutes: float = 11.0
    """For everything after installation; learning gets what the other stages leave."""
    megabytes: float = 3.0
    """Of code, and of text."""
    share: float = 1.0
    """Of pictures, words and clips."""
    size: str = "nano"
    """Of the model."""
    reserve_s: float = 300.0
    """Kept for what comes after learning."""
    labels: tuple[int, ...] = (10, 50, 200)
    """Numbers of labels in the last experiment."""
    functions: int = 240
    """That the open weights learn to describe."""
    least_fall: float = 0.05
    """Every sense's held-out loss must fall by this share, else the tour fails."""


@dataclass
class Tour:
    """A tour in its folder."""

    folder: Path
    settings: TourSettings
    run: Run
    listeners: tuple[Callable[[dict[str, Any]], None], ...] = ()
    found: dict[str, Found] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = self.folder / "state.json"
        if self.state.exists():
            self.found = read_json(self.state)
        self.began = time.monotonic() - sum(found.get("seconds", 0.0) for found in self.found.values())

    def take(self) -> Path:
        """All stages that are not done yet; the report.

        Raises:
            StateError: a stage's check failed.
        """
        for number, (name, stage) in enumerate(STAGES.items()):
            if name in self.found and name != "report":
                self.run.events.emit("stage_finished", stage=name, seconds=0.0, detail="done before")
                continue
            self.run.events.emit("stage_started", stage=name, number=number + 1, of=len(STAGES))
            started = time.monotonic()
            found = stage(self)
            found["seconds"] = round(time.monotonic() - started, 1)
            self.found[name] = found
            write_json(self.state, self.found)
            self.run.events.emit("stage_finished", stage=name, seconds=found["seconds"])
        return self.folder / "report.html"

    def left_s(self) -> float:
        """Seconds of the time that was granted."""
        return float(self.settings.minutes * 60 - (time.monotonic() - self.began))

    def inner(self, name: str, kind: str, resolved: Resolved[Any]) -> Run:
        """A run inside the tour, told to the same listeners."""
        return Run.open(self.folder / name, kind, resolved, self.listeners)

    def check(self, holds: bool, what: str, hint: str) -> None:
        """Stop the tour where something is not as it should be."""
        if not holds:
            raise StateError(f"the tour's check failed: {what}", hint)


def tour(folder: Path, settings: TourSettings, *, fresh: bool = False, listeners: tuple[Callable[[dict[str, Any]], None], ...] = ()) -> Path:
    """Take the tour, or go on with it.

    Args:
        folder: where everything goes.
        settings: how long, how much.
        fresh: start clean.
        listeners: hear of every event.
    Returns:
        The report.
    """
    if fresh and folder.exists():
        if not (folder / "state.json").exists() and any(folder.iterdir()):
            raise StateError(f"{folder} is not a tour", "give another folder; this one is not removed")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "state.json").exists():
        write_json(folder / "state.json", {})
    with Run.open(folder / "log", "tour", Resolved(settings, {}), listeners) as run:
        report = Tour(folder, settings, run, listeners).take()
        run.events.emit("run_finished", seconds=round(run.seconds, 1), report=str(report))
    return report


def _gather(tour: Tour) -> Found:
    raw = tour.folder / "raw"
    shutil.rmtree(raw, ignore_errors=True)

    def tell(done: int, of: int, what: str) -> None:
        tour.run.events.emit("progress", done=done, total=of, unit="parts", label=f"gathering {what}")

    counts = gather(raw, tell, tour.settings.megabytes, tour.settings.share)
    for part, count in counts.items():
        tour.check(count > 0, f"nothing was gathered for {part}", "see what the machine lacks: pip install 'bedplate[tour]'")
    return {"files": counts}


def _build(tour: Tour) -> Found:
    from bedplate.data.build import build
    from bedplate.data.build_settings import BuildSettings

    specs = {
        "image": {"size": 16, "patch": 4, "channels": 3},
        "audio": {"sample_rate": 8000, "mels": 40, "frames": 4},
        "video": {"size": 32, "patch": 8, "channels": 1},
        "series": {"points": 16, "max_points": 128},
    }
    overrides = [f"specs.{sense}.{key}={value}" for sense, spec in specs.items() for key, value in spec.items()]
    given = {"inputs": [str(tour.folder / "raw")], "output": str(tour.folder / "corpus"), "validation_share": 0.04}
    resolved = load(BuildSettings, overrides=overrides, given=given)
    with tour.inner("build", "data build", resolved) as run:
        manifest = build(resolved.value, run)
    components = manifest.about["components"]
    for component in ("text", "code", "image", "audio", "video", "series"):
        tour.check(component in components, f"the corpus has no {component}", "look at corpus/dropped.arrow with `bedplate data inspect`")
    return {"components": components, "vocabulary": manifest.about["vocabulary"]}


def _inspect(tour: Tour) -> Found:
    from bedplate.data.inspect import inspect

    page = tour.folder / "corpus.html"
    inspect(tour.folder / "corpus", page)
    tour.check(page.stat().st_size > 10_000, "the page about the corpus is empty", "run `bedplate data inspect` by hand")
    return {"page": page.name}


def _settings(tour: Tour, budget_s: float) -> Resolved[Any]:
    from bedplate.pretrain.settings import PretrainSettings

    overrides = [
        "data.mixture={text=0.27, code=0.2, image=0.27, audio=0.16, video=0.05, series=0.05}",
        "model.context=256",
        "run.compile=off",
        "evaluate.rows=80",  # so that the rarest sense is among them
        "health.max_epochs=1000",
        f"run.budget={budget_s:.0f}s",
    ]
    return load(PretrainSettings, overrides=overrides, given={"data.corpus": str(tour.folder / "corpus"), "model.size": tour.settings.size})


def _plan(tour: Tour) -> Found:
    from bedplate.data.corpus import Corpus
    from bedplate.pretrain.plan import plan

    budget = max(20.0, tour.left_s() - tour.settings.reserve_s - 10)
    made = plan(_settings(tour, budget).value, Corpus.open(tour.folder / "corpus", verify=False), measure_s=3.0)
    tour.check(made.memory.total < 6 * 2**30, "the plan needs more than 6 GiB", "choose a smaller size")
    return {
        "budget_s": budget,
        "parameters": made.parameters.total,
        "positions": made.positions,
        "flops": made.flops,
        "memory_bytes": made.memory.total,
        "planned_s": made.seconds,
    }


def _learn(tour: Tour) -> Found:
    from bedplate.infer.sampler import sampler
    from bedplate.pretrain.loop import pretrain

    budget_file = tour.folder / "budget.json"
    if not budget_file.exists():  # decided once: a run goes on only with the settings it began with
        write_json(budget_file, max(20.0, tour.left_s() - tour.settings.reserve_s))
    resolved = _settings(tour, read_json(budget_file))
    with tour.inner("run", "pretrain", resolved) as run:
        model = pretrain(resolved.value, run, sampler(tour.folder / "corpus"))
    if model is None:
        raise KeyboardInterrupt
    log = tour.folder / "run" / "events.jsonl"
    steps, evaluated = list(read_events(log, ("step",))), list(read_events(log, ("evaluated",)))
    first, last = evaluated[0], evaluated[-1]
    losses = {}
    for sense in ("text", "image_flow", "audio_flow", "video_flow", "series_flow"):
        name = f"loss_{sense}"
        # At first: what the untrained model lost the first time it met this sense. At the end: on held-out data.
        before, after = next((e[name] for e in steps if name in e), None), last.get(name)
        if before is None or after is None:
            continue
        losses[sense] = [before, after]
        tour.check(
            after < before * (1 - tour.settings.least_fall),
            f"the loss of {sense} fell only from {before:.3f} to {after:.3f}",
            "give more time with --minutes",
        )
    tour.check("text" in losses and "image_flow" in losses, "nothing was held out", "gather more input")
    return {"losses": losses, "bits_per_byte": [first.get("bits_per_byte"), last.get("bits_per_byte")], "steps": last["step"]}


def _make(tour: Tour) -> Found:
    from bedplate.infer.generate import Generation

    with Generation.load(tour.folder / "run" / "model") as made:
        return _things(tour, made)


def _things(tour: Tour, made: Any) -> Found:
    from bedplate.modality import audio, image, series, video

    folder = tour.folder / "made"
    folder.mkdir(exist_ok=True)
    found: Found = {"pictures": {}, "completed": [], "sounds": {}}

    def tell(number: int, what: str) -> None:
        tour.run.events.emit("progress", done=number, total=6, unit="senses", label=f"making {what}")

    tell(0, "text")
    texts = {prompt: made.text(prompt, most_tokens=60, seed=1)[0] for prompt in ("The module ", "def read(self, ", "Return the ")}
    middle = made.fill_in("def add(a, b):\n    ", "\n    return total\n", most_tokens=24)[0]
    write_text(folder / "texts.json", json.dumps({"texts": texts, "middle": middle}, indent=1, ensure_ascii=False))
    found |= {"texts": texts, "middle": middle}
    tell(1, "pictures")
    painted = []
    for digit in range(NAMED):
        pictures = made.image(f"handwritten digit {NAMES[digit]}", n=20, guidance=2.0, seed=digit)
        painted += [(digit, p) for p in pictures]
        names = []
        for number, picture in enumerate(pictures[:4]):
            names.append(f"digit-{digit}-{number}.png")
            write_bytes(folder / names[-1], image.encode(picture))
        found["pictures"][NAMES[digit]] = names
    tour.check(all(p.std() > 5 for _, p in painted), "a picture is a single colour", "give more time with --minutes")
    found["recognised"] = recognised(painted)
    tour.check(found["recognised"] > 0.34, f"only {found['recognised']:.0%} of the digits are recognised (chance: 20%)", "give more time with --minutes")
    _, held_out = load_digits()
    tell(2, "the rest of pictures")
    for number in range(6):
        whole = np.repeat(held_out.pixels[number][..., None], 3, -1)
        rest = made.image(known=whole, known_share=0.5, seed=number)[0]
        names = [f"completed-{number}-{part}.png" for part in ("real", "made")]
        for name, picture in zip(names, (whole, rest)):
            write_bytes(folder / name, image.encode(picture))
        found["completed"].append(names)
    tell(3, "sounds")
    spec = made.model.config.senses.audio
    assert spec is not None
    for word in ("seven", "alarm", "network"):
        sound = made.audio(f"the word {word}", most_s=1.0, seed=3)[0]
        write_bytes(folder / f"{word}.wav", audio.encode(sound, spec.sample_rate))
        found["sounds"][word] = {"file": f"{word}.wav", "seconds": round(len(sound) / spec.sample_rate, 2), "loudness": float(np.abs(sound).mean())}
        tour.check(len(sound) > 0.08 * spec.sample_rate and np.abs(sound).mean() > 1e-5, f"the spoken {word!r} is empty", "give more time with --minutes")
    tell(4, "a clip")
    write_bytes(folder / "clip.gif", video.encode(made.video(frames=12, seed=1)[0]))
    tell(5, "a forecast")
    found["series"] = _forecast(tour, made, folder, series)
    return found


def _forecast(tour: Tour, made: Any, folder: Path, series: Any) -> Found:
    table = sorted((tour.folder / "raw" / "machine").glob("*.csv"))[0]
    rows = np.loadtxt(table, delimiter=",", skiprows=1)
    names = table.read_text().splitlines()[0].split(",")
    channel = int(np.argmax([np.std(c[:64]) / (abs(np.mean(c[:64])) + 1e-9) for c in rows.T]))
    past, future = rows[:64, channel], rows[64:96, channel]
    forecast = made.series(past, 32, names[channel])
    tour.check(bool(np.isfinite(forecast.median).all()), "the forecast has no numbers", "look at the series' held-out loss")
    write_bytes(folder / "forecast.csv", series.encode({"median": forecast.median, "low": forecast.low, "high": forecast.high}))
    parts: Mapping[str, Any] = {"past": past, "future": future, "median": forecast.median, "low": forecast.low, "high": forecast.high}
    return {"channel": names[channel], **{name: [round(float(v), 4) for v in values] for name, values in parts.items()}}


def recognised(painted: list[tuple[int, np.ndarray]]) -> float:
    """Share of painted digits that a classifier trained on the real ones (of those names) reads as asked."""
    from sklearn.svm import SVC

    learned, _ = load_digits()
    chosen = learned.labels < NAMED
    judge = SVC(C=5, gamma="scale").fit(learned.pixels[chosen].reshape(chosen.sum(), -1) / 255, learned.labels[chosen])
    pictures = np.stack([p.mean(-1) for _, p in painted]).reshape(len(painted), -1) / 255
    return float((judge.predict(pictures) == np.array([digit for digit, _ in painted])).mean())


def _labels(tour: Tour) -> Found:
    """Five to nine, which no caption ever named: how many labels the base saves."""
    from bedplate.adapt.label_efficiency import Accuracy, label_efficiency
    from bedplate.data.corpus_format import StoredSegment
    from bedplate.model.foundation import FoundationModel

    learned, held_out = load_digits()

    def part(digits: Any) -> tuple[list[list[StoredSegment]], np.ndarray]:
        chosen = digits.labels >= NAMED
        return [[StoredSegment("image", np.repeat(p[..., None], 3, -1))] for p in digits.pixels[chosen]], digits.labels[chosen] - NAMED

    def tell(accuracy: Accuracy) -> None:
        tour.run.events.emit("counted", what=f"{accuracy.method}, {accuracy.labels} labels", counts={"percent right": round(100 * accuracy.mean, 1)})

    model = FoundationModel.load(tour.folder / "run" / "model")
    train, train_labels = part(learned)
    test, test_labels = part(held_out)
    results = label_efficiency(model, train, train_labels, test, test_labels, sizes=tour.settings.labels, seeds=(0, 1), methods=("probe", "scratch"), tell=tell)
    table = {method: {str(r.labels): r.mean for r in results if r.method == method} for method in ("probe", "scratch")}
    judged = str(tour.settings.labels[len(tour.settings.labels) // 2])  # with the fewest, chance decides
    tour.check(
        table["probe"][judged] > table["scratch"][judged],
        f"with {judged} labels the base ({table['probe'][judged]:.0%}) is no better than from scratch ({table['scratch'][judged]:.0%})",
        "give more time with --minutes",
    )
    return {"accuracy": table, "test": len(test)}


def _report(tour: Tour) -> Found:
    from bedplate.advise.tour.report import write_report

    path = tour.folder / "report.html"
    write_report(tour.folder, tour.found, path)
    return {"page": path.name}


STAGES: dict[str, Callable[[Tour], Found]] = {
    "gather": _gather,
    "build": _build,
    "inspect": _inspect,
    "plan": _plan,
    "learn": _learn,
    "make": _make,
    "labels": _labels,
    "fetch": open_weights.fetch,
    "adapt": open_weights.adapt_it,
    "report": _report,
}
"""In order; a stage's name is its key in state.json."""

__all__ = ["STAGES", "BedplateError", "Tour", "TourSettings", "tour"]
