"""The `bedplate` command: one lazy table, and what every command has in common.

How to write a command (cli/data.py, cli/pretrain.py, ...): a typed function with a Google docstring. Parameters before `*` are arguments,
those after it are flags; the first docstring line and `Args:` are the help. It parses nothing, it calls the library and prints:

    from bedplate.cli.app import Here, Overrides

    def build(sources: list[Path], *, to: Path, settings: Path | None = None, overrides: Overrides = (), console: Here) -> None:
        '''Build a corpus from raw files.

        Args:
            sources: files, folders, archives or globs.
            to: the corpus folder to write.
        '''
        resolved = load(BuildSettings, path=settings, overrides=overrides, given={"to": to})
        with Run.open(to / "run", "data build", resolved, listeners=(console,)) as run:
            manifest = build_corpus(resolved.value, run)
        console.table(("component", "documents"), rows, title="corpus")   # people, stdout; silent under --json
        console.data({"folder": str(to), "documents": 12})                # machines, stdout; silent without --json

`--json`, `--plain`, `--debug` work on every command wherever they stand before `--`; `main` takes them away before the command's own
flags are parsed and hands the command a matching `Console` (see core/console.py) in the parameter annotated `Here`. Commands raise
BedplateError and never call sys.exit. Only the module of the typed command is imported: torch stays out of `--help`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter

import bedplate
from bedplate.core.console import INTERRUPTED, Console
from bedplate.core.errors import BedplateError, ConfigError, did_you_mean, from_system

if TYPE_CHECKING:
    from inspect import BoundArguments

Here = Annotated[Console, Parameter(parse=False)]
"""Annotation of the parameter that receives the Console of this invocation."""

Overrides = Annotated[tuple[str, ...], Parameter(name="--set", help="A setting, as table.key=value; may be repeated.", negative=())]
"""Annotation of the repeatable `--set table.key=value` (give it the default `()`), ready for `config.load(overrides=...)`."""


def _model_folder(kind: Any, tokens: Sequence[Any]) -> Path:
    """A folder as typed; or, where there is none, the folder of a model that `bedplate get` fetched under that name."""
    from bedplate.core.home import home

    typed = Path(tokens[0].value)
    fetched = home() / "models" / typed
    return fetched if len(typed.parts) == 1 and not typed.exists() and fetched.is_dir() else typed


ModelFolder = Annotated[Path, Parameter(converter=_model_folder)]
"""Annotation of a parameter that takes a model folder, or the name of a fetched model."""


@dataclass(frozen=True)
class Command:
    """One line of the table: where the function lives, and what it does in one line."""

    target: str
    help: str


COMMANDS: dict[str, Command] = {
    "tour": Command("bedplate.cli.tour:tour", "Learn one small model of six senses from real files, then use it"),
    "data build": Command("bedplate.cli.data:build", "Build a corpus from raw files, folders and archives"),
    "data inspect": Command("bedplate.cli.data:inspect", "Show what is in a corpus, and what was dropped and why"),
    "data trace": Command("bedplate.cli.trace:trace", "List the documents that a training step saw"),
    "pretrain plan": Command("bedplate.cli.pretrain:plan", "Parameters, memory, time and FLOPs; trains nothing"),
    "pretrain run": Command("bedplate.cli.pretrain:run", "Pre-train a model on a corpus; continues where it stopped"),
    "get": Command("bedplate.cli.get:get", "Fetch a model by name, path or hf:OWNER/NAME; list the known ones"),
    "export": Command("bedplate.cli.get:export", "A model as a GGUF file that llama.cpp agreed with, or as a Hugging Face folder"),
    "adapt": Command("bedplate.cli.adapt:adapt", "Adapt a base to a job; continues where it stopped"),
    "predict": Command("bedplate.cli.adapt:predict", "What an adapted base says of the examples in a file"),
    "merge": Command("bedplate.cli.adapt:merge", "Fold adapters into their base, as an ordinary model"),
    "evaluate run": Command("bedplate.cli.evaluate:run", "Measure a model on tasks, every score with its interval; continues where it stopped"),
    "evaluate compare": Command("bedplate.cli.evaluate:compare", "Compare two measurements example by example, in words"),
    "evaluate tasks": Command("bedplate.cli.evaluate:tasks", "The tasks that are known by name, and the files each needs"),
    "generate": Command("bedplate.cli.generate:generate", "Text, pictures, sound and series from a model"),
    "chat": Command("bedplate.cli.chat:chat", "Talk to a model, with an adapter or without"),
    "embed": Command("bedplate.cli.embed:embed", "Vectors for files of any sense"),
    "serve": Command("bedplate.cli.serve:serve", "Answer over HTTP for a model and its adapters, in OpenAI's words"),
    "serve key add": Command("bedplate.cli.serve_key:add", "Make a key for the gateway; it is shown once"),
    "serve key list": Command("bedplate.cli.serve_key:list_keys", "The gateway's keys: whose, what for, until when, last used"),
    "serve key revoke": Command("bedplate.cli.serve_key:revoke", "Make a key useless, at once and for good"),
    "serve audit verify": Command("bedplate.cli.serve_audit:verify", "Find any flipped, deleted, reordered or truncated record of the audit"),
    "serve receipt verify": Command("bedplate.cli.serve_audit:receipt", "Check the gateway's signature on an answer's receipt"),
    "runs list": Command("bedplate.cli.runs:list_runs", "The runs in a folder: state, step, loss, age"),
    "runs watch": Command("bedplate.cli.runs:watch", "Follow a run live"),
    "runs report": Command("bedplate.cli.runs:report", "Write a run's one-file HTML report"),
    "runs compare": Command("bedplate.cli.runs:compare", "Compare runs: settings that differ, loss at equal steps, tokens and time"),
    "runs doctor": Command("bedplate.cli.runs:doctor", "Probable causes of a run's trouble, with the evidence"),
    "doctor": Command("bedplate.cli.runs:doctor", "The same as `runs doctor`"),
}
"""Every command: its path -> function and one-line help."""

FLAGS = {
    "--json": "machine-readable result on stdout, events as JSON lines on stderr",
    "--plain": "no colours and no live display",
    "--debug": "show the trace of an error",
}
"""Flags that every command takes."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    # Threads that wait for each other spin by default; where another program takes a core, a training step then takes ten times as long
    # (docs/journal.md). Must be set before torch is loaded; who sets it knows better.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    tokens, flags = split_flags(sys.argv[1:] if arguments is None else arguments)
    console = Console.create(json="--json" in flags, plain="--plain" in flags)
    code = 0
    try:
        dispatch(tokens, console)
        sys.stdout.flush()
    except BedplateError as error:
        code = _fail(console, error, error.exit_code, "--debug" in flags)
    except KeyboardInterrupt:
        console.close()
        console.say("interrupted")
        code = INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        unforeseen = BedplateError(f"{type(error).__name__}: {error}".replace("\n", " "), "this was not foreseen; --debug shows the trace")
        told = from_system(error) or unforeseen
        told.__cause__ = error
        code = _fail(console, told, told.exit_code, "--debug" in flags)
    finally:
        console.close()
    if code:
        raise SystemExit(code)


