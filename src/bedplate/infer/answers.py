"""Answers to many prompts of text at once: the likeliest token of each, step by step, rows of like length together.

Prompts are padded on the left, so that all rows grow at the same place; padding is seen by nobody. Rows that have ended are taken out when
they are half of all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from jaxtyping import Int

from bedplate.adapt.base import Base
from bedplate.core.errors import ConfigError
from bedplate.model.transformer import Cache
from bedplate.pretrain.step import autocast

ROWS = 16
"""Prompts at once: reading the weights is what a step costs, and sixteen rows share it."""
TAIL_TOKENS = 24
"""Tokens at the end of an answer in which a stop is looked for."""


def answers(
    base: Base,
    asked: Sequence[Int[np.ndarray, "t"]],
    ends: Collection[int],
    max_tokens: int,
    stops: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    rows: int = ROWS,
) -> list[str]:
    """What the model says behind each prompt, in order, without what ended it.

    Args:
        base: the model, adapted or not, with its tokenizer.
        asked: token ids of each prompt.
        ends: ids of the tokens that end an answer.
        max_tokens: longest answer.
        stops: texts before which an answer ends.
        dtype: of the network's products.
        rows: prompts at once.
    Raises:
        ConfigError: a prompt and its answer together are longer than the model's positions.
    """
    longest, held = max(map(len, asked), default=0), base.model.config.max_position_embeddings
    if longest + max_tokens > held:
        hint = f"the model has room for {max(0, held - longest)} tokens behind the longest prompt; ask for fewer, or give fewer shots"
        raise ConfigError(f"{longest} positions are asked and {max_tokens} tokens wanted", hint)
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i]))
    said = [""] * len(asked)
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        for index, text in zip(part, _together(base, [asked[i] for i in part], set(ends), max_tokens, stops, dtype)):
            said[index] = text
    return said


@torch.inference_mode()
def _together(base: Base, asked: Sequence[np.ndarray], ends: set[int], max_tokens: int, stops: Sequence[str], dtype: torch.dtype) -> list[str]:
    model, longest = base.model, max(map(len, asked))
    device = model.head.device
    padded = np.full((len(asked), longest), base.pad_id, np.int64)
    for row, ids in enumerate(asked):
        padded[row, longest - len(ids) :] = ids
    padding = torch.tensor([longest - len(ids) for ids in asked], device=device)
    forbidden = [number for number in model.config.special_ids.values() if number not in ends]  # marks of other senses are not text
    cache = Cache(model.config.num_hidden_layers)
    past = torch.ones(longest, longest, dtype=torch.bool, device=device).tril_()
    seen = (torch.arange(longest, device=device) >= padding[:, None])[:, None]  # [b 1 s]
    itself = torch.eye(longest, dtype=torch.bool, device=device)  # a row of padding that saw nothing would have no softmax
    mask = ((past & seen) | itself)[:, None]
    step = torch.from_numpy(padded).to(device)
    said: list[list[int]] = [[] for _ in asked]
    live = list(range(len(asked)))
    done: set[int] = set()
    with autocast(device, dtype):
        for count in range(max_tokens):
            hidden = model.model(model.model.embed_tokens(step), mask, cache)[:, -1]
            logits = model.logits(hidden).float()
            logits[:, forbidden] = -torch.inf
            tokens = logits.argmax(-1)
            for index, token in zip(live, tokens.tolist()):
                if index in done:
                    continue
                if token in ends:
                    done.add(index)
                    continue
                said[index].append(token)
                if stops and any(stop in base.decode(np.array(said[index][-TAIL_TOKENS:], np.int64)) for stop in stops):
                    done.add(index)
            if len(done) == len(asked):
                break
            stay = [place for place, index in enumerate(live) if index not in done]
            if 2 * len(stay) <= len(live):
                kept = torch.tensor(stay, device=device)
                live, tokens, padding = [live[place] for place in stay], tokens[kept], padding[kept]
                cache.keys = [None if keys is None else keys[kept] for keys in cache.keys]
                cache.values = [None if values is None else values[kept] for values in cache.values]
            step = tokens[:, None]
            mask = (torch.arange(longest + count + 1, device=device) >= padding[:, None])[:, None, None]
    return [before(base.decode(np.array(ids, np.int64)) if ids else "", stops) for ids in said]


def before(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the stops."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
