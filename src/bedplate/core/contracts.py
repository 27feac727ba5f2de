"""Contracts: the few Protocols in which layers meet. A local engine, a remote gateway and a fake are interchangeable behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from bedplate.core.artifact import Manifest
from bedplate.core.generation import Ask, Deliver, Load, Ticket, WorkerCard

Item_co = TypeVar("Item_co", covariant=True)
Item_contra = TypeVar("Item_contra", contravariant=True)


@dataclass(frozen=True)
class Verdict:
    """What a guard decided about a text, and why."""

    allowed: bool
    reason: str = ""
    rule: str = ""
    """Name of what decided, for the audit."""


@runtime_checkable
class Generator(Protocol):
    """Answers, whatever stands behind it: the native engine, llama.cpp, a remote gateway, a fake. Safe to call from any thread."""

    def submit(self, ask: Ask, deliver: Deliver) -> Ticket:
        """Begin an answer. Its pieces come in order to `deliver`, from the generator's own thread.

        Raises:
            ConfigError: the question cannot be answered: it is too long, or names an unknown worker.
            ResourceError: too many wait already; the hint says how long that may last.
        """
        ...

    def workers(self) -> Sequence[WorkerCard]:
        """What can be asked for, the base first."""
        ...

    def count(self, ask: Ask) -> int:
        """Positions that a question takes before its answer begins."""
        ...

    def load(self) -> Load:
        """How busy it is now."""
        ...

    def close(self) -> None:
        """Cancel what is under way and let go of memory and threads."""
        ...


@runtime_checkable
class AdapterHost(Protocol):
    """A generator whose workers come and go while it answers."""

    def register(self, name: str, folder: Path) -> WorkerCard:
        """Another worker from now on.

        Args:
            name: as questions will name it.
            folder: of an adapter made for this base.
        Raises:
            ConfigError: the name is taken.
            DataError: the adapter was made for another base.
            IntegrityError: a digest does not hold.
        """
        ...

    def unregister(self, name: str) -> None:
        """One worker fewer; what it is answering, it answers to the end.

        Raises:
            ConfigError: there is no such worker.
        """
        ...


@runtime_checkable
class Guard(Protocol):
    """Says whether a text may pass."""

    def check(self, text: str) -> Verdict:
        """The decision about one text, with its reason."""
        ...


@runtime_checkable
class Verifier(Protocol):
    """Decides whether a folder may be loaded. `artifact.verify` is the plainest: it checks digests; a stricter one, signatures too."""

    def __call__(self, folder: Path) -> Manifest:
        """The folder's manifest, if everything it says holds.

        Raises:
            IntegrityError: a digest, a signature or a format does not hold.
            PolicyError: the policy does not allow this artifact.
        """
        ...


@runtime_checkable
class Reader(Protocol[Item_co]):
    """A stream that can say where it is and continue from there."""

    def __iter__(self) -> Iterator[Item_co]:
        """The items from the current state on."""
        ...

    def state(self) -> dict[str, Any]:
        """Where it is, JSON-able. A reader restored to it yields the same items from here on."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        ...


@runtime_checkable
class Sink(Protocol[Item_contra]):
    """Takes items and makes them last."""

    def write(self, items: Iterable[Item_contra]) -> None:
        """Take items in order."""
        ...

    def close(self) -> None:
        """Finish: what was written is complete and readable afterwards."""
        ...
