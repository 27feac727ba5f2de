"""The subject of an evaluation: a base, or a worker, that scores, answers, labels and embeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from bedplate.adapt.base import Base
from bedplate.adapt.encode import compose, said
from bedplate.adapt.settings import AdaptSettings
from bedplate.adapt.tasks import Task
from bedplate.adapt.tasks.classify import Classify
from bedplate.adapt.tasks.embed import Embed
from bedplate.adapt.tasks.generate import Generate
from bedplate.core.artifact import read_manifest
from bedplate.core.errors import ConfigError
from bedplate.data.chat import Message
from bedplate.data.document import Segment
from bedplate.evaluate.scoring import Scorer
from bedplate.infer.answers import Answers
from bedplate.infer.worker import Worker, rows


@dataclass(frozen=True)
class Subject:
    """A model folder, adapted or not, in memory."""

    base: Base
    task: Task | None
    """What an adapter made of it."""
    digests: dict[str, str]
    """model, and adapter where there is one -> digest of its manifest."""
    trained_on: str | None
    """Digest of the corpus that the model says it learned from."""
    scorer: Scorer
    template: Literal["raw", "chat"]
    """How a prompt is asked: as it is, or as a turn of a conversation."""

    @classmethod
    def load(
        cls,
        model: Path,
        adapter: Path | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        positions: int = 4096,
        template: Literal["raw", "chat", "auto"] = "auto",
    ) -> Subject:
        """From a model folder and, where given, an adapter folder; digests are checked.

        Args:
            model: the base.
            adapter: what was made for it.
            device: where to compute.
            dtype: of the products.
            positions: in one portion of scoring.
            template: auto: as an adapter was taught; raw for a base.
        """
        if adapter is None:
            base, task, digests = Base.load(model, device), None, {}
        else:
            worker = Worker.load(model, adapter, device)
            base, task, digests = worker.base, worker.task, {"adapter": read_manifest(adapter, "adapter").digest}
        taught: Literal["raw", "chat"] = task.settings.data.template if isinstance(task, Generate) else "raw"
        corpus = read_manifest(model, "model").parents.get("corpus")
        return cls(base, task, {"model": base.digest, **digests}, corpus, Scorer(base, dtype, positions), taught if template == "auto" else template)

    def answers(self, prompts: Sequence[str], max_tokens: int, stops: Sequence[str] = ()) -> list[str]:
        """What the model says after each prompt, greedily, without the stop that ended it.

        Args:
            prompts: texts.
            max_tokens: longest answer.
            stops: texts before which an answer ends.
        """
        base = self.base
        if self.template == "chat":
            asked = [base.template.encode([Message("user", prompt)], base.encoder, ask=True).ids for prompt in prompts]
            ends = [*base.template.ends(), *base.model.config.end_token_ids]
        else:
            asked = [np.concatenate([self.scorer.begin, base.encoder.encode(prompt)]) for prompt in prompts]
            ends = list(base.model.config.end_token_ids)
        return self.computed.texts([compose([said(ids, False)], base.model.config) for ids in asked], ends, max_tokens, stops)

    @cached_property
    def computed(self) -> Answers:
        """What computes answers, labels and vectors, in the numbers of the scorer; opened when it is first needed."""
        return Answers(self.base, self.scorer.dtype)

    @property
    def computed_by(self) -> str | None:
        """What has computed answers, labels or vectors, and in which numbers; None: nothing did."""
        return self.computed.computed_by if "computed" in self.__dict__ else None

    def labels(self, cells: Sequence[dict[str, Any]]) -> list[Any]:
        """What the worker says of each example.

        Raises:
            ConfigError: the subject is no worker that labels.
        """
        if not isinstance(self.task, Classify):
            raise ConfigError("nothing here labels", "give --adapter a worker of the task classify")
        if self.task.several:
            raise ConfigError("the worker gives several labels to one thing", "give the task kind = \"labels\"")
        return self.computed.predict(self.task, [self.task.encode(row, learn=False) for row in rows(cells, "text")])

    def says(self, job: type[Task], cells: Sequence[dict[str, Any]]) -> list[Any]:
        """What the worker says of each example.

        Raises:
            ConfigError: the subject is no worker of this job.
        """
        if not isinstance(self.task, job):
            raise ConfigError(f"nothing here learned to {job.name}", f"give --adapter a worker of the task {job.name}")
        return self.computed.predict(self.task, [self.task.encode(row, learn=False) for row in rows(cells, "text")])

    def vectors(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """A vector of length one for each text: the worker's where its task is to embed, else the base's own."""
        reader = self.task or Generate(self.base, AdaptSettings())
        looks = [reader.fit(self.base.look([Segment("text", text)])) for text in texts]
        pooled = torch.cat(list(self.computed.regarded(looks, reader.layers, reader.regard)))
        with torch.no_grad():
            made = (reader.turned(pooled) if isinstance(reader, Embed) else pooled).float().cpu().numpy()
        unit: np.ndarray = made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)
        return unit
