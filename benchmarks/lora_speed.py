"""Speed of LoRA on a CPU: our adaptation loop against `peft` + a `transformers` Trainer, interleaved in one run.

Both adapt the same base (SmolLM2's shape with random weights) to the same prompts and completions, with the same adapters at the start and the
same optimiser and rates, in fp32; only completions carry loss. The peer runs twice: with the very examples of our steps, where the losses of equal
steps must agree, and do (`largest_loss_difference`), and with its own order (`Trainer`'s default: at random, filled up to the longest of a step).
Each runs in a process of its own and waits for leave before every step. Speed is in the examples' own tokens: padding is work, not progress.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.inputs import SCRATCH, text_sources
from benchmarks.turns import Turn, Turns, Worker

SEED = 0
PROMPT_WORDS, COMPLETION_WORDS = (20, 120), (5, 40)
"""Fewest and most words of each example."""
EXAMPLES = 600
TRAIN = {"epochs": 10.0, "lr": 1e-3, "warmup_share": 0.0, "weight_decay": 0.01, "patience": 0, "seed": SEED}


def prepare(folder: Path) -> None:
    """A base of SmolLM2-135M's shape with random weights, and examples cut from real text. Made once."""
    from bedplate.data.corpus import Corpus
    from bedplate.model.config import ModelConfig
    from bedplate.model.foundation import FoundationModel
    from benchmarks.training import build_text_corpus

    if (folder / "examples.jsonl").exists():
        return
    sources, _ = text_sources()
    corpus = build_text_corpus(sources, folder / "corpus")
    assert isinstance(corpus, Corpus)
    config = ModelConfig(
        49_152, 576, 1536, 30, 9, 3, rope_theta=100_000.0, rms_norm_eps=1e-5, model_type="llama", qk_norm=False, special_ids=corpus.special_ids
    )  # fmt: skip
    model = FoundationModel(config)
    model.initialise(SEED)
    random = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):  # zero in a fresh model: then nothing in the layers would matter
            parameter.data.normal_(0, 0.02, generator=random)
    model.save(folder / "base", tokenizer=folder / "corpus")
    rng = np.random.default_rng(SEED)
    words = " ".join(corpus.tokenizer.decode(list(corpus.segments(n)[0].value)) for n in range(8)).split()
    with (folder / "examples.jsonl").open("w", encoding="utf-8") as handle:
        for _ in range(EXAMPLES):
            start, prompt, completion = rng.integers(len(words) - 400), rng.integers(*PROMPT_WORDS), rng.integers(*COMPLETION_WORDS)
            cut = words[start : start + prompt + completion]
            handle.write(json.dumps({"prompt": " ".join(cut[:prompt]) + " ", "completion": " ".join(cut[prompt:])}) + "\n")


def settings(folder: Path, threads: int, per_step: int) -> Any:
    """The adaptation that both do."""
    from bedplate.adapt.settings import AdaptSettings
    from bedplate.core.config import load

    given = {
        "base": str(folder / "base"), "to": str(folder / "adapter"), "task": "generate", "data.file": str(folder / "examples.jsonl"),
        "data.template": "raw", "data.held_out": 0.0, "checkpoint.every_s": 1e9, "train.threads": threads, "train.examples_per_step": per_step,
        **{f"train.{key}": value for key, value in TRAIN.items()},
    }  # fmt: skip
    return load(AdaptSettings, given=given)


def run_ours(folder: Path, threads: int, per_step: int) -> None:
    """The product's own loop, its `step` events taken as the ends of steps."""
    import shutil

    from bedplate.adapt.loop import adapt
    from bedplate.core.run import Run

    shutil.rmtree(folder / "adapter.run", ignore_errors=True)
    resolved = settings(folder, threads, per_step)
    turns = Turns()

    def listen(record: dict[str, Any]) -> None:
        if record["event"] == "chosen" and record["what"] == "train.positions_per_micro":
            turns.wait()  # what follows is the making of the adapters, once
        if record["event"] == "step":
            turns.told(record["loss"], round(record["units_per_s"] * record["step_s"]))
            turns.wait()

    with Run.open(folder / "adapter.run", "adapt", resolved, (listen,)) as run:
        adapt(resolved.value, run)


