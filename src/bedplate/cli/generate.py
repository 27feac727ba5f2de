"""`bedplate generate`: text, pictures, sounds and forecasts from a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from bedplate.cli.app import Here, ModelFolder


def generate(
    model: ModelFolder,
    prompt: str = "",
    *,
    sense: Literal["text", "image", "audio", "video", "series"] = "text",
    out: Path | None = None,
    n: int = 1,
    seed: int = 0,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    most_tokens: int = 100,
    fill: str = "",
    complete: Path | None = None,
    known: float = 0.5,
    guidance: float = 2.0,
    seconds: float = 2.0,
    series: Path | None = None,
    points: int = 64,
    console: Here,
) -> None:
    """Make text, pictures, sounds, clips or forecasts with a model.

    Args:
        model: a model folder.
        prompt: what stands before: the beginning of a text, or the caption of a picture or a sound.
        sense: what to make.
        out: file to write: .txt, .png, .wav, .gif or .csv; several get numbers. By default made-<sense>.<kind>.
        n: how many.
        seed: of the draws; equal seeds make equal things.
        temperature: of text; 0 takes the likeliest token.
        top_k: of text: only the k likeliest tokens; 0: all.
        top_p: of text: only the likeliest tokens that together have this probability.
        most_tokens: longest text.
        fill: fill in a text's middle: "before<FILL>after".
        complete: a picture whose first part is kept and the rest made anew.
        known: share of that picture that is kept.
        guidance: how strongly pictures and sounds follow the caption; 1 follows, 1.5 to 3 insists.
        seconds: longest sound.
        series: a CSV (or other table) of numbers; its channels are forecast.
        points: points to forecast.
    """
    from bedplate.core.errors import ConfigError
    from bedplate.infer.generate import Generation

    if fill and "<FILL>" not in fill:
        raise ConfigError("--fill has no <FILL>", 'write --fill "before<FILL>after"')
    with Generation.load(model) as made:
        if fill:
            before, _, after = fill.partition("<FILL>")
            _text(made.fill_in(before, after, n, most_tokens, temperature, top_k, top_p, seed), before, after, out, console)
        elif series is not None or sense == "series":
            if series is None:
                raise ConfigError("a forecast needs the past", "give it with --series FILE.csv")
            _forecast(made, series, points, seed, out, console)
        elif complete is not None or sense == "image":
            from bedplate.modality import image

            given = image.decode(complete.read_bytes(), made.model.config.senses.image or _missing("image")) if complete is not None else None
            pictures = made.image(prompt, n, guidance, seed, known=given, known_share=known)
            _files([image.encode(p) for p in pictures], out or Path("made-image.png"), prompt, console)
        elif sense == "audio":
            from bedplate.modality import audio

            sounds = made.audio(prompt, n, seconds, guidance, seed)
            rate = (made.model.config.senses.audio or _missing("audio")).sample_rate
            _files([audio.encode(s, rate) for s in sounds], out or Path("made-audio.wav"), prompt, console)
        elif sense == "video":
            from bedplate.modality import video

            _files([video.encode(clip) for clip in made.video(prompt, n, guidance=guidance, seed=seed)], out or Path("made-video.gif"), prompt, console)
        else:
            _text(made.text(prompt, n, most_tokens, temperature, top_k, top_p, seed), prompt, "", out, console)


def _missing(sense: str) -> Any:
    from bedplate.core.errors import ConfigError

    raise ConfigError(f"the model never learned {sense}", "train one on a corpus that has it")


def _text(texts: list[str], before: str, after: str, out: Path | None, console: Any) -> None:
    from bedplate.core.files import write_text

    whole = [f"{before}{text}{after}" for text in texts]
    if out is not None:
        write_text(out, "\n\n".join(whole) + "\n")
    for text in whole:
        console.print(text)
    console.data({"texts": texts, "out": str(out) if out else None})


def _forecast(made: Any, path: Path, points: int, seed: int, out: Path | None, console: Any) -> None:
    from bedplate.core.errors import DataError
    from bedplate.core.files import write_bytes
    from bedplate.data.document import Document
    from bedplate.data.sources import SourceSettings, read
    from bedplate.modality import series as numbers

    columns: dict[str, Any] = {}
    for found in read([str(path)], SourceSettings(), made.model.config.senses):
        if isinstance(found, Document) and found.component == "series":
            for name, channel in zip(found.segments[::2], found.segments[1::2]):
                forecast = made.series(channel.value, points, str(name.value), seed=seed)
                columns |= {str(name.value): forecast.median, f"{name.value} low": forecast.low, f"{name.value} high": forecast.high}
    if not columns:
        raise DataError(f"{path} has no channel to forecast", "give a table with a varying column of numbers")
    target = out or Path("made-series.csv")
    write_bytes(target, numbers.encode(columns))
    console.say(f"{len(columns) // 3} channels, {points} points each, in {target}")
    console.data({"out": str(target), "channels": [name for name in columns if not name.endswith((" low", " high"))]})


def _files(contents: list[bytes], out: Path, prompt: str, console: Any) -> None:
    from bedplate.core.files import write_bytes

    paths = [out] if len(contents) == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(1, len(contents) + 1)]
    for path, content in zip(paths, contents):
        write_bytes(path, content)
    console.say(f"{', '.join(map(str, paths[:4]))}{' ...' if len(paths) > 4 else ''}" + (f": {prompt}" if prompt else ""))
    console.data({"files": [str(path) for path in paths], "prompt": prompt})