def dispatch(tokens: list[str], console: Console) -> None:
    """Find the command in the table, import its module, parse and call.

    Raises:
        ConfigError: there is no such command, or its arguments do not fit.
    """
    if tokens and tokens[0] == "--version":
        console.print(bedplate.__version__)
        console.data({"version": bedplate.__version__})
        return
    path = command_path(tokens)
    rest = tokens[len(path.split()) :]
    if path not in COMMANDS:
        if rest and not rest[0].startswith("-"):
            wrong = " ".join([*path.split(), *rest][:2])
            raise ConfigError(f"there is no command {wrong!r}", did_you_mean(wrong, COMMANDS))
        console.print(help_page(path))
        console.data({name: command.help for name, command in COMMANDS.items() if name.startswith(path)})
        return
    app = application(path)
    app.console = console.stdout
    try:
        function, bound, injected = app.parse_args(rest, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise ConfigError(_one_line(error), f"see `bedplate {path} --help`") from error
    _call(function, bound, injected, console)


def command_path(tokens: Sequence[str]) -> str:
    """The longest command or group that the tokens start with; "" for the top."""
    groups = {" ".join(name.split()[:length]) for name in COMMANDS for length in range(1, len(name.split()) + 1)}
    path = ""
    for token in tokens:
        longer = f"{path} {token}".strip()
        if longer not in groups:
            break
        path = longer
    return path


def application(path: str) -> App:
    """The parser of one command, made from its function's signature and docstring. Imports the command's module."""
    module, _, name = COMMANDS[path].target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    app = App(
        name=f"bedplate {path}",
        help_format="plaintext",
        version_flags=(),
        default_parameter=Parameter(negative_iterable=(), negative_none=()),
        help_epilogue="On every command:  " + "  ".join(FLAGS),
    )
    app.default(function)
    return app


def split_flags(arguments: Sequence[str]) -> tuple[list[str], set[str]]:
    """The arguments without the flags that every command takes, and those flags. What follows `--` is left alone."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    flags = {word for word in arguments[:end] if word in FLAGS}
    return [word for word in arguments[:end] if word not in FLAGS] + list(arguments[end:]), flags


def help_page(group: str = "") -> str:
    """The list of commands, of all or of one group."""
    chosen = {name: command for name, command in COMMANDS.items() if name.startswith(group)}
    width = max(len(name) for name in chosen)
    lines = [f"usage: bedplate {group or 'COMMAND'} ...", "", bedplate.__doc__.split(". ")[0] + "." if bedplate.__doc__ else "", ""]
    lines += [f"  {name:<{width}}  {command.help}" for name, command in chosen.items()]
    lines += ["", "on every command:"] + [f"  {flag:<{width}}  {meaning}" for flag, meaning in FLAGS.items()]
    return "\n".join([*lines, "", "`bedplate COMMAND --help` shows a command's own arguments."])


def _call(function: Callable[..., Any], bound: BoundArguments, injected: dict[str, Any], console: Console) -> None:
    function(*bound.args, **bound.kwargs, **dict.fromkeys(injected, console))


def _one_line(error: CycloptsError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__


def _fail(console: Console, error: BedplateError, code: int, debug: bool) -> int:
    console.close()
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    console.error(error)
    return code


if __name__ == "__main__":
    main()
