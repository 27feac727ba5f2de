"""Logs as real runs write them: noisy losses of several senses that fall as a power of the step, a warm-up and a decay, pauses for saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bedplate.report.log import RunLog, Setting

SENSES = {"text": (7.6, 2.4), "image": (1.1, 0.42), "audio": (1.05, 0.55), "series": (1.2, 0.5)}
"""Sense -> loss at the first step and the floor it tends to."""
MACHINE = {"bedplate": "0.1.0", "python": "3.12.4", "torch": "2.13.0", "system": "Linux 6.1", "processor": "a processor", "cores": 2}
SETTINGS = (
    Setting("run.rows_per_micro", 8, "--set"),
    Setting("run.seed", 0, "default"),
    Setting("optim.adam_lr", 3e-3, "recipe.toml"),
    Setting("optim.muon_lr", 0.02, "default"),
    Setting("run.budget", "20m", "command line"),
)


def events(steps: int = 600, seed: int = 0, total: int | None = None, start_t: float = 1_790_000_000.0) -> list[dict[str, Any]]:
    """The events of a healthy run of `steps` steps (of `total`)."""
    rng = np.random.default_rng(seed)
    total = total or steps
    t = start_t
    out: list[dict[str, Any]] = [
        {"t": t, "event": "run_started", "kind": "pretrain", "settings": {}, "environment": MACHINE | {"memory_bytes": 8 << 30}},
        {"t": t, "event": "chosen", "what": "model.size", "value": "micro", "reason": "the size that 20 min train best"},
        {"t": t, "event": "chosen", "what": "run.rows_per_micro", "value": 8, "reason": "the fastest of 4, 8, 16"},
    ]
    drift = 0.0
    for step in range(1, steps + 1):
        drift = 0.9 * drift + rng.normal(0, 0.01)
        fall = (1 + step / 12) ** -0.55
        losses = {f"loss_{s}": lo + (hi - lo) * fall + drift + rng.normal(0, 0.04 * lo) for s, (hi, lo) in SENSES.items()}
        rate = min(step / (0.05 * total), 1.0, max(0.0, (total - step) / (0.4 * total)))
        step_s = 0.42 + rng.gamma(2.0, 0.01) + (0.3 if step == 1 else 0.0)
        t += step_s
        out.append(
            {
                "t": round(t, 3),
                "event": "step",
                "step": step,
                "steps": total,
                "tokens": step * 4096,
                "loss": float(np.mean(list(losses.values()))),
                **{k: float(v) for k, v in losses.items()},
                "gradient_norm": float(0.9 * fall + 0.25 + rng.gamma(3, 0.02)),
                "lr": 3e-3 * rate,
                "step_s": float(step_s),
                "loader_s": float(0.004 + rng.gamma(1.5, 0.002)),
                "memory_bytes": int((1.9 if step < 5 else 2.3) * 2**30 + rng.integers(0, 2**22)),
                "units_per_s": float(4096 / step_s),
                "epoch": step / total * 0.9,
            }
        )
        if step % max(1, total // 10) == 0 or step == total:
            held_out = {k: float(v * 1.02 + rng.normal(0, 0.005)) for k, v in losses.items()}
            smooth_fall = (1 + step / 12) ** -0.55
            held_out = {f"loss_{s}": float(1.02 * (lo + (hi - lo) * smooth_fall)) for s, (hi, lo) in SENSES.items()}
            held_out["loss"] = float(np.mean(list(held_out.values())))
            out.append({"t": round(t, 3), "event": "evaluated", "step": step, **held_out, "bits_per_byte": held_out["loss_text"] / 2.77})
            out.append({"t": round(t, 3), "event": "checkpoint_saved", "step": step, "path": f"checkpoints/{step}", "seconds": 0.12})
    if steps == total:
        out.append({"t": round(t, 3), "event": "run_finished", "seconds": round(t - start_t, 1)})
    return out


def log(these: list[dict[str, Any]] | None = None, state: str = "finished", settings: tuple[Setting, ...] = SETTINGS, folder: Path = Path("runs/first")) -> RunLog:
    """A RunLog over events."""
    return RunLog(folder, events() if these is None else these, settings, state)


def change(these: list[dict[str, Any]], **how: Any) -> list[dict[str, Any]]:
    """The events with fields of each step replaced: name = function(step number, old value)."""
    return [e | {k: f(e["step"], e.get(k)) for k, f in how.items()} if e["event"] == "step" else e for e in these]
