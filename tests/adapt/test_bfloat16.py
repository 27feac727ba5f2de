"""Adaptation in bfloat16 on a processor: it runs for every method and job that trains, and ends near float32."""

import json

import numpy as np
import pytest
import torch
from adaptations import done, labelled
from safetensors.torch import load_file

from bedplate.adapt.settings import AdaptSettings, ExampleSettings, MethodSettings, TrainSettings
from bedplate.core.events import read_events


def learned(base_folder, file, to, task, method, precision):
    train = TrainSettings(threads=1, epochs=4, lr=5e-3, device="cpu", precision=precision, evaluate_every=100, patience=0)
    about = done(AdaptSettings(base_folder, to, task, ExampleSettings(file, held_out=0.2), method, train=train)).about
    losses = [event["loss"] for event in read_events(to.with_name(to.name + ".run") / "events.jsonl", ("step",))]
    return about["scores"], np.array(losses), {name: t for path in sorted(to.glob("*.safetensors")) for name, t in load_file(path).items()}


@pytest.mark.parametrize(("task", "method"), [
    ("generate", MethodSettings("lora", rank=4)), ("generate", MethodSettings("dora", rank=4)), ("generate", MethodSettings("full")),
    ("generate", MethodSettings("lora", rank=4, base_bits=8)), ("classify", MethodSettings("lora", rank=4)), ("embed", MethodSettings("lora", rank=4)),
], ids=["lora", "dora", "full", "few-bits", "classify", "embed"])  # fmt: skip
def test_half_the_digits_learn_nearly_the_same(base_folder, tmp_path, task, method):
    file = tmp_path / "rows.jsonl"
    rows = [row | {"prompt": row["text"], "completion": row["label"], "positive": row["text"][::-1]} for row in labelled(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    exact, near = (learned(base_folder, file, tmp_path / precision, task, method, precision) for precision in ("float32", "bfloat16"))
    assert exact[1].shape == near[1].shape and np.isfinite(near[1]).all()
    np.testing.assert_allclose(*(losses.reshape(4, -1).mean(1) for losses in (near[1], exact[1])), rtol=0.05, atol=0.02)  # each epoch's
    assert near[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.1, abs=0.05)
    assert any(not torch.equal(near[2][name], tensor) for name, tensor in exact[2].items()), "the products must really be in bfloat16"
    assert all(tensor.dtype == torch.float32 for tensor in near[2].values()), "what is learned is kept exactly"
