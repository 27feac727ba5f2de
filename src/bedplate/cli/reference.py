"""Makes the reference pages that come from the code: docs/commands.md, docs/settings.md, docs/errors.md, and the frozen command line.

    python -m bedplate.cli.reference          # writes them; `make docs` calls it, and a test fails when one is stale
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import bedplate
from bedplate.core import errors
from bedplate.core.events import EVENTS

ROOT = Path(__file__).resolve().parents[3]

TOPICS: tuple[tuple[str, str, str], ...] = (
    ("bedplate.data.build_settings", "BuildSettings", "`bedplate data build`"),
    ("bedplate.pretrain.settings", "PretrainSettings", "`bedplate pretrain plan` and `run`"),
    ("bedplate.adapt.settings", "AdaptSettings", "`bedplate adapt`"),
    ("bedplate.evaluate.settings", "EvaluateSettings", "`bedplate evaluate run`"),
    ("bedplate.evaluate.tasks.own", "OwnTaskSettings", "a task of your own, `bedplate evaluate run --tasks FILE.toml`"),
    ("bedplate.serve.settings", "ServeSettings", "`bedplate serve`"),
    ("bedplate.infer.engine_settings", "EngineSettings", "`[models.NAME] options` of the native engine"),
    ("bedplate.infer.backends.llama_cpp", "Settings", "`[models.NAME] options` of llama.cpp"),
    ("bedplate.infer.backends.remote", "Settings", "`[models.NAME] options` of a remote endpoint"),
    ("bedplate.serve.routes", "RoutesSettings", "routes.toml of the gateway"),
    ("bedplate.serve.guard_rules", "GuardSettings", "guards.toml of the gateway"),
    ("bedplate.advise.tour.stages", "TourSettings", "`bedplate tour`"),
)
"""(module, dataclass, where it is used) of every table of settings a person can write."""


def pages() -> dict[Path, str]:
    """Every generated file and what it should say."""
    docs = ROOT / "docs"
    return {
        docs / "commands.md": commands(),
        docs / "settings.md": settings(),
        docs / "errors.md": error_page(),
        ROOT / "tests" / "project" / "cli_surface.txt": surface(),
    }


def main() -> None:
    """Write them."""
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def functions() -> Iterator[tuple[str, str, Any]]:
    """(command, its line of help, its function) of every command."""
    from bedplate.cli.app import COMMANDS

    for name, command in COMMANDS.items():
        module, _, function = command.target.partition(":")
        yield name, command.help, getattr(importlib.import_module(module), function)


def parameters(function: Any) -> Iterator[tuple[str, str, str]]:
    """(how it is written, default, type) of each parameter of a command."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "console":
            continue
        flag = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        name = "--set" if parameter.name == "overrides" else f"--{parameter.name.replace('_', '-')}" if flag else parameter.name.upper()
        default = "" if parameter.default is inspect.Parameter.empty else str(parameter.default)
        yield name, default, str(parameter.annotation).replace("typing.", "")


def argument_help(function: Any) -> dict[str, str]:
    """Parameter -> its help, from the docstring."""
    text = inspect.getdoc(function) or ""
    found: dict[str, str] = {}
    name = ""
    for line in text.partition("Args:")[2].splitlines():
        stripped = line.strip()
        head, colon, rest = stripped.partition(":")
        if line.startswith("    ") and not line.startswith("     ") and colon and head.isidentifier():
            name, found[head] = head, rest.strip()
        elif name and stripped:
            found[name] += f" {stripped}"
    return found


def commands() -> str:
    """docs/commands.md."""
    lines = ["# Commands", "", "Made from the code by `make docs`. Every command also takes `--json`, `--plain`, `--debug` and `--help`."]
    for name, line, function in functions():
        lines += ["", f"## bedplate {name}", "", f"{line}.", "", "| argument | default | what |", "| --- | --- | --- |"]
        told = argument_help(function)
        for flag, default, _ in parameters(function):
            key = "overrides" if flag == "--set" else flag.lstrip("-").replace("-", "_").lower()
            what = "a setting, as table.key=value; may be repeated" if flag == "--set" else told.get(key, "")
            lines.append(f"| `{flag}` | {f'`{default}`' if default else ''} | {_cell(what)} |")
    return "\n".join(lines) + "\n"


