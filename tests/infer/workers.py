"""Workers of every task that predicts, as `bedplate adapt` makes them."""

import json

from bedplate.adapt.loop import adapt
from bedplate.adapt.settings import AdaptSettings, ExampleSettings, ExtractSettings, MethodSettings, TrainSettings
from bedplate.core.config import Resolved
from bedplate.core.run import Run
from bedplate.testing.corpora import WORDS

TEXTS = [" ".join(WORDS[n : n + 4]) for n in range(8)]
PREDICTING = ("classify", "regress", "embed", "rank", "extract")
ROWS = {
    "classify": [{"text": text, "label": ("quiet", "busy")[n % 2]} for n, text in enumerate(TEXTS)],
    "regress": [{"text": text, "value": float(n)} for n, text in enumerate(TEXTS)],
    "embed": [{"text": text, "positive": text[::-1]} for text in TEXTS],
    "rank": [{"query": text, "positive": text[::-1], "negatives": [TEXTS[n - 1], TEXTS[n - 2][::-1]]} for n, text in enumerate(TEXTS)],
    "extract": [{"text": text, "spans": [{"start": 0, "end": text.index(" "), "label": ("first", "other")[n % 2]}]} for n, text in enumerate(TEXTS)],
}  # fmt: skip


def made(folder, task, rows=None, method="lora", sees="auto", **data):
    """An adapter for a job."""
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS[task]))
    settings = AdaptSettings(
        base=folder / "base", to=folder / task, task=task, data=ExampleSettings(file=folder / f"{task}.jsonl", **data),
        method=MethodSettings(name=method), train=TrainSettings(device="cpu", threads=1, epochs=1), extract=ExtractSettings(sees=sees),
    )  # fmt: skip
    with Run.open(folder / f"{task}.run", "adapt", Resolved(settings, {})) as run:
        adapt(settings, run)
    return folder / task
