"""Whether a request can be kept: checked before it waits for anything, in the thread of whoever asks."""

from __future__ import annotations

import numpy as np

from bedplate.core.errors import ConfigError
from bedplate.infer.maker import beside
from bedplate.infer.pages import pages_for
from bedplate.infer.request import Making, Request
from bedplate.infer.step import Shape
from bedplate.model.config import ModelConfig


def check(request: Request, config: ModelConfig, context: int, shape: Shape) -> None:
    """Refuse what the engine cannot do.

    Args:
        request: any.
        config: of the model.
        context: longest sequence.
        shape: of the runner.
    Raises:
        ConfigError: it is empty, too long, or asks for what the model has not.
    """
    asked, wanted = len(request.positions), request.wanted
    if asked == 0:
        raise ConfigError("nothing was asked", "a request has at least one position")
    tokens, layers = request.positions.tokens, request.layers
    if tokens.min() < 0 or tokens.max() >= config.vocab_size:
        raise ConfigError(f"there is no token {tokens.min() if tokens.min() < 0 else tokens.max()}", f"tokens are 0 to {config.vocab_size - 1}")
    if layers is not None and not 0 <= layers <= config.num_hidden_layers:
        raise ConfigError(f"the mean of {layers} layers was asked for", f"the model has {config.num_hidden_layers}; 0 is the state after the last norm")
    if asked + wanted > context:
        kind = "tokens" if request.making is None else "units"
        hint = f"ask for at most {max(0, context - asked)} {kind}"
        raise ConfigError(f"{asked} positions are asked and {wanted} {kind} wanted, which is more than {context}", hint)
    if request.making is not None:
        _check_making(request, request.making, config, shape.pages)


def _check_making(request: Request, making: Making, config: ModelConfig, pages: int) -> None:
    present = config.senses.present()
    if making.sense not in present:
        raise ConfigError(f"the model never learned {making.sense}", f"it knows text{''.join(f', {name}' for name in present)}")
    if making.steps < 1 or not len(making.grid) or not np.isfinite(making.guidance):
        told = f"{len(making.grid)} units of {making.steps} steps under guidance {making.guidance} cannot be made"
        raise ConfigError(told, "at least 1 of each; 20 steps are usual, and a guidance from 1 to 3")
    if request.layers is not None or request.prompt_logprobs is not None or request.constraint is not None:
        raise ConfigError(f"a request asks for {making.sense} and for something else", "ask for one thing at a time")
    other = beside(request)
    needed = sum(pages_for(len(one.positions) + one.wanted) for one in (request, other) if one is not None)
    if needed > pages:
        raise ConfigError(f"{needed} pages of the cache are needed and there are {pages}", "ask for less, without guidance, or set more cache_bytes")