def surface() -> str:
    """The command line in one text: a change of it is a decision, not an accident."""
    lines = []
    for name, _, function in functions():
        lines.append(name)
        lines += [f"  {flag} {default}".rstrip() for flag, default, _ in parameters(function)]
    return "\n".join(lines) + "\n"


def settings() -> str:
    """docs/settings.md."""
    lines = ["# Settings", "", "Made from the code by `make docs`. Write them in a TOML file, or as `--set table.key=value`."]
    for module, name, where in TOPICS:
        lines += ["", f"## {where}", "", "| key | default | what |", "| --- | --- | --- |"]
        for key, default, what in keys(getattr(importlib.import_module(module), name)):
            lines.append(f"| `{key}` | {f'`{default}`' if default != '' else ''} | {_cell(what)} |")
    return "\n".join(lines) + "\n"


def keys(cls: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, what it does) of every setting; what it does is the string below the field."""
    told = field_docs(cls)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, f"{prefix}{field.name}.")
            continue
        if (repeated := table_of(hint)) is not None:
            yield from keys(repeated[0], f"{prefix}{field.name}{repeated[1]}.")
            continue
        value = field.default if field.default is not dataclasses.MISSING else field.default_factory() if callable(field.default_factory) else ""
        yield f"{prefix}{field.name}", str(value), told.get(field.name, "")


def table_of(hint: Any) -> tuple[Any, str] | None:
    """(dataclass, how its place is written) where a setting is a table by name (`.NAME`) or a list of tables (`[]`); None: it is neither."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and arguments and dataclasses.is_dataclass(arguments[0]):
        return arguments[0], "[]"
    if isinstance(origin, type) and issubclass(origin, Mapping) and dataclasses.is_dataclass(arguments[1]):
        return arguments[1], ".NAME"
    return None


def field_docs(cls: Any) -> dict[str, str]:
    """Field -> the string literal under it."""
    tree = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = str(below.value.value)
    return found


def error_page() -> str:
    """docs/errors.md."""
    lines = ["# Errors and events", "", "Made from the code by `make docs`. An error prints `error:` and, where something can be done, `hint:` on stderr.", ""]
    lines += ["| exit code | error | when |", "| --- | --- | --- |", "| 0 | | all went well |"]
    classes: list[type[errors.BedplateError]] = [errors.BedplateError, *errors.BedplateError.__subclasses__()]
    for cls in classes:
        lines.append(f"| {cls.exit_code} | {cls.__name__} | {_cell((inspect.getdoc(cls) or '').splitlines()[0])} |")
    lines += ["| 130 | | interrupted, by Ctrl-C or SIGTERM; long work goes on where the same command is given again |"]
    lines += ["", "## Events", "", "What a run writes to `events.jsonl`, a JSON object a line.", ""]
    lines += ["| event | fields |", "| --- | --- |", *(f"| {name} | {_cell(fields)} |" for name, fields in EVENTS.items())]
    from bedplate.data.sources import REASONS

    lines += ["", "## Why an input is skipped", "", "| reason | what it means |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(why)} |" for name, why in REASONS.items()]
    return "\n".join(lines) + "\n"


def settings_classes() -> Iterator[type]:
    """Every dataclass of the package whose name ends in Settings."""
    for module in pkgutil.walk_packages(bedplate.__path__, "bedplate."):
        if module.name.endswith((".speech", "cli.reference")):
            continue
        loaded = importlib.import_module(module.name)
        for value in vars(loaded).values():
            if inspect.isclass(value) and value.__module__ == module.name and value.__name__.endswith("Settings") and dataclasses.is_dataclass(value):
                yield value


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
