"""Generate: learn to answer. A conversation, or a prompt and its completion; only what the assistant says carries loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bedplate.adapt.encode import Item, Tokens, compose
from bedplate.adapt.examples import Row
from bedplate.adapt.tasks.base import Judged, Task
from bedplate.core.errors import DataError
from bedplate.data.chat import Message
from bedplate.modality.sequence import Batch
from bedplate.model.cross_entropy import cross_entropy_sum
from bedplate.model.foundation import attention_mask


class Marked(NamedTuple):
    """The marked tokens of a batch."""

    states: Float[Tensor, "n d"]
    """After the last norm, of the position before each; differentiable."""
    tokens: Int[Tensor, "n"]
    rows: Int[Tensor, "n"]
    """Of the batch."""


class Generate(Task):
    """Instructions, chat, summaries, code."""

    name = "generate"
    wants = "messages (and tools); or prompt and completion; each with an image, audio, video or series where the base knows them"

    def encode(self, row: Row, learn: bool = True) -> Item:
        parts = self.parts(row, learn)
        seen = row.senses(self.model.config.senses)
        whole = self.fit(compose([*parts[:1], *seen, *parts[1:]], self.model.config))  # behind the first token: what is asked refers to it
        count = int(whole.token_loss.sum())
        if learn and not count:
            raise row.error("no position carries loss", f"the prompt alone fills data.most_positions = {self.most_positions}, or the answer is empty")
        return Item(row.number, (whole,), np.zeros(0, np.float32), float(count))

    def parts(self, row: Row, learn: bool) -> list[Tokens]:
        """The row's tokens; the first stretch is what stands before everything else."""
        if "messages" in row.values:
            messages: Sequence[Message] = row.messages()
        elif self.settings.data.template == "raw":
            end = self.base.ends
            answer = [self.base.words(row.text("completion"), True), Tokens(end.ids, np.ones(1, bool))] if learn else []
            return [end, self.base.words(row.text("prompt")), *answer]
        else:
            system = (Message("system", row.text("system")),) if "system" in row.values else ()
            messages = (*system, Message("user", row.text("prompt")), *((Message("assistant", row.text("completion")),) if learn else ()))
        try:
            encoded = self.base.template.encode(messages, self.base.encoder, ask=not learn, tools=row.tools())
        except DataError as error:
            raise row.error(error.message, error.hint) from error
        if learn and not encoded.said.any():
            raise row.error("no position carries loss: the assistant says nothing", 'end the messages with {"role": "assistant", "content": "..."}')
        first = int(self.base.ends.ids[0] == encoded.ids[0])  # a picture stands behind the mark that starts the document, if there is one
        loss = encoded.said & learn
        return [Tokens(encoded.ids[:first].astype(np.int32), loss[:first]), Tokens(encoded.ids[first:].astype(np.int32), loss[first:])]

    def loss_sum(self, items: Sequence[Item]) -> Tensor:
        marked = self.marked(self.batch([s for item in items for s in item.sequences]))
        return cross_entropy_sum(marked.states, self.model.head, marked.tokens)

    def marked(self, batch: Batch) -> Marked:
        """The tokens that carry loss, and what is known before each. No other position leaves the last layer, and the last one, which stands before
        nothing, does not enter the first."""
        carries = batch.token_loss[:, 1:] & (batch.sense[:, 1:] == 0)
        mask = attention_mask(batch)
        states = self.model.run_trunk(self.model.embed(batch)[:, :-1], None if mask is None else mask[..., :-1, :-1], wanted=carries)
        return Marked(states, batch.tokens[:, 1:][carries], carries.nonzero()[:, 0])

    @torch.no_grad()
    def judge(self, items: Sequence[Item]) -> Judged:
        total = sum(float(self.loss_sum([items[i] for i in part])) for part in self.in_portions(items, "held-out examples"))
        loss = total / max(1.0, sum(item.weight for item in items))
        return Judged(loss, {"perplexity": math.exp(min(loss, 50.0))})
