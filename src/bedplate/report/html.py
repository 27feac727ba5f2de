"""One self-contained offline HTML page about a run, or about several: no script, no network, light and dark, from desk to phone.

Everything from a log is text to be escaped (jinja2 autoescape); only figures made here are taken as markup. The page's own
Content-Security-Policy forbids scripts and network, so that not even a mistake could run what a log smuggled in.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

import bedplate
from bedplate.core.files import write_text
from bedplate.core.narrate import describe, number
from bedplate.core.units import format_bytes, format_count, format_seconds
from bedplate.report import figures
from bedplate.report.compare import Comparison
from bedplate.report.doctor import diagnose
from bedplate.report.log import RunLog, smooth
from bedplate.report.samples import collect

MOODS = {"finished": "good", "running": "busy", "stopped": "busy", "failed": "bad", "interrupted": "bad"}
KINDS = ("image", "video", "audio", "series", "text", "missing")
"""The order in which samples are shown."""
MOMENTS = 60
"""Most events listed one by one."""

_PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
)


def write_report(log: RunLog, path: Path) -> None:
    """Write a run's page."""
    write_text(path, run_page(log))


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page that sets runs side by side."""
    write_text(path, comparison_page(comparison))


def run_page(log: RunLog) -> str:
    """A run's page: diagnoses, losses, samples, how it ran, what happened, settings, environment."""
    made = collect(log)
    latest = max((s.step for s in made if s.step is not None), default=None)
    fresh = sorted((s for s in made if s.step == latest or s.step is None), key=lambda s: KINDS.index(s.kind))
    values = [(s.key, _value(s.value), s.origin) for s in log.settings]
    settings = [{"key": key, "value": value, "origin": origin} for key, value, origin in values]
    return _PAGES.get_template("run.html").render(
        title=f"{log.name} - Bedplate run",
        version=bedplate.__version__,
        log=log,
        mood=MOODS.get(log.state, "busy"),
        subtitle=_subtitle(log),
        facts=_facts(log),
        diagnoses=diagnose(log),
        troubled=bool(figures.troubles(log)),
        losses=_losses(log),
        samples=fresh,
        older=[s for s in made if s not in fresh],
        safe_figure=Markup,
        code=code,
        figures=_figures(log),
        counts=[{"what": e.get("what", ""), "rows": _counts(e.get("counts"))} for e in log.named("counted")],
        moments=_moments(log),
        chosen=[{"what": "", "reason": ""} | e | {"value": _value(e.get("value"))} for e in log.named("chosen")],
        set_by_hand=[s for s in settings if s["origin"] != "default"],
        defaults=[s for s in settings if s["origin"] == "default"],
        environment=[(n.replace("_bytes", ""), format_bytes(number(v)) if n.endswith("_bytes") else v) for n, v in log.environment.items()],
    )


def comparison_page(comparison: Comparison) -> str:
    """The page that sets runs side by side: loss over steps, tokens and time, and the settings that differ."""
    logs = comparison.logs
    palette = [figures.SPARE[index % len(figures.SPARE)] for index in range(len(logs))]
    parts = []
    for part in comparison.parts:
        named = zip(comparison.names, palette, part.curves, strict=True)
        lines = [figures.Line(name, x, smooth(y, max(8.0, len(y) / 40)), colour) for name, colour, (x, y) in named]
        rows = [[_axis(part.axis, at), *(_loss(v) for v in values)] for at, values in part.rows]
        svg = Markup(figures.draw(lines, x_label="time, s" if part.axis == "time" else part.axis, size=(4.4, 2.6)))
        parts.append({"title": f"Loss at equal {part.axis}", "axis": part.axis, "svg": svg, "rows": rows})
    runs = [
        {"name": name, "state": log.state, "time": _time(log), "loss": _loss(_now(log, "loss"))}
        | {"steps": _last(log, "step"), "tokens": _last(log, "tokens")}
        for name, log in zip(comparison.names, logs, strict=True)
    ]
    return _PAGES.get_template("compare.html").render(
        title=" against ".join(comparison.names) if len(logs) < 4 else f"{len(logs)} runs compared",
        subtitle="Smoothed training loss; settings by their resolved values.",
        version=bedplate.__version__,
        runs=runs,
        parts=parts,
        differences=[[d.key, *(_value(v) for v in d.values)] for d in comparison.differences],
    )


def render(template: str, **values: Any) -> str:
    """A page of another room in the same dress: a template of templates/ that extends base.html. Strings are escaped, `Markup` is not."""
    return _PAGES.get_template(template).render(version=bedplate.__version__, **values)


def code(text: str) -> Markup:
    """Text with `what stands in backticks` as code; everything in it escaped."""
    shapes = (Markup("{}"), Markup("<code>{}</code>"))
    return Markup("").join(shapes[index % 2].format(piece) for index, piece in enumerate(text.split("`")))


