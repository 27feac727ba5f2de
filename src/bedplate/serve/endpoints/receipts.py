"""GET /v1/receipts/{id}: the signed receipt of an answer, from the audit; and the key it was signed with."""

from __future__ import annotations

import asyncio

from starlette.responses import Response

from bedplate.serve.errors import Refusal
from bedplate.serve.receipts import look_up
from bedplate.serve.route import ANY, Call, Route, answer


async def receipt(call: Call) -> Response:
    """The receipt of an answer, for its tenant or an admin."""
    gateway, identity = call.gateway, call.path["name"]
    missing = Refusal(404, f"there is no receipt {identity[:100]!r}", code="not_found")
    if gateway.audit is None or gateway.signer is None or not identity.replace("-", "").isalnum() or len(identity) > 100:
        raise missing
    log, public = gateway.audit, gateway.signer.public

    def find() -> object:
        log.flush(timeout_s=5)
        found = look_up(log.folder, identity, public)
        allowed = found is not None and (found.facts.tenant == call.caller.tenant or call.caller.may("admin"))
        return found.as_json() if found is not None and allowed else None

    async with gateway.looking_up:
        told = await asyncio.get_running_loop().run_in_executor(None, find)
    if told is None:
        raise missing
    return answer(told)


async def public_key(call: Call) -> Response:
    """The public key of receipts, as PEM."""
    if call.gateway.signer is None:
        raise Refusal(404, "this gateway signs nothing: it has no audit", code="not_found")
    return Response(call.gateway.signer.public.pem, media_type="application/x-pem-file")


ROUTES = (Route("GET", "/v1/receipts/{name}", receipt, "receipts"), Route("GET", "/v1/receipt-key", public_key, ANY))
