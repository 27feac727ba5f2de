"""Chat templates: where a model folder keeps its own, and conversations written out by it.

A template is a program that came with a model, so it runs in jinja2's immutable sandbox.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bedplate.core.errors import DataError

CHATML = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of models that bring none of their own."""

MOST_CHARACTERS = 10_000_000
"""A template that renders more than this is broken or hostile."""


def template_of(folder: Path) -> str | None:
    """A model folder's own template: chat_template.jinja, else the one in tokenizer_config.json or chat_template.json; None: it has none.

    Raises:
        DataError: a file is damaged.
    """
    beside = folder / "chat_template.jinja"
    try:
        if beside.is_file():
            return beside.read_text(encoding="utf-8") or None
        for name in ("tokenizer_config.json", "chat_template.json"):
            tree = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
            source = tree.get("chat_template") if isinstance(tree, dict) else None
            if isinstance(source, list):  # several by name; the plain one is called default
                source = next((entry.get("template") for entry in source if isinstance(entry, dict) and entry.get("name") == "default"), None)
            if isinstance(source, str) and source:
                return source
    except (ValueError, RecursionError) as error:
        raise DataError(f"the chat template in {folder} is damaged: {error}", "restore the model folder from a copy") from error
    return None


def render(
    source: str, turns: Sequence[Mapping[str, Any]], ask: bool, variables: Mapping[str, str], tools: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """A conversation as text.

    Args:
        source: the template.
        turns: each with role and content, in order; tool_calls and tool_call_id where the template knows them.
        ask: end with the beginning of the assistant's next turn.
        variables: what the template may use by name: bos_token, eos_token.
        tools: functions as OpenAI's API writes them, for a template that uses them.
    Raises:
        DataError: the template refuses these turns, or is damaged.
    """
    from jinja2 import TemplateError

    try:
        text = _compiled(source).render(messages=list(turns), add_generation_prompt=ask, tools=list(tools) if tools else None, **variables)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(f"the chat template does not take this conversation: {error}", f"its roles are {roles}") from error
    if len(text) > MOST_CHARACTERS:
        raise DataError(f"the chat template writes {len(text):,} characters", f"at most {MOST_CHARACTERS:,} are read")
    return str(text)


def takes_tools(source: str) -> bool:
    """Whether a template writes out tools by itself."""
    from jinja2 import TemplateError, meta

    try:
        return "tools" in meta.find_undeclared_variables(_environment().parse(source))
    except (TemplateError, RecursionError):
        return False


@lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


def _environment() -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: dt.datetime.now().strftime(form)}
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, indent=options.get("indent"))
    return environment


def _refuse(message: str) -> None:
    """What templates call when they do not like what they see."""
    raise ValueError(message)