def _subtitle(log: RunLog) -> str:
    if not log.events:
        return "no events yet"
    start, end = (number(log.events[index].get("t")) for index in (0, -1))
    if not (np.isfinite(start) and np.isfinite(end)):
        return log.kind
    try:
        when = dt.datetime.fromtimestamp(start, dt.UTC).strftime("%-d %B %Y, %H:%M UTC")
    except (ValueError, OverflowError, OSError):  # a clock that cannot be
        return log.kind
    return f"{log.kind} · began {when} · {format_seconds(max(end - start, 0))} from first to last event"


def _facts(log: RunLog) -> list[dict[str, str]]:
    facts: list[tuple[str, str]] = []
    if log.steps:
        steps = number(log.steps[-1].get("steps"))
        facts.append(("step" + (f" of {steps:,.0f}" if np.isfinite(steps) else ""), _last(log, "step")))
    if "loss" in log.losses:
        facts.append(("loss", _loss(_now(log, "loss"))))
    bits = [number(e.get("bits_per_byte")) for e in log.named("evaluated") if "bits_per_byte" in e]
    if bits and np.isfinite(bits[-1]):
        facts.append(("bits per byte, held-out", f"{bits[-1]:.3f}"))
    if np.isfinite(tokens := number(log.steps[-1].get("tokens"))) if log.steps else False:
        facts.append(("positions seen", format_count(tokens)))
    speed = log.column("units_per_s")
    if np.isfinite(speed).any():
        facts.append(("positions/s, median", format_count(float(np.nanmedian(speed)))))
    if log.steps:
        facts.append(("training time", _time(log)))
    memory = log.column("memory_bytes")
    if np.isfinite(memory).any():
        facts.append(("memory, peak", format_bytes(float(np.nanmax(memory)))))
    return [{"name": name, "value": value} for name, value in facts]


def _losses(log: RunLog) -> list[dict[str, str]]:
    """A card a loss: title, first and present value, held-out value, figure."""
    rows = []
    for name, svg in figures.losses(log).items():
        values = log.column(name)
        values = values[np.isfinite(values)]
        held_out = [number(e.get(name)) for e in log.named("evaluated") if name in e]
        first = float(values[: max(1, min(5, len(values) // 10))].mean()) if len(values) else np.nan
        title = "all together" if name == "loss" else name.removeprefix("loss_").replace("_", " ")
        row = {"title": title, "first": _loss(first), "now": _loss(_now(log, name)), "svg": Markup(svg)}
        rows.append(row | {"held_out": _loss(held_out[-1]) if held_out else ""})
    return rows


def _figures(log: RunLog) -> list[dict[str, Any]]:
    wanted = (
        ("units_per_s", "Throughput", "Positions a second, all senses.", "count", True),
        ("memory_bytes", "Memory", "In use by the process, or on the GPU.", "bytes", True),
        ("gradient_norm", "Gradient norm", "Before clipping.", "plain", True),
        ("lr", "Learning rate", "As the schedule gave it.", "plain", True),
    )
    made = [
        {"title": title, "note": note, "svg": Markup(figures.over_steps(log, name, kind, zero=zero))}
        for name, title, note, kind, zero in wanted
        if np.isfinite(log.column(name)).any()
    ]
    if np.isfinite(log.column("loader_s")).any() and np.isfinite(log.column("step_s")).any():
        note = "The whole step, and the wait for data in it."
        made.insert(1, {"title": "Time of a step", "note": note, "svg": Markup(figures.step_time(log))})
    return made


def _moments(log: RunLog) -> list[dict[str, str]]:
    start = number(log.events[0].get("t")) if log.events else np.nan
    elsewhere = ("sample", "chosen", "counted", "step", "progress")
    told = [(number(e.get("t")) - start, describe(e)) for e in log.events if e["event"] not in elsewhere]
    told = [(at, text) for at, text in told if text]
    if len(told) > MOMENTS:
        half = MOMENTS // 2
        told = [*told[:half], (np.nan, f"... {len(told) - MOMENTS:,} more ..."), *told[-half:]]
    return [{"at": f"+{format_seconds(at)}" if np.isfinite(at) else "", "text": text} for at, text in told]


def _counts(counts: Any) -> list[tuple[str, str]]:
    pairs = counts.items() if isinstance(counts, dict) else ()
    return [(str(name), f"{value:,}" if isinstance(value, int) else _value(value)) for name, value in pairs]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _loss(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "-"


def _now(log: RunLog, name: str) -> float:
    values = log.column(name)
    return float(smooth(values, max(8.0, len(values) / 40))[-1]) if len(values) else np.nan


def _last(log: RunLog, name: str) -> str:
    value = number(log.steps[-1].get(name)) if log.steps else np.nan
    return ("-" if not np.isfinite(value) else f"{value:,.0f}") if name == "step" else (format_count(value) if np.isfinite(value) else "-")


def _time(log: RunLog) -> str:
    seconds = log.seconds()
    return format_seconds(float(seconds[-1])) if len(seconds) and np.isfinite(seconds[-1]) else "-"


def _axis(axis: str, value: float) -> str:
    return format_seconds(value) if axis == "time" else f"{value:,.0f}" if axis == "steps" else format_count(value)
