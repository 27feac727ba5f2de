"""One dial, a plan that trains nothing, and a trace that survives roll-backs; tests of whole runs are in test_run.py."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.cli.app import main
from bedplate.core.config import load
from bedplate.core.errors import ConfigError, DataError, ResourceError
from bedplate.core.events import EventLog
from bedplate.model.arithmetic import memory
from bedplate.model.config import PRESETS
from bedplate.pretrain.budget import Budget, parse_budget
from bedplate.pretrain.derive import MEMORY_SHARE, derive
from bedplate.pretrain.measure import Speed
from bedplate.pretrain.plan import plan
from bedplate.pretrain.schedule import Schedule, ScheduleSettings
from bedplate.pretrain.settings import PretrainSettings
from bedplate.pretrain.trace import rows_of_step
from bedplate.testing.corpora import tiny_corpus

TINY = "model.overrides={hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 1, head_dim = 16}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "tiny", ["text", "image"])


def settings_of(corpus, *overrides):
    return load(PretrainSettings, overrides=["run.device=cpu", *overrides], given={"data.corpus": str(corpus.folder)}).value


def derived(corpus, *overrides, free=1 << 36, **more):
    def measurer(config, optim, **asked):
        return Speed(2e8 / config.hidden_size, 1.0, 1.0, 3)

    return derive(settings_of(corpus, *overrides), corpus, measurer=measurer, memory_of=lambda device: free, **more)


@given(st.one_of(st.text(max_size=12), st.from_regex(r"\$? ?[0-9.e+-]{0,6} ?(m|h|flops|epochs|[kMB]? tokens)?", fullmatch=True)), st.sampled_from([0.0, 2.5]))
def test_any_words_are_a_budget_or_an_error_with_a_hint(text, price):
    try:
        budget = parse_budget(text, price)
    except ConfigError as error:
        assert error.hint
    else:
        amounts = [budget.seconds, budget.flops, budget.positions, budget.epochs]
        assert sorted(amounts)[:3] == [0, 0, 0] and 0 < max(amounts) < float("inf")


@pytest.mark.parametrize("text", ["0m", "$0", "0 epochs", "1.2.3m", "e flops", "1e999 flops"])
def test_nothing_and_nonsense_are_no_budget(text):
    with pytest.raises(ConfigError):
        parse_budget(text, 1.0)


def test_money_buys_time():
    assert parse_budget("$5", 2.5) == Budget(seconds=7200)


@pytest.mark.parametrize("budget", ["20m", "1e13 FLOPs", "3 epochs", "2M tokens", "$1"])
def test_a_budget_decides_everything_with_reasons(corpus, budget):
    made = derived(corpus, f"run.budget={budget}", "run.price_per_hour=2.0")
    assert {c.what for c in made.choices} >= {"model.size", "model.context", "run.steps", "run.rows_per_step", "run.rows_per_micro", "run.compile"}
    assert all(choice.reason for choice in made.choices)
    assert derived(corpus, f"run.budget={budget}", "run.price_per_hour=2.0") == made


def test_twice_the_budget_is_twice_the_data(corpus):
    spent = []
    for hours in (1, 2, 4):
        made = derived(corpus, f"run.budget={hours}h", "model.size=micro").settings
        spent.append(made.run.steps * made.run.rows_per_step * made.model.context)
    assert spent[1] / spent[0] == pytest.approx(2, rel=0.02) and spent[2] / spent[1] == pytest.approx(2, rel=0.02)


def test_processes_share_the_machine_and_add_their_speed(corpus):
    one, two = (derived(corpus, "run.budget=1h", "model.size=nano", world=world, neighbours=world).settings.run for world in (1, 2))
    assert two.steps * two.rows_per_step == pytest.approx(2 * one.steps * one.rows_per_step, rel=0.02)
    assert two.threads == max(1, one.threads // 2)


def test_little_memory_makes_smaller_portions_and_then_an_error(corpus):
    asked = ("run.steps=10", "model.size=small", "run.rows_per_step=8", "model.context=512")
    config = derived(corpus, *asked).config
    plenty = derived(corpus, *asked)
    assert plenty.settings.run.rows_per_micro == 8 and plenty.too_large is None
    two = int(memory(config, 2, 512, unit_share=0.5).total / MEMORY_SHARE) + 1
    assert 1 <= derived(corpus, *asked, free=two).settings.run.rows_per_micro < 8
    little = derived(corpus, *asked, free=1 << 28)
    assert isinstance(little.too_large, ResourceError) and "largest size that fits: " in little.too_large.hint
    assert little.too_large.hint.rpartition(" ")[2] in PRESETS
    with pytest.raises(ResourceError, match="small"):
        derived(corpus, "run.budget=1h", "model.size=small", free=1 << 28)


def test_a_plan_tells_what_does_not_fit_without_trying_it(corpus):
    made = plan(settings_of(corpus, "model.size=8b", "run.steps=10"), corpus, 0.1, memory_of=lambda device: 1 << 30)
    assert made.largest_rows == 0 and made.speed is None and made.seconds is None and made.seconds_range is None
    assert made.memory.total > 1 << 35 and made.flops > 0


def test_a_plan_is_consistent(corpus):
    made = plan(settings_of(corpus, TINY, "model.context=64", "run.steps=30", "run.rows_per_step=4", "run.threads=1"), corpus, 0.1)
    assert made.positions == 30 * 4 * 64 and made.positions_per_parameter == made.positions / made.parameters.total
    assert made.seconds == pytest.approx(made.positions / made.speed.positions_per_s)
    assert made.seconds_range[0] <= made.seconds <= made.seconds_range[1]
    assert sum(made.shares.values()) == pytest.approx(1) and made.epochs > 0 and made.largest_rows >= 4


def test_the_plan_command_prints_and_writes_nothing(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sets = [part for override in (TINY, "model.context=64", "run.steps=30", "run.threads=1") for part in ("--set", override)]
    main(["pretrain", "plan", "--corpus", str(corpus.folder), "--measure", "0.1", "--json", *sets])
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 30 and told["context"] == 64 and told["seconds"] > 0 and told["parameters"] > 0
    assert {"what", "value", "reason"} == set(told["chosen"][0])
    assert "predicted" not in json.dumps(told)
    assert not list(tmp_path.iterdir())


SCHEDULE = Schedule(ScheduleSettings(), steps=50, rows_per_step=4, context=64)


def logged(folder, *records):
    log = EventLog(folder / "events.jsonl")
    for event, fields in records:
        log.emit(event, **fields)
    log.close()
    return folder / "events.jsonl"


def test_without_a_log_the_schedule_says_what_a_step_read(tmp_path):
    assert rows_of_step(tmp_path / "nothing.jsonl", SCHEDULE, 7) == SCHEDULE.rows(6)


def test_a_step_taken_again_is_traced_to_its_last_time(tmp_path):
    gone_back = ("health", {"step": 7, "problem": "nan", "action": "roll_back", "detail": ""})
    events = logged(tmp_path, *(("step", {"step": n, "first_row": 4 * (n - 1)}) for n in range(1, 8)), gone_back, ("step", {"step": 6, "first_row": 32}))
    assert rows_of_step(events, SCHEDULE, 3) == SCHEDULE.rows(2)
    assert rows_of_step(events, SCHEDULE, 6) == SCHEDULE.rows(5)._replace(first_row=32)
    with pytest.raises(DataError, match="step 8"):
        rows_of_step(events, SCHEDULE, 8)
