"""Words that several kinds of answers share."""

from __future__ import annotations

import math
from typing import Any

from bedplate.core.generation import Usage

FINISH: dict[str, str] = {
    "stop": "stop", "length": "length", "tool_calls": "tool_calls", "deadline": "length", "cancelled": "length", "guard": "content_filter",
}  # fmt: skip
"""Why an answer ended -> OpenAI's word for it."""


def usage_json(usage: Usage) -> dict[str, Any]:
    """What an answer cost."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def number(value: float) -> float | None:
    """A logarithm as JSON has it: NaN is null, and what cannot be said at all is very unlikely."""
    if math.isnan(value):
        return None
    return max(-9999.0, value)
