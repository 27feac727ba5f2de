"""Many adapters in one batch: each says what its own merged model says, whoever comes and goes beside it."""

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from paged import apart, embedded, plainly, shape, through

from bedplate.adapt import loop, methods
from bedplate.adapt.settings import AdaptSettings
from bedplate.adapt.tasks.generate import Generate
from bedplate.core.artifact import read_manifest
from bedplate.core.errors import BedplateError, ConfigError, DataError, IntegrityError
from bedplate.core.generation import Sampling
from bedplate.infer.cpu.runner import CpuRunner
from bedplate.infer.engine import Engine
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.request import Request
from bedplate.infer.torch_runner import TorchRunner
from bedplate.model.adapters import AdapterShape, Merged, attach, detach, projections, trained
from bedplate.model.formats import peft
from bedplate.testing.bases import base_of
from bedplate.testing.heard import Heard
from bedplate.testing.models import family_model
from bedplate.testing.requests import words

SHAPES = {
    "lora": AdapterShape(4, 8.0),
    "wide": AdapterShape(33, 20.0),
    "one": AdapterShape(1, 2.0, targets=("v_proj",)),
    "some": AdapterShape(16, 16.0, targets=("k_proj", "up_proj", "down_proj")),
    "rslora": AdapterShape(20, 9.0, rslora=True),
    "dora": AdapterShape(6, 9.0, dora=True),
    "dora-some": AdapterShape(3, 9.0, dora=True, targets=("q_proj", "o_proj", "gate_proj")),
}
BFLOAT = 0.01
"""Largest relative error of states where factors are kept in eight bits of mantissa."""
USUAL = EngineSettings(precision="float32", threads=1, context=128, cache_bytes=2**22, most_running=16)