def run_peer(folder: Path, threads: int, per_step: int, our_order: bool = True) -> None:
    """peft and transformers' Trainer, given the very tokens and first adapters of ours, and our order or its own."""
    import tempfile

    from peft import PeftModel
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from bedplate.adapt import methods
    from bedplate.adapt.base import Base
    from bedplate.adapt.course import Course
    from bedplate.adapt.loop import prepare as encode

    asked = settings(folder, threads, per_step).value
    base = Base.load(folder / "base")
    items = encode(asked, base).items
    course = Course(tuple(item.length for item in items), per_step, TRAIN["epochs"], 0.0, SEED)
    order = [i for step in range(course.steps) for i in course.examples(step)]
    methods.prepare(base.model, asked.method, SEED)
    first = folder / f"first-{our_order}"
    first.mkdir(exist_ok=True)
    methods.save(base.model, None, asked.method, first, "base")
    pad = base.pad_id
    sequences = [(torch.from_numpy(item.sequences[0].tokens).long(), torch.from_numpy(item.sequences[0].token_loss)) for item in items]
    del base
    torch.set_num_threads(threads)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base", use_cache=False), first, is_trainable=True)
    turns = Turns()
    seen: list[int] = []

    class Gate(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.wait()

        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                turns.told(float(logs["loss"]), seen[state.global_step - 1])
                turns.wait()

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *args: Any) -> Any:
            return order if our_order else super()._get_train_sampler(*args)

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        longest = max(len(sequences[i][0]) for i in rows)
        seen.append(sum(len(sequences[i][0]) for i in rows))
        shape = (len(rows), longest)
        ids, labels, mask = torch.full(shape, pad), torch.full(shape, -100), torch.zeros(shape, dtype=torch.long)
        for row, i in enumerate(rows):
            tokens, loss = sequences[i]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            labels[row, : len(tokens)] = torch.where(loss, tokens, -100)
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="peer-"),
        per_device_train_batch_size=per_step,
        max_steps=course.steps,
        learning_rate=TRAIN["lr"],
        lr_scheduler_type="linear",
        weight_decay=TRAIN["weight_decay"],
        adam_beta2=0.98,
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        seed=SEED,
    )
    InOrder(model=model, args=arguments, train_dataset=list(range(len(items))), data_collator=collate, callbacks=[Gate()]).train()


NAMES = ("ours", "peer", "peer-own-order")


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", choices=NAMES)
    parser.add_argument("--folder", type=Path, default=SCRATCH / "lora_speed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--examples-per-step", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.worker:
        given = (arguments.folder, arguments.threads, arguments.examples_per_step)
        if arguments.worker == "ours":
            run_ours(*given)
        else:
            run_peer(*given, our_order=arguments.worker == "peer")
        return
    from benchmarks.record import append

    prepare(arguments.folder)
    extra = ("--examples-per-step", str(arguments.examples_per_step))
    workers = {name: Worker("benchmarks.lora_speed", name, arguments.folder, arguments.threads, *extra) for name in NAMES}
    told: dict[str, list[Turn]] = {name: [] for name in NAMES}
    try:
        for name, worker in workers.items():
            told[name].append(worker.steps(1))  # loads, warms up
        for turn in range(arguments.turns):
            for name in NAMES if turn % 2 == 0 else reversed(NAMES):
                told[name].append(workers[name].steps(1))
            print(f"turn {turn + 1}: " + ", ".join(f"{name} {told[name][-1].seconds[0]:.2f} s" for name in NAMES), flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    rates = {name: [turn.positions[0] / turn.seconds[0] for turn in turns[1:]] for name, turns in told.items()}
    busy = {name: [turn.processor_s[0] / turn.positions[0] for turn in turns[1:]] for name, turns in told.items()}
    losses = {name: [turn.losses[0] for turn in turns] for name, turns in told.items()}
    peaks = {name: turns[-1].peak_bytes / 2**30 for name, turns in told.items()}
    examples_per_s = [arguments.examples_per_step * rate / statistics.mean(turn.positions[0] for turn in told["ours"]) for rate in rates["ours"]]
    apart = [abs(a - b) for a, b in zip(losses["ours"], losses["peer"])]
    append(
        "lora_speed",
        conditions={
            "base": "30 layers x 576, 9 heads, 3 key heads, 1,536 inner, vocabulary 49,152 (SmolLM2-135M's shape, random weights)",
            "data": f"{text_sources()[1]}: prompts of {PROMPT_WORDS} words, completions of {COMPLETION_WORDS}",
            "method": "lora, rank 16, alpha 32, all seven projections, no dropout",
            "examples a step": arguments.examples_per_step,
            "threads": arguments.threads,
            "precision": "float32",
            "peer": "peft + transformers Trainer; same steps: the very examples of our steps, like lengths together",
            "turns": arguments.turns,
        },
        metrics={
            "speed_ratio_vs_peft": ([a / b for a, b in zip(rates["ours"], rates["peer-own-order"])], "ratio"),
            "speed_ratio_vs_peft_same_steps": ([a / b for a, b in zip(rates["ours"], rates["peer"])], "ratio"),
            "processor_ratio_vs_peft": ([b / a for a, b in zip(busy["ours"], busy["peer-own-order"])], "ratio"),
            "processor_ratio_vs_peft_same_steps": ([b / a for a, b in zip(busy["ours"], busy["peer"])], "ratio"),
            "tokens_per_s": (rates["ours"], "tokens/s"),
            "peft_tokens_per_s": (rates["peer-own-order"], "tokens/s"),
            "peft_tokens_per_s_same_steps": (rates["peer"], "tokens/s"),
            "examples_per_s": (examples_per_s, "examples/s"),
            "largest_loss_difference": ([max(apart)], "nats"),
            "peak_memory": ([peaks["ours"]], "GiB"),
            "peft_peak_memory": ([peaks["peer"]], "GiB"),
        },
    )


if __name__ == "__main__":
    main()
