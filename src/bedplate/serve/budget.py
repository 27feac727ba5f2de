"""Budget: what each tenant may spend a day at places that cost money. What an answer may cost is set aside before it is asked for."""

from __future__ import annotations

import datetime as dt
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bedplate.core.errors import ConfigError, IntegrityError
from bedplate.core.files import read_json, write_json


@dataclass(frozen=True)
class BudgetSettings:
    """What may be spent, in the currency of the places' prices."""

    per_tenant_per_day: float = 0.0
    """Of each tenant, from midnight to midnight UTC. 0: nothing, so that places with a price are not asked."""
    tenants: Mapping[str, float] = field(default_factory=dict)
    """Tenants with another budget, by name."""

    def __post_init__(self) -> None:
        for amount in (self.per_tenant_per_day, *self.tenants.values()):
            if not 0 <= amount < math.inf:
                raise ConfigError(f"a budget of {amount} cannot be kept", "0 or more")

    def of(self, tenant: str) -> float:
        """A tenant's budget for a day."""
        return self.tenants.get(tenant, self.per_tenant_per_day)


class Reservation:
    """Money that was set aside; settled once."""

    def __init__(self, budget: Budget, day: str, tenant: str, amount: float) -> None:
        self._budget, self._day, self._tenant, self.amount, self._open = budget, day, tenant, amount, True

    def settle(self, cost: float | None = None) -> None:
        """What it came to; None: not known, so all that was set aside."""
        self._budget._settle(self, self.amount if cost is None else cost)


class Budget:
    """What was spent today. Safe from any thread.

    Args:
        settings: what may be spent.
        file: where it is kept across restarts; None: nowhere.
        clock: seconds since 1970.
    Raises:
        IntegrityError: the file is damaged.
    """

    def __init__(self, settings: BudgetSettings, file: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self.settings, self._file, self._clock = settings, file, clock
        self._turn = threading.Lock()
        self._day = self._today()
        self._spent: dict[str, float] = {}
        self._aside: dict[str, float] = {}
        self._changed = False
        if file is not None and file.is_file():
            self._read(file)

    def reserve(self, tenant: str, amount: float) -> Reservation | None:
        """Set money aside; None: it is more than is left today."""
        with self._turn:
            self._turn_page()
            if amount > 0 and self._spent.get(tenant, 0.0) + self._aside.get(tenant, 0.0) + amount > self.settings.of(tenant) * (1 + 1e-12):
                return None
            self._aside[tenant] = self._aside.get(tenant, 0.0) + amount
            return Reservation(self, self._day, tenant, amount)

    def change(self, settings: BudgetSettings) -> None:
        """Other amounts from now on; what was spent today is spent."""
        with self._turn:
            self.settings = settings

    def left(self, tenant: str) -> float:
        """What is left today, less what is set aside."""
        with self._turn:
            self._turn_page()
            return self.settings.of(tenant) - self._spent.get(tenant, 0.0) - self._aside.get(tenant, 0.0)

    def spent(self, tenant: str) -> float:
        """Spent today."""
        with self._turn:
            self._turn_page()
            return self._spent.get(tenant, 0.0)

    def write(self) -> None:
        """Keep it across a restart; called now and then, and at the end. What is set aside counts as spent, should nobody come back to settle it."""
        with self._turn:
            if self._file is None or not self._changed:
                return
            names = self._spent.keys() | self._aside.keys()
            kept = {name: self._spent.get(name, 0.0) + self._aside.get(name, 0.0) for name in sorted(names)}
            day, self._changed = self._day, False
        write_json(self._file, {"format": 1, "day": day, "spent": {name: amount for name, amount in kept.items() if amount > 0}}, private=True)

    def _settle(self, reservation: Reservation, cost: float) -> None:
        with self._turn:
            if not reservation._open:
                return
            reservation._open = False
            self._turn_page()
            if reservation._day == self._day:
                tenant = reservation._tenant
                self._aside[tenant] = max(0.0, self._aside.get(tenant, 0.0) - reservation.amount)
                self._spent[tenant] = self._spent.get(tenant, 0.0) + max(0.0, cost)
                self._changed = True

    def _turn_page(self) -> None:
        today = self._today()
        if today > self._day:  # a clock that steps back gives nobody a second budget
            self._day, self._spent, self._aside, self._changed = today, {}, {}, True

    def _today(self) -> str:
        return dt.datetime.fromtimestamp(self._clock(), dt.UTC).date().isoformat()

    def _read(self, file: Path) -> None:
        try:
            raw = read_json(file)
            day, spent = raw["day"], raw["spent"]
            fits = raw["format"] == 1 and isinstance(spent, dict) and all(type(v) in (int, float) and 0 <= v < math.inf for v in spent.values())
            if not fits or dt.date.fromisoformat(day).isoformat() != day:
                raise ValueError("it does not have the form of a budget's file")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
            raise IntegrityError(f"{file} is damaged: {error}", "restore it, or delete it: today's spending begins at 0 then") from error
        if day >= self._day:
            self._day, self._spent = day, {str(name): float(amount) for name, amount in spent.items()}
