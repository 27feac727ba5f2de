"""Workers with several labels, numbers, orders and stretches: statistics against scikit-learn and scipy, and each job from examples to a comparison."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.adapt.calibrate import expected_calibration_error
from bedplate.adapt.tasks.classify import Label as Said
from bedplate.adapt.tasks.extract import Extraction, Found
from bedplate.adapt.tasks.rank import Ranking
from bedplate.adapt.tasks.regress import Number
from bedplate.cli.app import main
from bedplate.core.errors import DataError
from bedplate.evaluate.kinds import Example
from bedplate.evaluate.stats import difference, score
from bedplate.evaluate.worker_kinds import Labels, Numbers, Order, Spans
from bedplate.testing.corpora import WORDS

several = st.lists(st.sampled_from("abcd"), max_size=4, unique=True).map(sorted)


@given(st.lists(st.tuples(several, several), min_size=1, max_size=30))
def test_f1_of_several_labels_is_scikit_learns(pairs):
    from sklearn.metrics import f1_score

    wanted, given_ = map(list, zip(*pairs))
    names = sorted({name for both in pairs for part in both for name in part})
    kinds = [Labels().values(Example("x", answer=w), Said(None, tuple(g), 0.5, dict.fromkeys("abcd", 0.5))) for w, g in pairs]
    columns = {name: [values[name] for values in kinds] for name in ("both", "given", "wanted")}
    truth, said = (np.array([[name in one for name in "abcd"] for one in part]) for part in (wanted, given_))
    occur = ["abcd".index(name) for name in names]
    if names:
        assert score("f1", columns).value == pytest.approx(f1_score(truth, said, average="micro", zero_division=1))
        assert score("macro_f1_several", {"labels": wanted, "said": given_}).value == pytest.approx(f1_score(truth, said, labels=occur, average="macro"))
    else:
        assert score("f1", columns).value == 1


@given(st.lists(st.tuples(st.integers(-9, 9), st.floats(-9, 9)), min_size=4, max_size=40))
def test_numbers_are_scipys_and_scikit_learns(pairs):
    from scipy.stats import spearmanr
    from sklearn.metrics import r2_score

    value, said = (np.array(part, float) for part in zip(*pairs))
    found = {how: score(how, {"value": value, "said": said}) for how in ("explained", "rank_correlation")}
    if np.ptp(value) > 0:
        assert found["explained"].value == pytest.approx(r2_score(value, said), rel=1e-6, abs=1e-6)
        assert difference("explained", {"value": value, "said": value}, {"value": value, "said": said}).value == pytest.approx(1 - found["explained"].value)
    if np.ptp(value) > 0 and np.ptp(said) > 0:
        assert found["rank_correlation"].value == pytest.approx(spearmanr(value, said).statistic, abs=1e-6)
    else:
        assert np.isnan(found["rank_correlation"].value)


@given(st.lists(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=3, max_size=3), min_size=1, max_size=30))
def test_calibration_over_all_labels(rows):
    sure, true = ([[pair[k] for pair in row] for row in rows] for k in (0, 1))
    expected = expected_calibration_error(np.array(sure).ravel(), np.array(true).ravel() > 0)
    assert score("calibration_several", {"probabilities": sure, "holds": true}).value == pytest.approx(expected)


def test_intervals_hold_and_pairs_are_told():
    rng = np.random.default_rng(0)
    value = rng.normal(size=200)
    good, poor = value + 0.3 * rng.normal(size=200), value + 1.5 * rng.normal(size=200)
    for how in ("explained", "rank_correlation"):
        one, other = ({"value": value.tolist(), "said": said.tolist()} for said in (good, poor))
        found, apart = score(how, one), difference(how, one, other)
        assert found.low < found.value < found.high and apart.clear and apart.low > 0
    hits = 0
    for _ in range(60):  # 95% of the intervals of a correlation hold the true one, .5 by design
        x = rng.normal(size=80)
        y = 0.5176 * x + np.sqrt(1 - 0.5176**2) * rng.normal(size=80)  # Spearman's of a normal pair is 6/pi asin(r/2): .5
        one = score("rank_correlation", {"value": x, "said": y})
        hits += one.low <= 0.5 <= one.high
    assert hits >= 51


def test_values_of_examples():
    order = Order().values(Example("x", answer=[0, 2, 1], cells={"texts": ["a", "b", "c"]}), Ranking((2, 1, 0), (0.0, 1.0, 2.0)))
    assert order["reciprocal_rank"] == 1 and not order["right"] and 0.7 < order["ndcg_at_10"] < 1
    assert Order().values(Example("x", answer=1, cells={"texts": ["a", "b"]}), Ranking((0, 1), (2.0, 1.0)))["reciprocal_rank"] == 0.5
    number = Numbers().values(Example("x", answer=3), Number(2.5, 2.0, 4.0))
    assert number == {"value": 3.0, "said": 2.5, "error": 0.5, "in_range": True}
    assert "in_range" not in Numbers().values(Example("x", answer=3), Number(2.5, None, None))
    spans = [{"start": 0, "end": 3, "label": "a"}, {"start": 4, "end": 6, "label": "b"}]
    said = Extraction((Found(0, 3, "a", "abc", 0.9), Found(4, 6, "a", "de", 0.8)))
    assert {"both": 1, "given": 2, "wanted": 2, "right": False}.items() <= Spans().values(Example("x", answer=spans), said).items()


@pytest.mark.parametrize(("kind", "answer", "cells"), [
    (Labels(), "a", {}), (Numbers(), "3", {}), (Numbers(), True, {}), (Numbers(), float("nan"), {}), (Order(), 2, {"texts": ["a", "b"]}),
    (Order(), [0, 0], {"texts": ["a", "b"]}), (Order(), [1], {"texts": ["a", "b"]}), (Order(), 0, {}), (Spans(), [{"start": 1}], {"text": "a"}),
    (Spans(), [], {}), (Spans(), 3, {"text": "a"}),
])  # fmt: skip
def test_examples_without_an_answer_are_refused(kind, answer, cells):
    with pytest.raises(DataError, match="example x"):
        kind.check(Example("x", answer=answer, cells=cells))


def rows_of(job):
    """Examples of a job that its words tell."""
    rng = np.random.default_rng(3)
    made = []
    for _ in range(60):
        words = rng.choice(WORDS[:8], 5).tolist()
        text = " ".join(words)
        made.append({
            "labels": {"text": text, "labels": sorted({word for word in words if word in WORDS[:3]})},
            "number": {"text": text, "value": float(sum(word in WORDS[:4] for word in words)) + 0.5 * len(set(words))},
            "order": {"query": words[0], "positive": text, "negatives": [" ".join(rng.choice(WORDS[8:14], 5)) for _ in range(3)]},
            "spans": {"text": text, "spans": [{"start": 0, "end": len(words[0]), "label": "first"}]},
        }[job])  # fmt: skip
    return made


@pytest.mark.parametrize(("job", "task", "answer", "asked"), [
    ("labels", "classify", "labels", {"micro_f1", "macro_f1", "exact_match", "calibration_error"}),
    ("number", "regress", "value", {"mean_error", "explained_share", "rank_correlation"}),
    ("order", "rank", "right", {"first_is_right", "reciprocal_rank", "ndcg_at_10"}),
    ("spans", "extract", "spans", {"f1", "precision", "recall", "exact_match"}),
])  # fmt: skip
def test_each_job_from_examples_to_a_comparison(base_folder, tmp_path, lines, capsys, job, task, answer, asked):
    rows = rows_of(job)
    lines(tmp_path / "learn.jsonl", rows)
    judged = [{"query": r["query"], "texts": [*r["negatives"], r["positive"]], "right": 3} for r in rows] if job == "order" else rows
    lines(tmp_path / "judge.jsonl", judged)
    (tmp_path / f"{job}-task.toml").write_text(f'kind = "{job}"\nfile = "judge.jsonl"\nanswer = "{answer}"\n')
    for name, file in (("good", rows), ("poor", rows[:6])):
        lines(tmp_path / f"{name}.jsonl", file)
        main(["adapt", str(base_folder), "--task", task, "--data", str(tmp_path / f"{name}.jsonl"), "--to", str(tmp_path / name), "--method", "probe",
              "--set", "data.held_out=0"])  # fmt: skip
    capsys.readouterr()
    for name in ("good", "poor"):
        main(["evaluate", "run", str(base_folder), "--tasks", str(tmp_path / f"{job}-task.toml"), "--adapter", str(tmp_path / name), "--to",
              str(tmp_path / f"{name}-run"), "--json"])  # fmt: skip
        told = json.loads(capsys.readouterr().out)["tasks"][f"{job}-task"]["scores"]
        found = {s["name"]: s for s in told}
        assert asked <= found.keys() and all(s["low"] <= s["value"] <= s["high"] for s in told if s["low"] is not None)
    main(["evaluate", "compare", str(tmp_path / "poor-run"), str(tmp_path / "good-run"), "--json"])
    compared = {one["measure"]: one for one in json.loads(capsys.readouterr().out)["compared"]}
    assert asked <= compared.keys() and any(one["verdict"] == "better" for one in compared.values())
    with pytest.raises(SystemExit):
        main(["evaluate", "run", str(base_folder), "--tasks", str(tmp_path / f"{job}-task.toml"), "--to", str(tmp_path / "bare"), "--json"])
    assert f"learned to {task}" in capsys.readouterr().err
