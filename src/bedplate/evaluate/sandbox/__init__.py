"""Programs that a model wrote, run where they can do no harm."""

from bedplate.evaluate.sandbox.run import Limits, Outcome, check_confinement, run_program

__all__ = ["Limits", "Outcome", "check_confinement", "run_program"]
