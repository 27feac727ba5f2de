"""Receipts: look one up, see whether its signature holds, and whether it is about certain words."""

from __future__ import annotations

from urllib.parse import parse_qs, quote

from starlette.responses import RedirectResponse, Response

from bedplate.core.errors import DataError
from bedplate.serve.errors import Refusal
from bedplate.serve.pages.page import off_the_loop, page
from bedplate.serve.receipts import Receipt, look_up, tells_of
from bedplate.serve.route import Call, Route


async def search(call: Call) -> Response:
    """The form that looks a receipt up."""
    wanted = call.request.query_params.get("id", "").strip()
    if wanted:
        return RedirectResponse("/pages/receipts/" + quote(wanted[:200], safe=""), 303)
    return page(call, "receipts.html", audited=call.gateway.audit is not None, wanted="", trouble="")


async def receipt(call: Call) -> Response:
    """A receipt, and whether its signature holds."""
    found = await _find(call)
    return page(call, "receipt.html", receipt=found, words=None, holds=None) if found is not None else _missing(call)


async def check(call: Call) -> Response:
    """Whether a receipt is about these words."""
    found = await _find(call)
    if found is None:
        return _missing(call)
    fields = parse_qs((await call.request.body()).decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=10)
    words = {name: fields.get(name, [""])[0].replace("\r\n", "\n") for name in ("question", "answer")}
    if not any(words.values()):
        raise Refusal(400, "no words were given to compare: paste the answer, the question or both", code="missing_parameter")
    told = {name: _is_about(found, name, text) for name, text in words.items() if text}
    return page(call, "receipt.html", receipt=found, words=words, holds=told)


def _is_about(found: Receipt, name: str, text: str) -> bool:
    """Of a question that was one turn, the turn alone is enough."""
    if name == "answer":
        return tells_of(found, answer=text)
    return tells_of(found, prompt=text) or tells_of(found, prompt=f"user: {text}")


async def _find(call: Call) -> Receipt | None:
    gateway, identity = call.gateway, call.path["name"]
    if gateway.audit is None or gateway.signer is None:
        return None
    log, public = gateway.audit, gateway.signer.public

    def find() -> Receipt | None:
        log.flush(timeout_s=5)
        try:
            return look_up(log.folder, identity, public)
        except DataError:
            return None

    async with gateway.looking_up:
        found = await off_the_loop(find)
    return found if found is not None and (found.facts.tenant == call.caller.tenant or call.caller.may("admin")) else None


def _missing(call: Call) -> Response:
    told = "There is no receipt of this id for your tenant. Ids stand in x-bedplate-receipt, in the answer's id, and on the page of requests."
    return page(call, "receipts.html", 404, audited=call.gateway.audit is not None, wanted=call.path["name"][:200], trouble=told)


ROUTES = (
    Route("GET", "/pages/receipts", search, "receipts"),
    Route("GET", "/pages/receipts/{name}", receipt, "receipts"),
    Route("POST", "/pages/receipts/{name}", check, "receipts"),
)
