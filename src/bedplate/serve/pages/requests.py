"""Requests and limits: who asks what at this moment, how busy the models are, how much everybody may still ask, and what was answered last.

An admin sees everybody; any other caller its own tenant, and of the keys its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from bedplate.core.errors import BedplateError
from bedplate.core.generation import Load
from bedplate.serve import keys
from bedplate.serve.audit_files import newest
from bedplate.serve.caller import Caller
from bedplate.serve.limits import Account
from bedplate.serve.pages.page import off_the_loop, page
from bedplate.serve.route import ANY, Call, Route

if TYPE_CHECKING:
    from bedplate.serve.gateway import Gateway

RECENT = 25


@dataclass(frozen=True)
class Now:
    """What the page shows."""

    everybody: bool
    """Whether it tells of all tenants."""
    loads: Mapping[str, Load]
    """Base -> how busy it is."""
    under_way: list[dict[str, Any]]
    places: int
    """Answers that may be under way at once."""
    accounts: list[Account]
    names: Mapping[str, str]
    """Id of a key -> what a person called it."""
    audited: bool
    recent: list[Mapping[str, Any]]
    """Receipts of the last answers, newest first."""
    receipts: bool
    """Whether the one who looks may look them up."""


async def requests(call: Call) -> Response:
    """The page of requests and limits."""
    return page(call, "requests.html", now=await _now(call))


async def requests_now(call: Call) -> Response:
    """The part of that page that changes."""
    return page(call, "requests_now.html", now=await _now(call))


async def _now(call: Call) -> Now:
    gateway, caller = call.gateway, call.caller
    everybody = caller.may("admin")
    under_way = [told for told in (exchange.told() for exchange in gateway.exchanges) if everybody or told["tenant"] == caller.tenant]
    loads, recent, names = await off_the_loop(lambda: (_loads(gateway), _recent(gateway, caller), _names(gateway, caller)))
    return Now(
        everybody=everybody,
        loads=loads,
        under_way=sorted(under_way, key=lambda told: -told["age_s"]),
        places=gateway.settings.limits.concurrent,
        accounts=gateway.limiter.accounts(None if everybody else caller),
        names=names,
        audited=gateway.audit is not None,
        recent=recent,
        receipts=caller.may("receipts"),
    )


def _loads(gateway: Gateway) -> dict[str, Load]:
    return {name: generator.load() for name, generator in gateway.models.generators.items()}


def _recent(gateway: Gateway, caller: Caller) -> list[Mapping[str, Any]]:
    if gateway.audit is None:
        return []
    everybody = caller.may("admin")
    found = newest(gateway.audit.folder, "answer", RECENT, lambda body: everybody or body.get("receipt", {}).get("tenant") == caller.tenant)
    return [record.body["receipt"] for record in found if isinstance(record.body.get("receipt"), dict)]


def _names(gateway: Gateway, caller: Caller) -> dict[str, str]:
    own = {caller.id: caller.name}
    if gateway.settings.keys is None or not caller.may("admin"):
        return own
    try:
        return own | {key.id: key.name for key in keys.read(gateway.settings.keys)}
    except BedplateError:  # damaged since: the ring goes on with what it read
        return own


ROUTES = (Route("GET", "/pages/requests", requests, ANY), Route("GET", "/pages/requests/now", requests_now, ANY))
