"""Settings: strict TOML into frozen dataclasses, each value knowing where it came from.

    settings = load(PretrainSettings, path=Path("recipe.toml"), overrides=["optim.lr_peak=1e-3"])
    settings.value.optim.lr_peak        -> 1e-3
    settings.origins["optim.lr_peak"]   -> "--set"

Unknown keys are errors with a did-you-mean; types are checked, never coerced except int -> float. Nested dataclasses are tables.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Union

from bedplate.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Resolved(Generic[T]):
    """Settings with the origin of each: "default", the file's name, "--set", or a word for who derived it."""

    value: T
    origins: Mapping[str, str]


def load(cls: type[T], *, path: Path | None = None, overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> Resolved[T]:
    """Settings from a file, then `--set` overrides, then values given on the command line.

    Args:
        cls: a frozen dataclass whose fields all have defaults (or are given).
        path: a TOML file.
        overrides: strings "a.b=value"; the value is TOML, or a bare word taken as a string.
        given: dotted key -> value, the strongest; None values are skipped.
    Raises:
        ConfigError: unknown key, wrong type, broken TOML.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"no settings file {path}", "check the path") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {error}", "settings are TOML: key = value, [table]") from error
        origins = {key: path.name for key, _ in flatten(tree)}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override!r} has no '='", "write --set table.key=value")
        _plant(tree, key.strip(), parse_value(text.strip()))
        origins[key.strip()] = "--set"
    for key, value in (given or {}).items():
        if value is not None:
            _plant(tree, key, value)
            origins[key] = "command line"
    value = from_mapping(cls, tree)
    return Resolved(value, {key: origins.get(key, "default") for key, _ in flatten(to_mapping(value))})


def parse_value(text: str) -> Any:
    """The TOML value written in `text`; a bare word is a string."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def from_mapping(cls: type[T], tree: Mapping[str, Any], prefix: str = "") -> T:
    """Build a dataclass from nested mappings, refusing what it does not know."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, raw in tree.items():
        if key not in fields:
            raise ConfigError(f"unknown setting {prefix}{key}", did_you_mean(key, fields))
        values[key] = _convert(raw, hints[key], f"{prefix}{key}")
    absent = dataclasses.MISSING
    missing = [name for name, f in fields.items() if name not in values and f.default is absent and f.default_factory is absent]
    if missing:
        raise ConfigError(f"setting {prefix}{missing[0]} is required", f"add {missing[0]} = ... of type {_name(hints[missing[0]])}")
    return cls(**values)


def to_mapping(value: Any) -> Any:
    """Dataclasses to plain nested dicts and lists (None stays None)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {k: to_mapping(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_mapping(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_toml(resolved: Resolved[Any]) -> str:
    """The resolved settings as TOML, each line with its origin as a comment. None values are left out, as TOML has no null."""
    import json

    tables: dict[str, list[str]] = {}
    for key, value in flatten(to_mapping(resolved.value)):
        if value is None or value == {}:
            continue
        table, _, name = key.rpartition(".")
        tables.setdefault(table, []).append(f"{name} = {json.dumps(value, ensure_ascii=False)}  # {resolved.origins.get(key, 'default')}")
    blocks = ["\n".join(lines) if not table else f"[{table}]\n" + "\n".join(lines) for table, lines in sorted(tables.items())]
    return "\n\n".join(blocks) + "\n"


def _plant(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *tables, name = dotted.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{dotted}: {table} is a value, not a table", "check the dots in the key")
    tree[name] = value


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint)


def _convert(raw: Any, hint: Any, key: str) -> Any:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    wrong = ConfigError(f"{key} = {raw!r} is not of type {_name(hint) if origin is None else hint}", f"give {key} a value of that type")
    if origin in (Union, types.UnionType):
        if raw is None and type(None) in arguments:
            return None
        for option in arguments:
            if option is type(None):
                continue
            try:
                return _convert(raw, option, key)
            except ConfigError:
                continue
        raise wrong
    if origin is Literal:
        if raw in arguments and type(raw) in {type(a) for a in arguments}:
            return raw
        raise ConfigError(f"{key} = {raw!r} is not one of its choices", did_you_mean(str(raw), [str(a) for a in arguments]))
    if dataclasses.is_dataclass(hint):
        if not isinstance(raw, Mapping):
            raise wrong
        return from_mapping(hint, raw, f"{key}.")  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(raw, (list, tuple)):
            raise wrong
        inner = [arguments[0]] * len(raw) if len(arguments) == 2 and arguments[1] is Ellipsis else list(arguments)
        if len(inner) != len(raw):
            raise wrong
        return tuple(_convert(item, h, f"{key}[{i}]") for i, (item, h) in enumerate(zip(raw, inner)))
    if origin in (dict, Mapping) or (origin is not None and isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(raw, Mapping):
            raise wrong
        return {str(k): _convert(v, arguments[1], f"{key}.{k}") for k, v in raw.items()}
    if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if hint is Path and isinstance(raw, str):
        return Path(raw)
    if hint is Any or (isinstance(hint, type) and type(raw) is hint) or (hint is Path and isinstance(raw, Path)):
        return raw
    raise wrong
