"""Whoever is chosen says what the slow way says: the base, an adapter in its engine, one that changed all weights in its own. A choice that fails changes nothing."""

import json

import pytest

from bedplate.adapt.loop import adapt
from bedplate.adapt.settings import AdaptSettings, ExampleSettings, MethodSettings, TrainSettings
from bedplate.core.config import Resolved
from bedplate.core.errors import BedplateError, ConfigError, StateError
from bedplate.core.generation import Ask, Sampling, Turn, whole
from bedplate.core.run import Run
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.native import Native
from bedplate.infer.speakers import Speakers
from bedplate.infer.worker import Worker
from bedplate.testing.bases import tiny_base
from bedplate.testing.corpora import WORDS

QUESTION = "the river"


def learned(folder, name, task, method, rows):
    """An adapter, as `bedplate adapt` makes one."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = AdaptSettings(
        base=folder / "base", to=folder / name, task=task, data=ExampleSettings(file=folder / f"{name}.jsonl"),
        method=MethodSettings(name=method), train=TrainSettings(device="cpu", threads=1, epochs=6, lr=3e-2 if method == "lora" else 3e-3),
    )  # fmt: skip
    with Run.open(folder / f"{name}.run", "adapt", Resolved(settings, {})) as run:
        adapt(settings, run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers")
    tiny_base(folder)
    texts = [" ".join(WORDS[n : n + 4]) for n in range(8)]
    learned(folder, "lamps", "generate", "lora", [{"prompt": text, "completion": "lamps lamps lamps"} for text in texts])
    learned(folder, "all", "generate", "full", [{"prompt": text, "completion": "rivers rivers"} for text in texts])
    learned(folder, "sorts", "classify", "full", [{"text": text, "label": ("quiet", "busy")[n % 2]} for n, text in enumerate(texts)])
    return folder


@pytest.fixture
def speakers(folder):
    with Speakers(folder / "base", EngineSettings(precision="float32", device="cpu", threads=1, most_running=1, cache_bytes=2**26)) as speakers:
        yield speakers


def says(chosen):
    generator, worker = chosen
    return whole(generator, Ask(worker, (Turn.of("user", QUESTION),), sampling=Sampling(12)))[0]


def test_everybody_says_what_the_slow_way_says(speakers, folder):
    wanted = {name: Worker.load(folder / "base", folder / name).generate([QUESTION], max_tokens=12)[0] for name in ("lamps", "all")}
    first = says(speakers.choose(None))
    engine = speakers.engine
    assert says(speakers.choose(folder / "lamps")) == wanted["lamps"] and speakers.engine is engine, "an adapter is a name in the same engine"
    assert says(speakers.choose(folder / "lamps")) == wanted["lamps"] and len(engine.adapters) == 1, "chosen anew, read anew"
    assert says(speakers.choose(None)) == first and not engine.adapters
    assert says(speakers.choose(folder / "all")) == wanted["all"] and speakers.engine is not engine
    with pytest.raises(StateError, match="closed"):
        whole(Native(engine), Ask(prompt="x"))
    assert says(speakers.choose(folder / "lamps")) == wanted["lamps"] and says(speakers.choose(None)) == first
    assert len({first, *wanted.values()}) == 3


@pytest.mark.parametrize("before", [None, "lamps", "all"])
@pytest.mark.parametrize(("name", "error", "told"), [("sorts", ConfigError, "learned to classify"), ("nowhere", BedplateError, "nowhere")])
def test_a_choice_that_fails_changes_nothing(speakers, folder, before, name, error, told):
    chosen = speakers.choose(before and folder / before)
    engine, said = speakers.engine, says(chosen)
    with pytest.raises(error, match=told):
        speakers.choose(folder / name)
    assert speakers.engine is engine and says(chosen) == said
