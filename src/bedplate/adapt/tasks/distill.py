"""Distill: a smaller model learns what a larger one says: its whole distribution over the next token, or the answers that it writes.

By logits both need the same tokens, and the examples say where to look; by text the teacher answers the prompts itself, and may be any model.
Source: Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2; Kim and Rush, Sequence-Level Knowledge Distillation (2016).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedplate.adapt.base import Base
from bedplate.adapt.chunks import divergences, in_chunks
from bedplate.adapt.encode import Item
from bedplate.adapt.examples import Row
from bedplate.adapt.tasks.base import NOTHING, Judged
from bedplate.adapt.tasks.generate import Generate
from bedplate.core.errors import ConfigError
from bedplate.core.files import read_json, sha256_bytes
from bedplate.modality.sequence import Batch
from bedplate.modality.sequence import Sequence as Positions

Answerer = Callable[[Base, Positions, Collection[int], int], str]
"""(base, what stands before, ids that end an answer, most tokens) -> what it says: `bedplate.infer.answers.Teacher`, which lives above this room."""

TAUGHT = "taught.jsonl"
"""The teacher's answers, in the run folder: a run that stopped does not ask again."""


class Distill(Generate):
    """What a larger model says. Its worker generates."""

    name = "distill"
    wants = "messages; or prompt and completion; by text the teacher writes the completion"
    answerer: Answerer | None = None
    """Makes the teacher's answers; given by whoever stands above generation."""

    @property
    def by_text(self) -> bool:
        """Whether the teacher's words are learned, not its distribution."""
        return self.settings.distill.by == "text"

    def survey(self, rows: Sequence[Row]) -> None:
        folder, device = self.settings.distill.teacher, str(self.model.head.device)
        if folder is None:
            raise ConfigError("nobody teaches", "set distill.teacher to a model folder")
        self.teacher = Base.load(folder, device)
        self.teacher.model.requires_grad_(False)
        self.asking = Generate(self.teacher, self.settings)
        if self.by_text:
            self.file = self.settings.to.with_name(self.settings.to.name + ".run") / TAUGHT
            self.taught = _read(self.file)
        elif (different := _difference(folder, self.settings.base)) is not None:
            hint = 'learn its answers instead, which any teacher can give: --set distill.by=text (in a recipe: distill.by = "text")'
            raise ConfigError(f"{folder} and {self.settings.base} have different tokens, such as {different}: logits of one say nothing to the other", hint)

    def encode(self, row: Row, learn: bool = True) -> Item:
        if not learn or not self.by_text:
            return super().encode(row, learn)
        asked = _unanswered(row)
        if not (said := self.ask(asked)).strip():
            return Item(row.number, super().encode(asked, learn=False).sequences, NOTHING, 0.0)  # a teacher that is silent teaches nothing
        if "messages" in asked.values:
            return super().encode(_with(asked, messages=[*asked.list_of("messages"), {"role": "assistant", "content": said}]))
        return super().encode(_with(asked, completion=said))

    def ask(self, row: Row) -> str:
        """What the teacher answers to a row; asked once."""
        if self.answerer is None:
            raise ConfigError("nothing here makes the teacher's answers", "pass bedplate.infer.answers.Teacher() as answerer")
        positions = self.asking.encode(row, learn=False).sequences[0]
        most = min(self.settings.distill.most_tokens, self.teacher.model.config.max_position_embeddings - len(positions))
        parts = [self.teacher.digest.encode(), str(most).encode(), positions.tokens.tobytes(), *(units.tobytes() for units in positions.units.values())]
        key = sha256_bytes(b"\0".join(parts))
        if key not in self.taught:
            ends = self.teacher.template.ends() if self.settings.data.template == "chat" else self.teacher.ends.ids.tolist()
            self.taught[key] = self.answerer(self.teacher, positions, ends, most)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as handle:
                handle.write("\n" + json.dumps({"key": key, "said": self.taught[key]}))  # a line that was torn ends here
        return self.taught[key]

    def loss_sum(self, items: Sequence[Item]) -> Tensor:
        if self.by_text:
            return super().loss_sum(items)
        states, teach, _ = self.both(self.batch([one for item in items for one in item.sequences]))
        return divergences(states, self.model.head, teach, self.settings.distill.temperature).sum()

    def both(self, batch: Batch) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
        """(the student's states before the marked tokens, numbers of them -> the teacher's logits, the tokens)."""
        if batch.units and self.teacher.model.config.senses != self.model.config.senses:
            raise ConfigError("teacher and student look at pictures or sounds in different ways", 'learn its answers instead: distill.by = "text"')
        with torch.no_grad():
            known = self.asking.marked(batch).states
        marked = self.marked(batch)
        return marked.states, lambda rows: self.teacher.model.logits(known[rows]), marked.tokens

    @torch.no_grad()
    def judge(self, items: Sequence[Item]) -> Judged:
        if self.by_text:
            return super().judge(items)
        loss = agreed = 0.0
        for part in self.in_portions(items, "held-out examples"):
            states, teach, tokens = self.both(self.batch([one for i in part for one in items[i].sequences]))
            loss += float(divergences(states, self.model.head, teach, self.settings.distill.temperature).sum())
            rows = torch.arange(len(tokens), device=tokens.device)
            agreed += float(in_chunks(partial(_agree, self.model.logits, teach), states, rows).sum())
        count = max(1.0, sum(item.weight for item in items))
        return Judged(loss / count, {"agreement": agreed / count})

    @property
    def parents(self) -> dict[str, str]:
        return {"teacher": self.teacher.digest}


def _agree(say: Callable[[Tensor], Tensor], teach: Callable[[Tensor], Tensor], states: Tensor, rows: Tensor) -> Tensor:
    """1 where both find the same token likeliest."""
    return (say(states).argmax(1) == teach(rows).argmax(1)).float()


def _unanswered(row: Row) -> Row:
    """The row without what the assistant says last."""
    if "messages" not in row.values:
        return Row(row.number, {key: value for key, value in row.values.items() if key != "completion"}, row.beside)
    turns = row.list_of("messages")
    return _with(row, messages=turns[:-1] if turns and turns[-1].get("role") == "assistant" else turns)


def _with(row: Row, **cells: Any) -> Row:
    return Row(row.number, {**row.values, **cells}, row.beside)


def _difference(teacher: Path, student: Path) -> str | None:
    """The first number that names different tokens, in words; None: there is none."""
    theirs, ours = _tokens(teacher), _tokens(student)
    numbers = sorted(number for number in theirs.keys() | ours.keys() if theirs.get(number) != ours.get(number))
    if not numbers:
        return None
    said = [repr(tokens[numbers[0]]) if numbers[0] in tokens else "none" for tokens in (theirs, ours)]
    return f"number {numbers[0]} ({said[0]} there, {said[1]} here)"


def _tokens(folder: Path) -> dict[int, str]:
    """What decides which token an id is: number -> token."""
    tree = read_json(folder / "tokenizer.json")
    held = tree["model"].get("vocab") or {}
    named = held.items() if isinstance(held, dict) else ((entry[0], number) for number, entry in enumerate(held))  # a list: (token, score) each
    return {int(number): str(token) for token, number in named} | {int(token["id"]): str(token["content"]) for token in tree.get("added_tokens", ())}


def _read(path: Path) -> dict[str, str]:
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            told = json.loads(line)
            found[told["key"]] = told["said"]
        except (ValueError, KeyError, TypeError):
            continue  # torn when the run was killed
    return found
