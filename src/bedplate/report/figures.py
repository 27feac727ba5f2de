"""Figures of a run as SVG in one style. Colours are CSS variables, so one figure serves light and dark pages.

Every function is pure: columns in, SVG text out. `--ink`, `--faint`, `--c-<name>` are defined by the page (html.py).
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullLocator

from bedplate.core.narrate import number
from bedplate.core.units import format_bytes, format_seconds
from bedplate.report.log import Column, RunLog, smooth

SENSE_COLOURS = {
    "loss": "#000101",
    "text": "#000201",
    "image": "#000301",
    "audio": "#000401",
    "video": "#000501",
    "series": "#000601",
}
"""Name -> the stand-in colour that becomes `var(--c-<name>)`; never seen by a reader."""

SPARE = [f"#00{n:02x}02" for n in range(1, 9)]
"""Stand-ins for lines without a sense, such as the runs of a comparison: `var(--c-1)` and on."""

_VARIABLES = {colour: f"var(--c-{name})" for name, colour in SENSE_COLOURS.items()}
_VARIABLES |= {colour: f"var(--c-{number})" for number, colour in enumerate(SPARE, 1)}
_VARIABLES |= {"#000103": "var(--ink)", "#000203": "var(--faint)", "#000303": "var(--alarm)"}
INK, FAINT, ALARM = "#000103", "#000203", "#000303"

POINTS = 600
"""Most points of a drawn line: more cannot be seen and make the page heavy."""

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bedplate",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "text.parse_math": False,  # labels come from a log: a $ is a $
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


class Line(NamedTuple):
    """One line of a figure; `faint` values are drawn pale behind it, `dots` are marks of their own (held-out losses)."""

    label: str
    x: Column
    y: Column
    colour: str
    faint: Column | None = None
    dots: tuple[Column, Column] | None = None


def draw(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_format: str = "plain",
    marks: Sequence[float] = (),
    zero: bool = False,
    x_ticks: Sequence[float] = (),
    size: tuple[float, float] = (4.0, 2.2),
) -> str:
    """One figure as SVG.

    Args:
        lines: what to draw; those without a finite value are left out.
        x_label: what x counts.
        y_format: "plain", "count", "bytes", "seconds", or a unit to write after the number.
        marks: x of moments to point at (health events).
        zero: whether y starts at 0.
        x_ticks: where x is written, on a logarithmic axis; none: a linear one with round numbers.
        size: inches; text keeps its size, so small figures suit narrow pages.
    """
    lines = [line for line in lines if np.isfinite(line.y).any()]
    if y_format == "bytes":
        lines, y_format = _in_one_unit(lines)
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        for line in lines:
            _draw_line(axes, line)
        for mark in marks:
            axes.axvline(mark, color=ALARM, linewidth=1.0, linestyle=(0, (2, 2)))
        axes.set_xlabel(x_label)
        if x_ticks:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(list(x_ticks))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        else:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(_formatter(y_format))
        _limits(axes, lines, zero)
        if len(lines) > 1:
            figure.legend(loc="outside upper left", ncols=min(len(lines), 3), handlelength=1.1, columnspacing=1.2, borderaxespad=0.1)
        return _svg(figure)


def alone(figure: str, width: int = 480) -> str:
    """A figure as a file of its own, in the pages' colours, light or dark as its reader's screen is.

    Args:
        figure: what `draw` gives.
        width: pixels, where nobody asks for another.
    """
    page = (Path(__file__).parent / "templates" / "base.html").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", part)) for part in page[: page.index("</style>")].split("prefers-color-scheme: dark", 1))
    used = sorted(set(re.findall(r"var\((--[\w-]+)\)", figure)))

    def root(theme: dict[str, str]) -> str:
        return ":root { " + " ".join(f"{name}: {theme[name]};" for name in used) + " }"

    style = f"<style>{root(light)} @media (prefers-color-scheme: dark) {{ {root(dark)} }} text {{ font-family: system-ui, sans-serif; }}</style>"
    head, bracket, body = figure.partition(">")
    return head.replace("<svg", f'<svg width="{width}"', 1) + bracket + style + body


def losses(log: RunLog) -> dict[str, str]:
    """Name of each loss -> its figure: pale as logged, strong smoothed, dots held-out. Senses do not share a scale, so each has its own."""
    step = log.column("step")
    out = {}
    for name, colour in zip(log.losses, colours(log.losses), strict=True):
        values = log.column(name)
        held_out = [(number(e.get("step")), number(e.get(name))) for e in log.named("evaluated")]
        held_out = [(at, loss) for at, loss in held_out if np.isfinite(at) and np.isfinite(loss)]
        dots = (np.array([at for at, _ in held_out]), np.array([loss for _, loss in held_out])) if held_out else None
        strong = np.where(np.isfinite(values), smooth(values, max(8.0, len(values) / 40)), np.nan)
        out[name] = draw([Line(name, step, strong, colour, faint=values, dots=dots)], x_label="step", marks=troubles(log))
    return out


def over_steps(log: RunLog, name: str, y_format: str = "plain", *, zero: bool = True, colour: str = INK) -> str:
    """One column over steps, smoothed over its pale self."""
    values = log.column(name)
    strong = values if name in ("lr", "memory_bytes") else smooth(values, max(8.0, len(values) / 40))
    line = Line(name, log.column("step"), strong, colour, faint=None if strong is values else values)
    return draw([line], x_label="step", y_format=y_format, zero=zero, marks=troubles(log))


def step_time(log: RunLog) -> str:
    """Where a step's time goes: the whole step, and the wait for data within it."""
    step = log.column("step")
    span = max(8.0, len(step) / 40)
    lines = [
        Line("whole step", step, smooth(log.column("step_s"), span), INK),
        Line("waiting for data", step, smooth(log.column("loader_s"), span), SENSE_COLOURS["image"]),
    ]
    return draw(lines, x_label="step", y_format="seconds", zero=True)


