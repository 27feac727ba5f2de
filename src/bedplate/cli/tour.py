"""`bedplate tour`: learn one small model of six senses from real files, then use it."""

from __future__ import annotations

from pathlib import Path

from bedplate.cli.app import Here, Overrides


def tour(*, to: Path = Path("tour"), minutes: float | None = None, fresh: bool = False, overrides: Overrides = (), console: Here) -> None:
    """Learn one small model of six senses from real files, then use it. A second run goes on where the first stopped.

    Args:
        to: the folder for everything.
        minutes: for everything after installation; learning gets what the other stages leave.
        fresh: start clean instead of going on.
    """
    from bedplate.advise.tour.stages import TourSettings
    from bedplate.advise.tour.stages import tour as take
    from bedplate.core.config import load

    settings = load(TourSettings, overrides=overrides, given={"minutes": minutes}).value
    report = take(to, settings, fresh=fresh, listeners=(console,))
    console.say(f"the tour is in {report}; open it in a browser")
    console.say(f'try next: bedplate generate {to}/run/model "The first rule" --n 3')
    console.data({"report": str(report), "model": str(to / "run" / "model")})