def made(model, shape, seed):
    """Adapters with random factors, and lengths where there are any, on the model."""
    detach(model)
    attach(model, shape, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in trained(model).items():
            weight.add_((0.3 if "magnitude" in name else 0.3 * shape.rank**-0.5) * torch.randn(weight.shape, generator=generator))
    return {name: projection.adapter for name, projection in projections(model) if projection.adapter is not None}


def merged(model, adapters, call):
    """What `call` gives with adapters folded into the model."""
    peft.put_on(model, adapters)
    folded = Merged(model)
    result = call()
    folded.undo()
    detach(model)
    return result


@pytest.mark.parametrize("family", ["qwen3", "qwen3-biases", "qwen2-window", "llama-wide-group", "llama-odd"])
def test_each_row_is_changed_by_its_own(family):
    model = family_model(family)
    adapters = {name: made(model, one, number) for number, (name, one) in enumerate(SHAPES.items())}
    detach(model)
    names = ["", "lora", "lora", "wide", "", "one", "some", "rslora", "dora", "dora-some", ""]
    sequences = embedded(model, [7, 20, 3, 18, 17, 9, 33, 5, 21, 16, 1])
    expected = [merged(model, adapters[name], lambda x=x: plainly(model, x)) if name else plainly(model, x) for x, name in zip(sequences, names)]
    slow = TorchRunner(model, shape(), torch.device("cpu"), torch.float32)
    runners = {"torch": slow, "float32": CpuRunner(model, shape(threads=2)), "int8": CpuRunner(model, shape("int8", threads=2))}
    plain = [plainly(model, x) for x in sequences]
    for kind, runner in runners.items():
        for name, one in adapters.items():
            packed = runner.pack(one)
            assert packed.bytes > 0
            runner.put(name, packed)
        together = through(runner, sequences, (4, 16), adapters=names)
        for x, name, states, wanted, unchanged in zip(sequences, names, together, expected, plain):
            assert not name or apart(wanted, unchanged) > 0.03, "the adapter changes something"
            assert apart(states, wanted) < {"torch": 1e-4, "float32": BFLOAT if name else 1e-5, "int8": 0.08}[kind], (kind, name)
            if kind != "torch":
                assert np.array_equal(states, through(runner, [x], adapters=[name])[0]), "its neighbours' adapters change not a bit"
        runner.drop("lora")
        with pytest.raises(KeyError):
            through(runner, sequences, adapters=names)
        runner.close()


@pytest.fixture(scope="module")
def base():
    return base_of(family_model("qwen3", seed=1))


def peft_folder(base, folder, name, seed=0):
    """An adapter folder as PEFT writes one."""
    folder.mkdir(parents=True)
    made(base.model, SHAPES[name], seed)
    peft.write(folder, base.model, SHAPES[name], "base")
    detach(base.model)
    base.model.requires_grad_(False)
    return folder


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters")
    return {f"{name}-{n}": peft_folder(base, place / f"{name}-{n}", name, 10 * n + k) for k, name in enumerate(SHAPES) for n in range(2)}


@pytest.fixture
def engine(base, folders):
    opened = Engine(base, USUAL)
    for name, folder in folders.items():
        opened.register(name, folder)
    yield opened
    opened.close()


def ask(engine, name, positions, most=10):
    heard = Heard()
    engine.submit(Request(positions, Sampling(max_tokens=most), adapter=name), heard)
    return heard


def test_answers_side_by_side_are_those_alone(base, engine, folders):
    positions = words(base, 20)
    alone = {name: ask(engine, name, positions).wait().tokens for name in ("", *folders)}
    assert len({tuple(tokens) for tokens in alone.values()}) > len(folders) / 2
    together = {name: ask(engine, name, positions) for name in ("", *folders)}
    assert {name: heard.wait().tokens for name, heard in together.items()} == alone
    # Nothing that one adapter read serves another; its own does.
    assert all(heard.cached_tokens == 16 for heard in together.values())


def test_memory_has_a_limit_and_only_what_nobody_uses_is_forgotten(base, folders):
    positions = words(base, 20)
    unlimited = Engine(base, USUAL)
    for name, folder in folders.items():
        unlimited.register(name, folder)
    expected = {name: ask(unlimited, name, positions).wait().tokens for name in folders}
    sizes = dict(unlimited._memory.hot)
    unlimited.close()
    limit = 2 * max(sizes.values())
    engine = Engine(base, replace(USUAL, adapter_bytes=limit))
    for name, folder in folders.items():
        engine.register(name, folder)
    assert engine.load().counters["adapters_in_memory"] == 0
    for name in (*folders, *folders):
        assert ask(engine, name, positions).wait().tokens == expected[name]
        assert sum(engine._memory.hot.values()) <= limit and engine.adapters[name].digest in engine._memory.hot
    heard = {name: ask(engine, name, positions) for name in folders}  # more at once than memory is for: all in use, so all stay
    assert {name: one.wait().tokens for name, one in heard.items()} == expected
    ask(engine, "lora-0", positions).wait()
    engine.close()


@pytest.mark.parametrize("most_running", [1, 3])
def test_everybody_gets_a_turn_where_memory_is_for_no_adapter(base, folders, most_running):
    """Two tenants, few pages, nothing kept that is not in use: who waits for room must not lose the adapter again and again."""
    engine = Engine(base, replace(USUAL, adapter_bytes=0, most_running=most_running, cache_bytes=2**16, share_beginnings=False))
    for name, folder in folders.items():
        engine.register(name, folder)
    heard = []
    for number, name in enumerate([*folders, "", *reversed(list(folders))]):
        heard.append(Heard())
        asked = Request(words(base, 20, number), Sampling(max_tokens=20), name, tenant="ab"[number % 3 == 0])
        engine.submit(asked, heard[-1])
    assert all(len(one.wait(30).tokens) == 20 and one.error is None for one in heard)
    assert len(engine._memory.hot) <= most_running + 1
    engine.close()


def test_names_come_and_go_under_load(base, engine, folders):
    positions = words(base, 25)
    expected = {name: ask(engine, name, positions, 30).wait().tokens for name in folders}
    over, wrong = threading.Event(), []

    def keep_asking(name):
        while not over.is_set():
            try:
                heard = ask(engine, name, positions, 30).wait()
            except ConfigError:
                continue
            if heard.error is not None or heard.tokens != expected[name]:
                wrong.append((name, heard.error))

    threads = [threading.Thread(target=keep_asking, args=(name,)) for name in ("lora-0", "dora-1", "wide-0")]
    for thread in threads:
        thread.start()
    for _ in range(20):
        for name in ("lora-0", "dora-1", "some-0"):
            engine.unregister(name)
            time.sleep(0.001)
            engine.register(name, folders[name])
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    with pytest.raises(ConfigError):
        engine.unregister("nobody")


def test_a_name_may_come_to_mean_another(base, engine, folders):
    positions = words(base, 40)
    first, other = (ask(engine, name, positions).wait().tokens for name in ("lora-0", "dora-0"))
    with pytest.raises(ConfigError, match="already"):
        engine.register("lora-0", folders["dora-0"])
    engine.unregister("lora-0")
    engine.register("lora-0", folders["dora-0"])
    assert ask(engine, "lora-0", positions).wait().tokens == other != first


def test_settings_count_as_well_as_weights(base, engine, folders, tmp_path):
    """Two folders with the same weights that scale them otherwise."""
    folder = shutil.copytree(folders["lora-0"], tmp_path / "stronger")
    config = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps(config | {"lora_alpha": 40}))
    engine.register("stronger", folder)
    positions = words(base, 40)
    assert ask(engine, "stronger", positions).wait().tokens != ask(engine, "lora-0", positions).wait().tokens
    assert engine.adapters["stronger"].digest != engine.adapters["lora-0"].digest


