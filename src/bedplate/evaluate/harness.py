"""The public harness (lm-eval, EleutherAI) on our models: what it asks of a model, answered by the scorer that our own tasks use.

    from lm_eval import simple_evaluate
    simple_evaluate(model=harness_model(Subject.load(Path("models/base"))), tasks=["piqa"])
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from bedplate.core.errors import ConfigError
from bedplate.evaluate.subject import Subject

if TYPE_CHECKING:
    from lm_eval.api.model import LM

MOST_TOKENS = 256
"""Of an answer for which a task of the harness says no number."""


def harness_model(subject: Subject) -> LM:
    """A subject as the harness wants a model.

    Args:
        subject: a base or a worker that generates.
    Raises:
        ConfigError: the harness is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        raise ConfigError("the public harness is not here", "pip install 'bedplate[harness]'") from error

    class Bedplate(LM):  # type: ignore[misc]
        """Answers requests of the harness; each holds its arguments in `args`."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """(log probability in nats, whether it is the likeliest) of each (context, continuation)."""
            asked = [request.args for request in requests]
            families = [[subject.scorer.row(*pair) for pair in pairs] for _, pairs in groupby(asked, key=lambda pair: pair[0])]
            return [(one.log_probability, one.likeliest) for family in subject.scorer.score(families) for one in family]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            """Log probability of each whole text, in nats."""
            families = [subject.scorer.windows(request.args[0]) for request in requests]
            return [sum(one.log_probability for one in family) for family in subject.scorer.score(families)]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """The likeliest text behind each context, up to one of its stops."""
            said = [""] * len(requests)
            asked = {index: _wanted(*request.args) for index, request in enumerate(requests)}
            for wanted in sorted(set(asked.values())):
                here = [index for index in asked if asked[index] == wanted]
                stops, most = wanted
                for index, text in zip(here, subject.answers([requests[index].args[0] for index in here], most, stops)):
                    said[index] = text
            return said

    return Bedplate()


def _wanted(context: str, asked: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """(stops, longest answer) of a request.

    Raises:
        ConfigError: it wants its answer drawn by chance.
    """
    if asked.get("do_sample") and asked.get("temperature", 1.0) > 0:
        raise ConfigError("the harness wants answers drawn by chance", "ask with do_sample=False; the likeliest text is given")
    until = asked.get("until") or []
    stops = (until,) if isinstance(until, str) else tuple(until)
    return tuple(stop for stop in stops if stop), int(asked.get("max_gen_toks") or MOST_TOKENS)
