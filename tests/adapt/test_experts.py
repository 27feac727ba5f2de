"""A base with experts goes the whole way: brought in, adapted, asked, merged, chatted with; and is refused where experts are not trained."""

import json

import pytest
import torch
from adaptations import done, labelled

from bedplate.adapt.merge import merge
from bedplate.adapt.settings import AdaptSettings, ExampleSettings, MethodSettings, TrainSettings
from bedplate.core.errors import DataError
from bedplate.core.generation import Ask, Sampling, Turn, whole
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.speakers import Speakers
from bedplate.infer.worker import Worker
from bedplate.model.formats.get import get
from bedplate.model.foundation import FoundationModel
from bedplate.testing.bases import tiny_base
from bedplate.testing.models import EXPERTS, family_model


@pytest.mark.parametrize("name", EXPERTS)
def test_a_base_with_experts_learns_a_job(name, tmp_path):
    plain = tiny_base(tmp_path, model=family_model(name))
    (plain / "manifest.json").unlink()
    base = get(str(plain), tmp_path / "brought").folder
    assert json.loads((base / "config.json").read_text())["model_type"] == EXPERTS[name].model_type
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"prompt": row["text"], "completion": row["label"]}) + "\n" for row in labelled(40)))
    train, data = TrainSettings(threads=1, epochs=2, lr=5e-3), ExampleSettings(tmp_path / "rows.jsonl")
    about = done(AdaptSettings(base, tmp_path / "adapter", "generate", data, MethodSettings(rank=4), train=train)).about
    assert about["scores"]["loss"] < about["scores_before"]["loss"]
    said = Worker.load(base, tmp_path / "adapter").generate(["brisk wind"], max_tokens=4)
    merge(base, [tmp_path / "adapter"], tmp_path / "merged")
    ids = torch.randint(20, 300, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(FoundationModel.load(tmp_path / "merged").forward_tokens(ids), FoundationModel.load(base).forward_tokens(ids))
    with Speakers(base, EngineSettings(device="cpu", precision="float32", cache_bytes=2**20)) as speakers:
        generator, worker = speakers.choose(tmp_path / "adapter")
        assert whole(generator, Ask(worker, (Turn.of("user", "brisk wind"),), sampling=Sampling(4)))[0] == said[0]
        assert speakers.engine.runner.name.startswith("torch float32")
    with pytest.raises(DataError, match="equally busy") as told:
        done(AdaptSettings(base, tmp_path / "more", "continue", data, MethodSettings("full"), train=train))
    assert "lora" in told.value.hint