def test_a_folder_that_changes_later_ends_its_own_requests_only(base, folders, tmp_path):
    for spoil in (shutil.rmtree, lambda folder: shutil.copy(folders["lora-1"] / peft.WEIGHTS, folder / peft.WEIGHTS)):
        folder = shutil.copytree(folders["lora-0"], tmp_path / "a")
        engine = Engine(base, USUAL)
        engine.register("spoiled", folder)
        engine.register("good", folders["dora-0"])
        spoil(folder)
        positions = words(base, 20)
        heard = [ask(engine, name, positions) for name in ("spoiled", "good", "", "spoiled", "good")]
        assert [isinstance(one.wait().error, (IntegrityError, DataError)) for one in heard] == [True, False, False, True, False]
        assert all(len(heard[n].tokens) == 10 for n in (1, 2, 4))
        engine.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def held(engine, monkeypatch):
    """An engine that reads no adapter until it is told to."""
    go, read = threading.Event(), engine._adapters.read
    monkeypatch.setattr(engine._adapters, "read", lambda one: go.wait(30) and read(one))
    yield go
    go.set()


def test_nobody_else_waits_while_an_adapter_is_read(base, engine, held):
    positions = words(base, 20)
    before = ask(engine, "", positions, 40)
    first, second = ask(engine, "lora-0", positions), ask(engine, "dora-0", positions)
    behind = ask(engine, "", positions, 40)
    assert before.wait(20).tokens == behind.wait(20).tokens and not first.drawn and not second.drawn
    held.set()
    said = [one.wait().tokens for one in (first, second)]
    assert [ask(engine, name, positions).wait().tokens for name in ("lora-0", "dora-0")] == said and said[0] != said[1]
    assert engine.load().counters["adapters_in_memory"] == 2


def test_who_waits_for_an_adapter_can_be_cancelled_and_runs_out_of_time(base, engine, held):
    late, left = Heard(), Heard()
    engine.submit(Request(words(base, 20), Sampling(max_tokens=4), "lora-0", deadline=time.monotonic() + 0.02), late)
    engine.submit(Request(words(base, 20), Sampling(max_tokens=4), "lora-0"), left).cancel()
    assert late.wait(20).finish == "deadline" and left.wait(20).finish == "cancelled"
    closing = ask(engine, "lora-0", words(base, 20))
    ended = threading.Thread(target=engine.close)
    ended.start()
    assert closing.wait(20).finish == "cancelled"
    held.set()
    ended.join()


def test_an_adapter_that_the_runner_refuses_ends_its_own_requests(base, engine, monkeypatch):
    positions = words(base, 20)

    def put(name, packed):
        monkeypatch.undo()
        raise MemoryError("no room")

    monkeypatch.setattr(engine.runner, "put", put)
    lost, other = ask(engine, "lora-0", positions), ask(engine, "", positions)
    assert "no room" in str(lost.wait().error) and len(other.wait().tokens) == 10
    assert len(ask(engine, "lora-0", positions).wait().tokens) == 10


