"""An answer in the plainest way: a position a step, one question, torch's own operations. What the engine says in float32 is what this says."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from bedplate.adapt.base import Base
from bedplate.adapt.encode import collate
from bedplate.core.errors import ConfigError
from bedplate.modality.sequence import Sequence as Positions
from bedplate.model.batch import to_torch
from bedplate.model.foundation import attention_mask
from bedplate.model.transformer import Cache
from bedplate.testing.draw import check, draw


@torch.inference_mode()
def answer(base: Base, asked: Positions, ends: Collection[int], max_tokens: int, temperature: float = 0.0, top_p: float = 0.95, seed: int = 0) -> str:
    """What the model says, without the token that ends it.

    Args:
        base: the model, adapted or not, with its tokenizer.
        asked: what stands before.
        ends: ids of the tokens that end an answer.
        max_tokens: longest answer.
        temperature: 0 takes the likeliest token.
        top_p: only the likeliest tokens that together have this probability.
        seed: of the draws.
    Raises:
        ConfigError: question and answer together are longer than the model's positions.
    """
    check(temperature, 0, top_p)
    model = base.model
    if (room := model.config.max_position_embeddings - len(asked)) < max_tokens:
        raise ConfigError(f"{len(asked)} positions are asked and {max_tokens} tokens wanted", f"the model has room for {max(0, room)} tokens behind them")
    device = model.head.device
    batch = to_torch(collate([asked], base.pad_id), device)
    cache = Cache(model.config.num_hidden_layers)
    last = model.model(model.embed(batch), attention_mask(batch), cache)[:, -1]
    forbidden = [number for number in model.config.special_ids.values() if number not in ends]  # marks of other senses are not text
    generator = torch.Generator(device).manual_seed(seed)
    said: list[int] = []
    while len(said) < max_tokens:
        logits = model.logits(last).float()
        logits[:, forbidden] = -torch.inf
        token = draw(logits, temperature, 0, top_p, generator)
        if int(token) in ends:
            break
        said.append(int(token))
        last = model.model(model.model.embed_tokens(token)[:, None], None, cache)[:, -1]
    return base.decode(np.array(said, np.int64)) if said else ""
