"""Makes docs/benchmarks.md, docs/adaptation.md and the README's table from the records in results/. Run by `make docs`; a test fails when they are stale."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

HEADLINES: tuple[tuple[str, str, str], ...] = (
    # (case, metric, what a reader calls it, with the aim)
    ("pretrain_speed", "speed_ratio_vs_transformers", "pre-training step, 5M text model on CPU, against a `transformers` Trainer (aim ≥ 1.3×)"),
    ("pretrain_speed", "gemm_peak_share", "share of this machine's measured GEMM peak in that step (aim ≥ 60%)"),
    ("time_to_quality", "time_ratio_vs_transformers", "wall time to the tuned Trainer's final validation loss, as a share of the Trainer's (aim ≤ 0.5×)"),
    ("lora_speed", "speed_ratio_vs_peft_same_steps", "LoRA on CPU, SmolLM2's shape, against `peft` and a Trainer given our very steps (aim ≥ 1.5×)"),
    ("lora_speed", "speed_ratio_vs_peft", "the same against the Trainer's own order, at random and padded (reported)"),
    ("corpus_build", "raw_text_rate", "corpus building, raw text, end to end (aim ≥ 5 MB/s)"),
    ("corpus_build", "peak_memory_ratio_tenfold", "peak memory when the input grows tenfold (aim: flat)"),
    ("label_efficiency_mnist10k", "gain_at_100", "digits, 100 labels: pre-trained against the same network from scratch (aim ≥ 10 points)"),
    ("label_efficiency_fsdd", "gain_at_100", "spoken digits, 100 labels: pre-trained against from scratch (aim ≥ 10 points)"),
    ("label_efficiency_cifar10", "gain_at_100", "cifar10, 100 labels (reported)"),
    ("label_efficiency_blood_cells", "gain_at_100", "blood cells, 100 labels (reported)"),
    ("adaptation_pays_mnist10k", "gain_at_200", "adapted with 200 labels, base against scratch at equal compute: handwritten digits (aim > 0)"),
    ("adaptation_pays_fsdd_known", "gain_at_200", "the same for spoken digits of known speakers (aim > 0)"),
    ("adaptation_pays_fsdd", "gain_at_200", "the same for spoken digits of new speakers (aim > 0)"),
    ("adaptation_pays_tram", "gain_at_200", "the same for the ATT&CK technique of a sentence (aim > 0)"),
    ("generation_digits", "recognised", "of 200 digits painted as asked, recognised (aim ≥ 80%)"),
    ("generation_spoken_digits", "recognised", "spoken digits recognised as asked (aim ≥ 50%)"),
    ("opening", "opening", "opening SmolLM2-135M, every digest checked (aim < 2 s)"),
    ("open_weights_scores", "piqa_accuracy_normalised", "SmolLM2-135M-Instruct on PIQA, its 4-bit weights (published: 66.3)"),
    ("attack_techniques", "probe_words_attack_micro_f1", "report sentence to ATT&CK technique, micro-F1, folds by report (TF-IDF + SVM .842, aim ≥ .86)"),
    ("attack_techniques", "probe_words_attack_macro_f1", "the same, macro-F1 (TF-IDF + SVM .730, aim ≥ .77)"),
    ("attack_techniques", "probe_words_attack_top_3", "the same, the right one among the first three (aim ≥ .95)"),
    ("serving_peers_32", "speed_ratio_vs_openvino_q8_0", "32 requests at once, 128 tokens in and out, against OpenVINO GenAI, q8_0 (aim ≥ 1.1×)"),
    ("serving_peers_32", "speed_ratio_vs_openvino_f16", "the same against OpenVINO GenAI, f16 (aim ≥ 1.1×)"),
    ("serving_peers_32", "speed_ratio_vs_llama_cpp_q8_0", "the same against llama.cpp, q8_0, from its wheel (aim ≥ 2×)"),
    ("serving_peers_32", "speed_ratio_vs_transformers_fp32", "the same against `transformers` with static batches (aim ≥ 2×)"),
    ("serving_peers_8", "speed_ratio_vs_llama_cpp_q8_0", "8 requests at once, against llama.cpp (aim ≥ 1.5×)"),
    ("serving_peers_1", "decode_ratio_vs_llama_cpp_q8_0", "one request, tokens after the first, against llama.cpp (aim ≥ 1×)"),
    ("serving_peers_1", "decode_ratio_vs_transformers_fp32", "the same against `transformers` (aim ≥ 2×)"),
    ("decode_bandwidth", "share_of_bandwidth", "bytes read for each token of one request, as a share of what this machine can read (reported)"),
    ("adapters_in_batch", "processor_share_of_one_adapter", "sixteen adapters in one batch, speed as a share of one adapter's, by processor time (aim ≥ 0.8)"),
    ("adapters_in_batch", "speed_ratio_vs_peft_switching", "the same against `peft` that switches adapters (reported)"),
    ("prompt_lookup", "decode_speed_ratio_guessed_to_plain", "guesses from the prompt on summaries, same answers (reported)"),
    ("gateway_overhead", "overhead", "what the gateway adds to the engine's time at 32 streams (aim ≤ 5%)"),
    ("making_speed", "pictures_ratio_int8", "eight guided pictures at once through the engine, against one after the other (reported)"),
    ("making_speed", "sound_ratio_int8", "the same for sounds (reported)"),
    ("cache_timing", "auc_between_tenants", "telling from the time to the first token whether another tenant asked before, AUC (aim 0.5 ± 0.05)"),
    ("cache_timing", "auc_within_a_tenant", "the same attack within one tenant, where it must succeed (aim ≥ 0.8)"),
    ("gpu_small", "tokens_per_s", "125M text model on one GPU (aim ≥ 400k tokens/s on an H100)"),
)


def records(case: str) -> list[dict[str, Any]]:
    """The records of a case, oldest first."""
    path = RESULTS / f"{case}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.exists() else []


def number(metric: dict[str, Any]) -> str:
    """A metric with its spread and unit."""

    def short(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    middle, low, high = (short(metric[key]) for key in ("median", "min", "max"))
    spread = "" if low == high else f" ({low} .. {high})"
    unit = metric["unit"]
    return f"{middle}{spread}" + (f" {unit}" if unit and unit != "ratio" else "×" if unit == "ratio" else "")


def headline_table() -> str:
    """The README's table: the newest record of every headline."""
    lines = ["| what | measured | when, where |", "| --- | --- | --- |"]
    for case, metric, name in HEADLINES:
        found = [r for r in records(case) if metric in r["metrics"]]
        if found:
            last = found[-1]
            lines.append(f"| {name} | {number(last['metrics'][metric])} | {last['date'][:10]}, {last['device']} |")
        else:
            lines.append(f"| {name} | not measured yet | |")
    return "\n".join(lines)


