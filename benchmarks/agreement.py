"""Agreement on SmolLM2-135M: ours with transformers, ours with llama.cpp on what we export, and how long a model folder takes to open.

Needs the model (`bedplate get smollm2-135m`); fetches it where it is missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from bedplate.adapt.base import Base
from bedplate.core.home import home
from bedplate.data.chat import ChatTemplate, Message
from bedplate.data.tokenizer import Encoder
from bedplate.model.formats.get import get
from bedplate.model.formats.gguf.llama_cpp import Questions, ask
from bedplate.model.formats.gguf.write import export
from bedplate.model.foundation import FoundationModel
from benchmarks.inputs import SCRATCH
from benchmarks.record import ROOT, append

QUESTIONS = ("What is the capital of France?", "Write a haiku about rain.", "What is 12 * 12?", "Name three colours.")
NEW_TOKENS = 24
OPENING = """
import sys, time
from pathlib import Path
import torch
from bedplate.adapt.base import Base
from bedplate.model.foundation import FoundationModel
started, started_cpu = time.perf_counter(), time.process_time()
base = Base.load(Path(sys.argv[1]))
opened, opened_cpu = time.perf_counter(), time.process_time()
with torch.inference_mode():
    base.model.forward_tokens(torch.tensor([base.words("The capital of France is").ids.tolist()]))
print(opened - started, opened_cpu - started_cpu, time.perf_counter() - started, time.process_time() - started_cpu)
"""
OPENED = ("opening", "opening_cpu", "opening_to_first_logits", "opening_to_first_logits_cpu")


def downloaded() -> Path:
    """The file that the model was made from."""
    return next((home() / "downloads").glob("*SmolLM2-135M-Instruct.Q4_1.gguf"))


@torch.inference_mode()
def with_transformers(folder: Path, base: Base, prompts: list[list[int]], texts: list[str]) -> dict[str, tuple[list[float], str]]:
    """Logits, greedy tokens, prompt ids and rendered conversations against transformers on the same folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    cutter = AutoTokenizer.from_pretrained(folder)
    logits, continued = [], []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        logits.append(float((base.model.forward_tokens(ids) - theirs(ids).logits).abs().max()))
        continued.append(theirs.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)[0, len(prompt) :].tolist())
    cut = [cutter(text, add_special_tokens=False).input_ids == base.encoder.encode(text).tolist() for text in texts]
    written = [
        list(cutter.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, return_dict=True)["input_ids"]) == prompt
        for q, prompt in zip(QUESTIONS, prompts)
    ]
    return {
        "transformers_logits_largest_difference": (logits, "logits"),
        "transformers_greedy_tokens_same": ([same_behind(base.model, prompts, continued)], "%"),
        "transformers_texts_cut_the_same": ([100 * float(np.mean(cut))], "%"),
        "transformers_chats_written_the_same": ([100 * float(np.mean(written))], "%"),
    }


def with_llama_cpp(folder: Path, base: Base, prompts: list[list[int]], texts: list[str]) -> dict[str, tuple[list[float], str]]:
    """Tokens, conversations and greedy tokens on the file that was fetched, and the exports' own judgement."""
    turns = [({"role": "user", "content": question},) for question in QUESTIONS]
    said = ask(downloaded(), Questions(texts=texts, conversations=turns, prompts=prompts, greedy=NEW_TOKENS))
    rendered = [base.template.render([Message(**turn) for turn in each], ask=True) for each in turns]
    metrics = {
        "llama_cpp_texts_cut_the_same": ([100 * float(np.mean([a == base.encoder.encode(t).tolist() for a, t in zip(said.tokens, texts)]))], "%"),
        "llama_cpp_chats_written_the_same": ([100 * float(np.mean([a == b for a, b in zip(said.rendered, rendered)]))], "%"),
        "llama_cpp_q4_1_greedy_tokens_same": ([same_behind(base.model, prompts, said.continued)], "%"),
    }
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("f16", "q8_0", "q4_0"):
            path = Path(scratch) / f"x.{kind}.gguf"
            found = export(base.model, folder / "tokenizer.json", path, kind, template=base.template.source)  # type: ignore[arg-type]
            metrics[f"export_{kind}_logits_difference"] = ([100 * found.logits], "% of their spread")
            metrics[f"export_{kind}_to_the_original"] = ([100 * found.quantisation], "% of their spread")
            metrics[f"export_{kind}_greedy_tokens_same"] = ([100 * found.greedy_same / found.greedy_tokens], "%")
            metrics[f"export_{kind}_size"] = ([path.stat().st_size / 1e6], "MB")
            path.unlink()
    return metrics


@torch.inference_mode()
def same_behind(model: FoundationModel, prompts: list[list[int]], continued: list[list[int]]) -> float:
    """Percent of a continuation's tokens that are our likeliest behind the same past."""
    same = [
        (model.forward_tokens(torch.tensor([prompt + more]))[0, len(prompt) - 1 : -1].argmax(-1) == torch.tensor(more)).float()
        for prompt, more in zip(prompts, continued)
    ]
    return 100 * float(torch.cat(same).mean())


def opening(folder: Path, times: int, suffix: str) -> dict[str, tuple[list[float], str]]:
    """Seconds in fresh processes until model, tokenizer and template are there, digests checked, and until the first logits; by the clock, and of
    the processors alone, which says more where others work too."""
    runs = [subprocess.run([sys.executable, "-c", OPENING, str(folder)], capture_output=True, text=True, check=True).stdout.split() for _ in range(times)]
    return {f"{name}{suffix}": ([float(words[place]) for words in runs], "s") for place, name in enumerate(OPENED)}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["opening", "agreement"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = get("smollm2-135m", say=print).folder
    base = Base.load(folder)
    template, encoder = ChatTemplate.of(folder), Encoder((folder / "tokenizer.json").read_text())
    prompts = [template.encode([Message("user", question)], encoder, ask=True).ids.tolist() for question in QUESTIONS]
    texts = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))] + ["Łódź café 早上好 🌊 ½ 12345 don't\r\n\t x  y"]
    half = get(str(downloaded()), SCRATCH / "smollm2-bfloat16", torch.bfloat16)
    conditions = {"model": "smollm2-135m from its Q4_1 file", "threads": arguments.threads, "load": f"{os.getloadavg()[0]:.1f}"}
    if "opening" in arguments.parts:
        append("opening", conditions, opening(folder, arguments.times, "") | opening(half.folder, arguments.times, "_bfloat16"))
    if "agreement" in arguments.parts:
        metrics = with_transformers(folder, base, prompts, texts) | with_llama_cpp(folder, base, prompts, texts)
        append("agreement", conditions | {"prompts": len(prompts), "new_tokens": NEW_TOKENS}, metrics)


if __name__ == "__main__":
    main()
