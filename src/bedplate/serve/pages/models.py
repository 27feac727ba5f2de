"""Models and adapters: what can be asked for, what it was made from, and how to recognise it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlette.responses import Response

from bedplate.serve.models import Target
from bedplate.serve.pages.lineage import Ancestor, ancestors, artifacts_below, gather
from bedplate.serve.pages.page import off_the_loop, page
from bedplate.serve.route import Call, Route
from bedplate.serve.settings import ServeSettings


@dataclass(frozen=True)
class Row:
    """One model on the page."""

    target: Target
    lineage: tuple[Ancestor, ...]
    """What its card names: the model, and the adapter where it is one."""
    adapters: tuple[Row, ...] = ()
    """Of a base: those that run on it."""


async def models(call: Call) -> Response:
    """The page of models and adapters, with their lineage."""
    targets, settings = call.gateway.models.all(), call.gateway.settings
    return page(call, "models.html", bases=await off_the_loop(lambda: rows(targets, settings)))


def rows(targets: list[Target], settings: ServeSettings) -> list[Row]:
    """The bases, each with its adapters. Reads manifests from disk."""
    known = gather([*served_folders(settings), *artifacts_below(settings.runs)])

    bases = {target.card.digests["model"]: target.name for target in targets if target.name == target.base and "model" in target.card.digests}

    def row(target: Target, adapters: tuple[Row, ...] = ()) -> Row:
        # An adapter's own manifest names its base; of a base there is only the model.
        named = target.card.digests
        wanted = [role for role in ("adapter", "model") if role in named][:1] or sorted(named)
        return Row(target, tuple(ancestors(named[role], known, bases, role) for role in wanted), adapters)

    return [row(base, tuple(row(one) for one in targets if one.base == base.name != one.name)) for base in targets if base.name == base.base]


def served_folders(settings: ServeSettings) -> list[Path]:
    """Folders of models and adapters that the settings name."""
    found: list[Path] = []
    for model in settings.models.values():
        if model.backend != "remote" and model.path:
            found.append(Path(model.path))
        found += [Path(folder) for folder in model.adapters.values()]
    return found


ROUTES = (Route("GET", "/pages/models", models, "models"),)