def all_tables() -> str:
    """docs/benchmarks.md: every case with its newest record in full, and how many there are."""
    parts = [
        "# Benchmarks",
        "",
        "Made from `benchmarks/results/` by `make docs`; do not edit. Ratios against a peer are measured interleaved in one run.",
        "Median, then lowest and highest in brackets.",
    ]
    for path in sorted(RESULTS.glob("*.jsonl")):
        found = records(path.stem)
        if not found:
            continue
        last = found[-1]
        conditions = ", ".join(f"{key} {value}" for key, value in last["conditions"].items())
        versions = ", ".join(f"{key} {value}" for key, value in last["versions"].items())
        parts += ["", f"## {path.stem}", "", f"{last['date']}, commit {last['commit']}, {last['device']}; {len(found)} record(s).", ""]
        parts += [f"Conditions: {conditions}. Versions: {versions}.", "", "| metric | value |", "| --- | --- |"]
        parts += [f"| {name} | {number(metric)} |" for name, metric in last["metrics"].items()]
    return "\n".join(parts) + "\n"


def with_table(readme: str) -> str:
    """The README's text with its table replaced by the newest."""
    return re.sub(
        r"(<!-- table: benchmarks.*?-->\n).*?(<!-- /table -->)", lambda match: match[1] + headline_table() + "\n" + match[2], readme, flags=re.DOTALL
    )


def main() -> None:
    """Write them."""
    from benchmarks import adaptation_page

    adaptation_page.write()
    (ROOT / "docs" / "benchmarks.md").write_text(all_tables())
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text()))


if __name__ == "__main__":
    main()
