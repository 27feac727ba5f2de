"""The peer: a plain `transformers` Trainer on a Qwen3 of the same shape, fed with the very rows our own step gets."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

from bedplate.model.config import ModelConfig


@dataclass
class StepTimes(TrainerCallback):  # type: ignore[misc]
    """Wall time of every step as the Trainer runs it: from one step's end to the next's, so its own overheads count."""

    seconds: list[float] = field(default_factory=list)
    after_step: Callable[[int, float, Any], None] | None = None
    _last: float = 0.0
    _total: float = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._total += now - self._last
        if self.after_step is not None:
            self.after_step(state.global_step, self._total, model)
        self._last = time.perf_counter()


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Token rows [r t] as the Trainer wants them: labels are the inputs, shifted inside the model."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.from_numpy(self.rows[index].astype(np.int64))
        return {"input_ids": row, "labels": row}


def qwen3(config: ModelConfig, seed: int = 0) -> Qwen3ForCausalLM:
    """A freshly initialised Qwen3 of `config`'s shape."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rope_theta=config.rope_theta,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            use_cache=False,
        )
    )


def trainer(
    model: Qwen3ForCausalLM, rows: np.ndarray, *, rows_per_step: int, steps: int, lr: float, callback: StepTimes, warmup_steps: int = 0
) -> Trainer:
    """A Trainer with its defaults (AdamW, clipping at 1, fp32 on CPU) and a cosine schedule; nothing saved, nothing logged."""
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="peer-"),
        per_device_train_batch_size=rows_per_step,
        max_steps=steps,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=warmup_steps,
        weight_decay=0.1,
        adam_beta2=0.95,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    return Trainer(model=model, args=arguments, train_dataset=Rows(rows), callbacks=[callback])


@torch.no_grad()
def validation_loss(forward: Callable[[torch.Tensor], torch.Tensor], rows: np.ndarray, rows_at_once: int = 8) -> float:
    """Mean next-token loss in nats over held-out rows; `forward` maps ids [b t] to logits [b t v]."""
    total, count = 0.0, 0
    for start in range(0, len(rows), rows_at_once):
        ids = torch.from_numpy(rows[start : start + rows_at_once].astype(np.int64))
        logits = forward(ids)[:, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
        count += ids[:, 1:].numel()
    return total / count
