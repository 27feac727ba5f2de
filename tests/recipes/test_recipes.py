"""Every recipe is valid, says where its data comes from under which licence, and runs on a tiny cut of that data with a tiny base."""

import importlib.util
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from bedplate.adapt.loop import adapt
from bedplate.adapt.settings import AdaptSettings
from bedplate.core.config import Resolved, load
from bedplate.core.run import Run
from bedplate.infer.worker import Worker
from bedplate.testing.bases import tiny_base
from bedplate.testing.corpora import tiny_specs

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NAMES = sorted(path.parent.name for path in RECIPES.glob("*/recipe.toml"))


def prepare(name, *arguments):
    spec = importlib.util.spec_from_file_location("prepare", RECIPES / name / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.prepare(*arguments)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"), tiny_specs(channels=3))


def learn(name, base, tmp_path, file, **changes):
    """The recipe's own settings on a tiny base, for a moment."""
    asked = load(AdaptSettings, path=RECIPES / name / "recipe.toml").value
    train = replace(asked.train, epochs=0.2, threads=1, examples_per_step=4)
    asked = replace(asked, base=base, to=tmp_path / "to", train=train, data=replace(asked.data, file=file, **changes))
    with Run.open(tmp_path / "to.run", "adapt", Resolved(asked, {})) as run:
        return asked, adapt(asked, run)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_and_tells_its_data_and_licence(name):
    path = RECIPES / name / "recipe.toml"
    asked, told = load(AdaptSettings, path=path).value, path.read_text()
    assert "# Data:" in told and f"--recipe recipes/{name}/recipe.toml" in told
    assert any(word in told for word in ("MIT", "Apache-2.0", "CC0-1.0", "CC-BY-SA-4.0", "licence is yours"))
    assert f"({name}/recipe.toml)" in (RECIPES / "README.md").read_text()
    assert str(asked.to) in told.split("\n\n")[0] or asked.task == "continue"


@pytest.mark.shared
def test_legal_summaries(base, shared_data, tmp_path):
    file = prepare("legal-summaries", shared_data / "text" / "legal-summaries.zip", tmp_path / "data", 30)
    asked, manifest = learn("legal-summaries", base, tmp_path, file)
    assert manifest.about["examples"] + manifest.about["held_out"] == 30
    assert isinstance(Worker.load(base, asked.to).generate(["you may not"], max_tokens=3)[0], str)


@pytest.mark.shared
def test_blood_cells(base, shared_data, tmp_path):
    few = prepare("blood-cells", shared_data / "images" / "blood-cells.zip", tmp_path / "data", 25, 3)
    folders = {folder.name: len(list(folder.iterdir())) for folder in few.iterdir()}
    assert folders == {"RBC": 3, "WBC": 3, "Platelets": 3} and list((tmp_path / "data" / "unlabelled").iterdir())
    judged = tmp_path / "data" / "judged"
    assert not {p.name for p in few.rglob("*.png")} & {p.name for p in judged.rglob("*.png")}
    _, manifest = learn("blood-cells", base, tmp_path, few, held_out_file=judged)
    assert manifest.about["examples"] == 9 and manifest.about["held_out"] > 20


@pytest.mark.shared
def test_attack_techniques(base, shared_data, tmp_path):
    cti = shared_data / "cti"
    folder = prepare("attack-techniques", cti / "tram.json", cti / "enterprise-attack.zip", tmp_path / "data", 60)
    learned, judged = ([json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in ("learn", "judged"))
    assert not {row["report"] for row in learned} & {row["report"] for row in judged}
    assert {row["counts"] for row in learned} == {0.3, 1.0} and not any("(Citation" in row["text"] or "](" in row["text"] for row in learned)
    asked, manifest = learn("attack-techniques", base, tmp_path, folder / "learn.jsonl", held_out_file=folder / "judged.jsonl")
    assert manifest.about["examples"] == len(learned) and manifest.about["held_out"] == len(judged)
    assert set(Worker.load(base, asked.to).predict(["The loader decrypts its payload."])[0].probabilities) == {row["label"] for row in learned}


@pytest.mark.shared
def test_spam(base, shared_data, tmp_path):
    file = prepare("spam", shared_data / "text" / "spam-assassin.zip", tmp_path / "data", 40)
    asked, manifest = learn("spam", base, tmp_path, file)
    assert "Received:" not in file.read_text() and manifest.about["examples"] > 20
    assert set(Worker.load(base, asked.to).predict(["You have won a prize"])[0].probabilities) == {"ham", "spam"}


@pytest.mark.shared
def test_code_completion(base, shared_data, tmp_path):
    with zipfile.ZipFile(shared_data / "code" / "thealgorithms.zip") as archive:
        archive.extractall(tmp_path / "repository", [name for name in archive.namelist() if name.startswith("backtracking/")][:8])
    asked, manifest = learn("code-completion", base, tmp_path, tmp_path / "repository", most_positions=64, held_out=0.3)
    assert manifest.kind == "model" and (asked.to / "model.safetensors").exists()


@pytest.mark.shared
def test_spoken_digits(base, shared_data, tmp_path):
    file = prepare("spoken-digits", shared_data / "audio" / "fsdd.zip", tmp_path / "data", 60)
    judged = file.with_name("judged.jsonl")
    _, manifest = learn("spoken-digits", base, tmp_path, file, held_out_file=judged)
    assert manifest.about["examples"] > 30 and manifest.about["held_out"] > 0
    speakers = [{json.loads(line)["speaker"] for line in path.read_text().splitlines()} for path in (file, judged)]
    assert len(speakers[1]) == 1 and not speakers[0] & speakers[1]
    assert {path.stem.split("_")[1] for path in (file.parent / "learned").iterdir()} == speakers[0]