def sealed(base, folder, method="lora", seed=0):
    """An adapter folder as `bedplate adapt` leaves one."""
    asked = AdaptSettings()
    asked = replace(asked, base=Path("base"), to=folder, method=replace(asked.method, name=method, rank=4, alpha=8.0))
    if method in ("lora", "dora"):
        made(base.model, methods.shape_of(asked.method), seed)
    loop.write(asked, base, Generate(base, asked), {})
    detach(base.model)
    base.model.requires_grad_(False)
    return folder


def test_our_own_folders_say_what_they_are_for(base, engine, tmp_path):
    folder = sealed(base, tmp_path / "ours", "dora", seed=3)
    registered = engine.register("ours", folder)
    assert registered.task.name == "generate" and registered.changes and registered.digest == read_manifest(folder, "adapter").digest
    positions = words(base, 30)
    heard = ask(engine, "ours", positions).wait()
    expected = merged(base.model, peft.read(folder, base.model), lambda: base.model.forward_tokens(torch.from_numpy(positions.tokens[None].astype(np.int64))))
    expected[..., list(base.model.config.special_ids.values())] = -torch.inf
    assert heard.tokens[0] == int(expected[0, -1].argmax())


@pytest.mark.parametrize(("change", "error", "says"), [
    ("another base", DataError, "another base"), ("full", ConfigError, "changed all weights"), ("flipped", IntegrityError, "was changed"),
    ("extra", IntegrityError, "not in the manifest"),
])  # fmt: skip
def test_ours_are_refused_where_they_do_not_hold(base, engine, tmp_path, change, error, says):
    maker = replace(base, digest="1" * 64) if change == "another base" else base
    folder = sealed(maker, tmp_path / "a", "full" if change == "full" else "lora")
    if change == "flipped":
        weights = bytearray((folder / peft.WEIGHTS).read_bytes())
        weights[-1] ^= 1
        (folder / peft.WEIGHTS).write_bytes(weights)
    if change == "extra":
        (folder / "more").write_text("")
    with pytest.raises(error, match=says):
        engine.register("no", folder)
    assert "no" not in engine.adapters


def spoiled(folder, file, text):
    (folder / file).write_bytes(text)


@pytest.mark.parametrize(("spoil", "error"), [
    (lambda f: spoiled(f, peft.WEIGHTS, b"nothing"), IntegrityError),
    (lambda f: (f / peft.WEIGHTS).unlink(), IntegrityError),
    (lambda f: spoiled(f, peft.CONFIG, b"{"), IntegrityError),
    (lambda f: spoiled(f, peft.CONFIG, b'{"peft_type": "LOHA", "r": 1, "lora_alpha": 1}'), DataError),
    (lambda f: (f / peft.CONFIG).unlink(), DataError),
    (shutil.rmtree, DataError),
], ids=["weights", "no-weights", "config", "loha", "no-config", "no-folder"])  # fmt: skip
def test_what_is_damaged_is_refused(engine, folders, tmp_path, spoil, error):
    folder = shutil.copytree(folders["lora-0"], tmp_path / "a")
    spoil(folder)
    before = dict(engine.adapters)
    with pytest.raises(error):
        engine.register("damaged", folder)
    with pytest.raises(ConfigError):
        engine.register("", folders["lora-0"])
    assert engine.adapters == before


def test_numbers_that_are_none_are_refused(base, engine, tmp_path):
    adapters = made(base.model, SHAPES["lora"], 0)
    with torch.no_grad():
        next(iter(adapters.values())).B[0, 0] = torch.nan
    peft.write(tmp_path, base.model, SHAPES["lora"], "base")
    detach(base.model)
    with pytest.raises(DataError, match="not finite"):
        engine.register("mad", tmp_path)


def test_one_made_for_another_shape_is_refused(engine, tmp_path):
    other = base_of(family_model("llama-wide-group"))
    with pytest.raises(BedplateError):
        engine.register("foreign", peft_folder(other, tmp_path / "a", "lora"))


