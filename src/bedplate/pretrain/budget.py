"""What a run may spend, from the words a person writes: time, compute, data or money."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from bedplate.core.errors import ConfigError
from bedplate.core.units import parse_count, parse_seconds


@dataclass(frozen=True)
class Budget:
    """What may be spent; one of the fields is set."""

    seconds: float = 0.0
    flops: float = 0.0
    positions: float = 0.0
    epochs: float = 0.0


def parse_budget(text: str, price_per_hour: float = 0.0) -> Budget:
    """"20m", "2h" | "1e19 FLOPs" | "5 epochs" | "2B tokens" | "$50".

    Args:
        text: as written.
        price_per_hour: what an hour of the machine costs, for a budget in money.
    Raises:
        ConfigError: it is none of these, is nothing, or is money without a price.
    """
    wrong = ConfigError(f"run.budget = {text!r} is no budget", 'such as "20m", "2h", "1e19 FLOPs", "5 epochs", "2B tokens" or "$50"')
    try:
        budget = _parse(text, price_per_hour)
    except ValueError as error:
        raise wrong from error
    amount = max(budget.seconds, budget.flops, budget.positions, budget.epochs)
    if not 0 < amount < math.inf:
        raise wrong
    return budget


def _parse(text: str, price_per_hour: float) -> Budget:
    if found := re.fullmatch(r"\s*([0-9.e+]+)\s*flops?\s*", text, re.IGNORECASE):
        return Budget(flops=float(found[1]))
    if found := re.fullmatch(r"\s*([0-9.]+)\s*epochs?\s*", text, re.IGNORECASE):
        return Budget(epochs=float(found[1]))
    if found := re.fullmatch(r"\s*([0-9.e]+\s*[kmbt]?)\s*(?:tokens|positions)\s*", text, re.IGNORECASE):
        return Budget(positions=parse_count(found[1]))
    if found := re.fullmatch(r"\s*\$\s*([0-9.]+)\s*", text):
        if price_per_hour <= 0:
            raise ConfigError(f"a budget of {text.strip()} needs the price of an hour", "add --set run.price_per_hour=2.5, say")
        return Budget(seconds=3600 * float(found[1]) / price_per_hour)
    try:
        return Budget(seconds=parse_seconds(text))
    except ConfigError as error:
        raise ValueError(text) from error
