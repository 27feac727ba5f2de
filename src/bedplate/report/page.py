"""The frame of every page: one offline file, light and dark, no script; templates may lie in other rooms and extend `base.html`."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

import bedplate

_BASE = Path(__file__).parent / "templates"
_KINDS = {".png": "image/png", ".gif": "image/gif", ".wav": "audio/wav", ".jpg": "image/jpeg"}


def render(template: Path, **values: Any) -> str:
    """A page from a template file that extends base.html.

    Args:
        template: a jinja2 file of ours, never one that was read from elsewhere.
        values: what it shows; text is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _BASE]), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template.name).render(version=bedplate.__version__, **values)


def embedded(path: Path) -> str:
    """A small file as a data: URI."""
    return f"data:{_KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
