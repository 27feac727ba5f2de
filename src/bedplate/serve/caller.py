"""Caller: who asks, whatever proved it (a key, an OIDC token): a tenant, what it may do, and how sensitive its data is."""

from __future__ import annotations

from dataclasses import dataclass

from bedplate.core.errors import PolicyError

SCOPES: dict[str, str] = {
    "generate": "chat and completions",
    "embed": "vectors",
    "classify": "labels",
    "predict": "numbers and stretches of texts",
    "rerank": "the order of texts",
    "transcribe": "text from sound",
    "models": "list what can be asked for",
    "metrics": "read the numbers of the gateway",
    "receipts": "look up the receipts of the own tenant",
    "admin": "everything, of every tenant: reload, pages, receipts of others",
}
"""Scope -> what it allows."""


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    id: str
    """Of the key, or of the token's subject; stands in the audit. Never a secret."""
    tenant: str
    """Limits, caches and budgets are kept apart by it."""
    scopes: frozenset[str]
    name: str = ""
    """What a person called the key."""
    labels: tuple[str, ...] = ()
    """Data classes that everything this caller sends has at least, as routes.toml names them."""

    def may(self, scope: str) -> bool:
        """Whether it has the scope; `admin` has every one."""
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: str) -> None:
        """Raises PolicyError where it may not."""
        if not self.may(scope):
            held = ", ".join(sorted(self.scopes)) or "none"
            raise PolicyError(f"this needs the scope {scope!r}", f"the key has: {held}; make one with `bedplate serve key add --scopes {scope}`")
