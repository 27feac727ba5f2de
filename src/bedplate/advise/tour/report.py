"""The tour's page: what was read, how every sense was learned, what the model makes beside real things, how many labels it saves."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from bedplate.core.files import write_text
from bedplate.core.units import format_bytes, format_count, format_seconds
from bedplate.report import figures
from bedplate.report.log import RunLog
from bedplate.report.page import embedded, render

SENSES = {"text": "text and code", "image_flow": "pictures", "audio_flow": "sound", "video_flow": "clips", "series_flow": "telemetry"}
TEMPLATE = Path(__file__).parent / "templates" / "tour.html"


def write_report(folder: Path, found: dict[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        folder: the tour's.
        found: what the stages found.
        path: where to.
    """
    made = folder / "made"
    learned = found["learn"]
    log = RunLog.read(folder / "run")
    shown = {name: Markup(svg) for name, svg in figures.losses(log).items()}
    seconds = {name: part["seconds"] for name, part in found.items()}
    page = render(
        TEMPLATE,
        title="Bedplate tour",
        facts=[
            (format_count(found["plan"]["parameters"]), "parameters"),
            (format_count(found["plan"]["positions"]), "positions learned from"),
            (format_seconds(seconds["learn"]), "of learning"),
            (format_seconds(sum(seconds.values())), "for the whole tour"),
            (f"{found['plan']['flops']:.2g}", "floating-point operations"),
            (format_bytes(_most_memory(log)), "memory at most"),
        ],
        components=[
            (name, format_count(sum(split["documents"] for split in splits.values())), format_count(sum(split["positions"] for split in splits.values())))
            for name, splits in found["build"]["components"].items()
        ],
        falls=[
            (SENSES[sense], f"{before:.3f}", f"{after:.3f}", f"{100 * (before - after) / before:.0f}%") for sense, (before, after) in learned["losses"].items()
        ],
        bits=learned["bits_per_byte"],
        figures=shown,
        texts=list(found["make"]["texts"].items()),
        middle=found["make"]["middle"],
        pictures=[(name, [embedded(made / file) for file in files]) for name, files in found["make"]["pictures"].items()],
        real=_real(folder),
        recognised=f"{100 * found['make']['recognised']:.0f}%",
        completed=[[embedded(made / file) for file in pair] for pair in found["make"]["completed"]],
        sounds=[_sound(folder, made, word, sound) for word, sound in found["make"]["sounds"].items()],
        clip=embedded(made / "clip.gif"),
        channel=found["make"]["series"]["channel"],
        forecast=Markup(_forecast(found["make"]["series"])),
        labels=Markup(_labels(found["labels"]["accuracy"])),
        accuracy=_table(found["labels"]["accuracy"]),
        tested=found["labels"]["test"],
        open=_open_weights(found),
        reason=found["fetch"].get("reason"),
        stages=[(name, format_seconds(s)) for name, s in seconds.items()],
        folder=folder.as_posix(),
    )
    write_text(path, page)


def _open_weights(found: dict[str, Any]) -> dict[str, Any] | None:
    """What became of the open weights; None where they could not be fetched."""
    adapted = found["adapt"]
    if adapted["scores"] is None:
        return None
    before, after = (f"{100 * adapted['scores'][name][0]:.0f}" for name in ("before", "after"))
    return {**adapted, "licence": found["fetch"]["licence"], "seconds": format_seconds(adapted["seconds"]), "before": before, "after": after}


def _most_memory(log: RunLog) -> float:
    values = log.column("memory_bytes")
    return float(np.nanmax(values)) if len(values) else 0.0


def _real(folder: Path) -> list[tuple[str, list[str]]]:
    """Real digits with captions, a row a name."""
    found: dict[str, list[str]] = {}
    for caption in sorted((folder / "raw" / "digits").glob("*.txt")):
        row = found.setdefault(caption.read_text().rsplit(" ", 1)[-1], [])
        if len(row) < 4:
            row.append(embedded(caption.with_suffix(".png")))
    return sorted(found.items(), key=lambda item: ("zero", "one", "two", "three", "four").index(item[0]))


def _sound(folder: Path, made: Path, word: str, sound: dict[str, Any]) -> dict[str, str]:
    real = next(t.with_suffix(".wav") for t in sorted((folder / "raw" / "speech").glob("*.txt")) if t.read_text().endswith(word))
    ours = made / sound["file"]
    return {"word": word, "made": embedded(ours), "real": embedded(real), "picture": _spectrogram(ours), "of_real": _spectrogram(real)}


def _spectrogram(path: Path) -> str:
    import base64

    with wave.open(str(path)) as sound:
        rate = sound.getframerate()
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / 32768
    return "data:image/png;base64," + base64.b64encode(figures.spectrogram(samples, rate)).decode()


def _forecast(series: dict[str, Any]) -> str:
    past, future = np.array(series["past"]), np.array(series["future"])
    before, after = np.arange(len(past), dtype=float), np.arange(len(past), len(past) + len(future), dtype=float)
    lines = [
        figures.Line("what happened", np.concatenate([before, after]), np.concatenate([past, future]), figures.INK),
        figures.Line("forecast", after, np.array(series["median"]), figures.SENSE_COLOURS["series"]),
        figures.Line("a tenth below", after, np.array(series["low"]), figures.SENSE_COLOURS["image"]),
        figures.Line("a tenth above", after, np.array(series["high"]), figures.SENSE_COLOURS["image"]),
    ]
    return figures.draw(lines, x_label="sample", size=(7.0, 2.4))


def _labels(accuracy: dict[str, dict[str, float]]) -> str:
    colours = {"probe": figures.SENSE_COLOURS["text"], "scratch": figures.SENSE_COLOURS["image"]}
    names = {"probe": "the base, frozen", "scratch": "the same network from scratch"}
    lines = [
        figures.Line(names[method], np.array([float(n) for n in by]), np.array([100 * v for v in by.values()]), colours[method])
        for method, by in accuracy.items()
    ]
    return figures.draw(lines, x_label="labels", y_format="%", size=(5.0, 2.6), zero=True)


def _table(accuracy: dict[str, dict[str, float]]) -> list[tuple[str, str, str]]:
    return [(n, f"{100 * accuracy['probe'][n]:.0f}%", f"{100 * accuracy['scratch'][n]:.0f}%") for n in accuracy["probe"]]
