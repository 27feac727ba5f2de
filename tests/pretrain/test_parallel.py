"""Two processes train what one would: real pre-training over Gloo, each process started as torchrun starts it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bedplate.core.artifact import verify
from bedplate.core.config import load
from bedplate.core.errors import StateError
from bedplate.core.events import read_events
from bedplate.core.run import Follower, Run
from bedplate.pretrain.parallel import Parallel, leads
from bedplate.testing.corpora import tiny_corpus

TINY = "{hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 1, head_dim = 16}"
SETTINGS = [
    "model.size=nano", f"model.overrides={TINY}", "model.context=48", "run.rows_per_step=7", "run.rows_per_micro=2", "run.threads=1",
    "run.device=cpu", "run.compile=off", "checkpoint.every_s=0", "evaluate.every_steps=4", "evaluate.rows=4", "sample.every_steps=0",
]  # fmt: skip


def process(rank: int, world: int, port: int, corpus: str, folder: str, overrides: list[str], stop_after: int) -> None:
    """One of the processes; `stop_after` sends a signal to this one alone."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    from bedplate.pretrain import loop
    from bedplate.pretrain.settings import PretrainSettings
    from bedplate.pretrain.training import Training

    if stop_after and rank == world - 1:
        take = Training.take_step

        def watched(self):
            take(self)
            if self.progress.step == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

        Training.take_step = watched
    try:
        resolved = load(PretrainSettings, overrides=[*SETTINGS, *overrides], given={"data.corpus": corpus})
        run = Run.open(Path(folder), "pretrain", resolved) if leads() else Follower(Path(folder), "pretrain")
        with run:
            loop.pretrain(resolved.value, run)
    except BaseException:
        Path(folder, f"failure-{rank}.txt").write_text(traceback.format_exc())
        sys.exit(1)


@pytest.fixture(scope="module")
def context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed", "bedplate.pretrain.loop"])
    return context


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "tiny"
    tiny_corpus(folder, ["text", "series"])
    return str(folder)


def train(context, corpus: str, folder: Path, world: int, overrides: list[str], stop_after: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [context.Process(target=process, args=(rank, world, port, corpus, str(folder), overrides, stop_after)) for rank in range(world)]
    for one in started:
        one.start()
    for one in started:
        one.join()
    failures = [path.read_text() for path in folder.glob("failure-*.txt")]
    assert not failures, "\n".join(failures)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    verify(folder / "model", "model")
    return load_file(folder / "model" / "model.safetensors")


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in read_events(folder / "events.jsonl", ("step",))]


def test_two_processes_give_the_weights_of_one(tmp_path, context, corpus):
    """Unequal shares (7 rows a step). Text alone draws no noise, and with a large eps AdamW does not blow rounding up: so equal to rounding, weights of senses that were not read included."""
    asked = ["run.steps=8", "data.mixture={text=1.0}", "data.packing.fim_text=0.3", "optim.eps=1e-3", "optim.orthogonalise_in=float32"]
    train(context, corpus, tmp_path / "one", 1, asked)
    train(context, corpus, tmp_path / "two", 2, asked)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-5)
    events = list(read_events(tmp_path / "two" / "events.jsonl"))
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 9)), "one process tells"
    assert [event["step"] for event in events if event["event"] == "evaluated"] == [4, 8]


def test_a_signal_to_one_process_stops_all_and_they_resume_exactly(tmp_path, context, corpus):
    """With units, so that every process sees senses that the other does not; a stop in between changes nothing."""
    asked = ["run.steps=7"]
    train(context, corpus, tmp_path / "whole", 2, asked)
    train(context, corpus, tmp_path / "stopped", 2, asked, stop_after=3)
    assert [event["step"] for event in read_events(tmp_path / "stopped" / "events.jsonl", ("run_stopped",))] == [3]
    assert not (tmp_path / "stopped" / "model").exists()
    train(context, corpus, tmp_path / "stopped", 2, asked)
    assert [event["step"] for event in read_events(tmp_path / "stopped" / "events.jsonl", ("run_resumed",))] == [3]
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(tensor, stopped[name]) for name, tensor in whole.items())


def test_all_go_back_together(tmp_path, context, corpus):
    """A learning rate that blows up: every process goes back at the same steps, and all stop with the same error."""
    asked = ["run.steps=30", "health.on_spike=roll_back", "health.window=16", "health.spike_sigma=0.5", "health.max_roll_backs=1", "checkpoint.every_steps=5"]
    folder = tmp_path / "ill"
    with pytest.raises(AssertionError, match="StateError"):
        train(context, corpus, folder, 2, asked)
    assert {path.name for path in folder.glob("failure-*.txt")} == {"failure-0.txt", "failure-1.txt"}
    last = [path.read_text().strip().splitlines()[-2:] for path in folder.glob("failure-*.txt")]
    assert last[0][0].split("step ")[1].split(":")[0] == last[1][0].split("step ")[1].split(":")[0]
    assert [event["action"] for event in read_events(folder / "events.jsonl", ("health",))] == ["roll_back", "stop"]


def alone(rank: int, world: int, port: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    parallel = Parallel.from_environment("cpu")
    told = [parallel.rank, parallel.world, parallel.leads, parallel.any(rank == 1), parallel.any(False)]
    tensor = torch.full((3,), float(rank))
    parallel.broadcast([tensor])
    told.append(tensor.tolist())
    parallel.check_same("numbers", 5, "")
    try:
        parallel.check_same("numbers", rank, "use one folder")
    except StateError as error:
        told.append(str(error))
    parallel.barrier()
    Path(folder, f"told-{rank}").write_text(repr(told))
    parallel.close()


def test_what_processes_agree_on(tmp_path, context):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [context.Process(target=alone, args=(rank, 2, port, str(tmp_path))) for rank in range(2)]
    for one in started:
        one.start()
    for one in started:
        one.join()
    different = "the processes have different numbers: 0 .. 1\nhint: use one folder"
    for rank in range(2):
        assert (tmp_path / f"told-{rank}").read_text() == repr([rank, 2, rank == 0, True, False, [0.0] * 3, different])


def test_one_process_agrees_with_itself(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    parallel = Parallel.from_environment("auto")
    assert parallel.leads and leads() and parallel.world == 1
    assert parallel.any(True) and not parallel.any(False)
    parallel.check_same("numbers", 3, "")
    parallel.barrier()
    parallel.close()
    monkeypatch.setenv("RANK", "1")
    assert not leads()
