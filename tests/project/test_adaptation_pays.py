"""The benchmark of adaptation: what its two arms share, what is kept apart, and what its page says."""

import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bedplate.adapt.label_efficiency import Accuracy
from bedplate.model.foundation import FoundationModel
from bedplate.testing.models import tiny_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import adaptation_page, adaptation_pays


def rows():
    rng = np.random.default_rng(0)
    return [{"text": f"{i}", "label": f"T{min(rng.geometric(0.3), 9)}", "doc_title": f"report {rng.integers(30)}"} for i in range(600)]


def test_a_report_is_learned_from_or_judged_never_both():
    train, test = adaptation_pays.by_document(rows(), 4, 0.25)
    assert not {row["doc_title"] for row in train} & {row["doc_title"] for row in test}
    kept = adaptation_pays.rows_of(rows(), 4)
    assert len(train) + len(test) == len(kept) and {row["label"] for row in kept} == {"T1", "T2", "T3", "T4"}
    assert 0.25 <= len(test) / len(kept) < 0.35
    assert (train, test) == adaptation_pays.by_document(rows(), 4, 0.25)


def test_validation_is_apart_from_what_labels_are_drawn_from():
    kept, validation = adaptation_pays.set_apart(1000, 300)
    assert len(validation) == 300 and sorted([*kept, *validation]) == list(range(1000))


def test_lower_layers_and_tokens_in_use_are_the_models_own():
    model = tiny_model(random=True)
    used = sorted({5, 90, 17, *model.config.special_ids.values()})
    small = adaptation_pays.smaller(model, 1, used)
    assert small.config.num_hidden_layers == 1 < model.config.num_hidden_layers
    assert {name: used[token] for name, token in small.config.special_ids.items()} == model.config.special_ids
    of_it = FoundationModel(replace(model.config, num_hidden_layers=1))
    of_it.load_state_dict({name: model.state_dict()[name] for name in of_it.state_dict()})
    tokens = torch.tensor([[17, 90, 5]])
    here = torch.tensor([[used.index(int(token)) for token in tokens[0]]])
    assert torch.allclose(small.forward_tokens(here), of_it.forward_tokens(tokens)[..., used], atol=1e-5)


def test_a_stopped_measurement_goes_on_and_another_starts_afresh(tmp_path):
    path, calls = tmp_path / "measured.json", []

    def measured(value):
        calls.append(value)
        return value

    assert adaptation_pays.Kept(path, ("nano", 3)).value("a", lambda: measured(0.5)) == 0.5
    again = adaptation_pays.Kept(path, ("nano", 3))
    assert again.value("a", lambda: measured(0.7)) == 0.5 and again.value("b", lambda: measured(0.9)) == 0.9
    assert adaptation_pays.Kept(path, ("nano", 4)).value("a", lambda: measured(0.7)) == 0.7
    assert calls == [0.5, 0.9, 0.7] and again.seconds() >= 0


def test_gains_are_paired_by_draw():
    results = [Accuracy("finetune", 50, (0.5, 0.9)), Accuracy("scratch", 50, (0.4, 0.95))]
    metrics = adaptation_pays.metrics_of(results)
    assert metrics["gain_at_50"][0] == pytest.approx([10.0, -5.0])
    assert metrics["base_at_50"] == ([50.0, 90.0], "%")


def record(*gains):
    told = dict.fromkeys(("job", "base", "classes", "test things", "both arms", "learning rate", "processor time of both arms"), "x")

    def metric(low):
        return {"median": low + 1, "min": low, "max": low + 2, "unit": "%"}

    metrics = {f"{name}_at_{size}": metric(gain) for size, gain in zip((50, 200), gains) for name in ("base", "scratch", "gain")}
    return {"conditions": told, "metrics": metrics, "device": "d", "date": "2026-11-26"}


def test_the_page_says_where_the_base_does_not_win():
    assert adaptation_page.verdict({"a": record(3.0, 1.0)}) == "The base wins in every draw of 2 of 2 cases."
    told = adaptation_page.verdict({"a": record(3.0, -2.0)})
    assert told.startswith("The base wins in every draw of 1 of 2 cases.") and "x at 200 labels (-1.0 (-2.0 .. 0.0) points)" in told


def test_the_figure_is_a_file_for_light_and_dark():
    svg = adaptation_page.figure(record(3.0, 40.0))
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "prefers-color-scheme: dark" in svg and "#000" not in svg
    light, dark = svg.split("prefers-color-scheme: dark")
    for name in ("--ink", "--faint", "--c-1", "--c-2"):
        assert f"var({name})" in dark and f"{name}: #" in light and f"{name}: #" in dark
    assert ">50<" in svg and ">200<" in svg