def series(values: Column) -> str:
    """A telemetry sample as a line."""
    point = np.arange(len(values), dtype=np.float64)
    return draw([Line("value", point, values, SENSE_COLOURS["series"])], x_label="point", size=(4.0, 1.6))


def histogram(values: Column, name: str, x_label: str, bins: int = 28) -> str:
    """How often which size occurs, sizes on a logarithmic axis where they spread over more than a factor of eight.

    Args:
        values: positive sizes.
        name: whose colour it has: one of SENSE_COLOURS, or any other word.
        x_label: what is counted.
    """
    low, high = float(values.min()), float(values.max())
    wide = high > 8 * max(low, 1.0)
    edges = np.geomspace(max(low, 1.0), high + 1, bins + 1) if wide else np.linspace(low - 0.5, high + 0.5, min(bins, round(high - low) + 1) + 1)
    counts, _ = np.histogram(values, edges)
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.0, 1.9), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.94, align="edge", color=SENSE_COLOURS.get(name, SPARE[6]), zorder=2)
        if wide:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel(x_label)
        return _svg(figure)


def spectrogram(sound: Column, sample_rate: int) -> bytes:
    """Log-magnitude spectrogram of a mono sound as PNG, low frequencies at the bottom, 60 dB of range."""
    from matplotlib.image import imsave

    window = 512
    sound = np.pad(sound.astype(np.float64), (0, max(0, window - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[:: max(128, len(sound) // 1200)]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    top = round(window * min(8000.0, sample_rate / 2) / sample_rate) + 1
    decibels = 10 * np.log10(np.maximum(power[:, :top].T, 1e-12))
    out = io.BytesIO()
    imsave(out, np.clip(decibels, decibels.max() - 60, None), cmap="magma", origin="lower", format="png")
    return out.getvalue()


def colours(names: Sequence[str]) -> list[str]:
    """A stand-in colour per name: a sense keeps its own, its further losses and unknown names get spare ones."""
    taken: set[str] = set()
    out = []
    for name in names:
        own = SENSE_COLOURS.get(name if name in SENSE_COLOURS else name.removeprefix("loss_").split("_")[0])
        colour = own if own and own not in taken else next((c for c in SPARE if c not in taken), INK)
        taken.add(colour)
        out.append(colour)
    return out


def troubles(log: RunLog) -> list[float]:
    """Steps at which a health event happened; too many to tell apart are thinned."""
    steps = sorted({at for e in log.named("health") if np.isfinite(at := number(e.get("step")))})
    return steps[:: max(1, len(steps) // 40)]


def _draw_line(axes: Axes, line: Line) -> None:
    if line.faint is not None:
        axes.plot(*_thin(line.x, line.faint), color=line.colour, linewidth=0.8, alpha=0.25)
    axes.plot(*_thin(line.x, line.y), color=line.colour, label=line.label)
    if line.dots is not None:
        axes.plot(*line.dots, "o", color=line.colour, markersize=4.5)


def _limits(axes: Axes, lines: Sequence[Line], zero: bool) -> None:
    """Leave the outermost values of the faint lines out, so that one spike does not flatten the figure."""
    values = [v[np.isfinite(v)] for line in lines for v in (line.y, line.faint) if v is not None]
    dots = [line.dots[1] for line in lines if line.dots is not None]
    everything = np.concatenate([*values, *dots]) if values else np.zeros(1)
    low, high = np.percentile(everything, (0.2, 99.5)) if len(everything) > 50 else (everything.min(), everything.max())
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    axes.set_ylim(0.0 if zero else low - room, high + room)


def _thin(x: Column, y: Column) -> tuple[Column, Column]:
    """At most POINTS points: of each stretch the mean, so that the eye sees the same line."""
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)
    return _means(x, edges), _means(y, edges)


def _means(values: Column, edges: np.ndarray) -> Column:
    finite = np.isfinite(values)
    totals = np.add.reduceat(np.where(finite, values, 0.0), edges[:-1])
    counts = np.add.reduceat(finite.astype(np.float64), edges[:-1])
    means: Column = np.divide(totals, counts, out=np.full(len(totals), np.nan), where=counts > 0)
    return means


def _formatter(kind: str) -> FuncFormatter | EngFormatter:
    if kind == "count":
        return EngFormatter(sep="", places=None)
    if kind == "seconds":
        return FuncFormatter(lambda value, _: format_seconds(value) if value else "0")
    unit = "" if kind == "plain" else f" {kind}"
    return FuncFormatter(lambda value, _: f"{value:.4g}{unit}" if value else "0")


def _in_one_unit(lines: Sequence[Line]) -> tuple[list[Line], str]:
    """Bytes in the unit that suits the largest value, so that the axis has round numbers in it."""
    top = max((float(np.nanmax(line.y)) for line in lines), default=0.0)
    unit = format_bytes(top).split()[-1]
    factor = 1024.0 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    return [line._replace(y=line.y / factor, faint=None if line.faint is None else line.faint / factor) for line in lines], unit


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element that fills its place, with CSS variables for stand-in colours and the page's own font."""
    out = io.StringIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    head, bracket, body = text.partition(">")
    text = re.sub(r' (width|height)="[^"]*"', "", head).replace("<svg", '<svg class="figure"', 1) + bracket + body
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # ids of several figures on one page would collide
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"(?:#00[0-9a-f]{4})", lambda match: _VARIABLES.get(match[0], match[0]), text)
    return text
