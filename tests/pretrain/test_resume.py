"""Resume is exact: whatever kills a run, and whenever, its final state is bit for bit that of an uninterrupted run.

Each attempt is a process of its own, started by a fork server that has torch loaded already, and killed with SIGKILL: at a random instant,
or inside a save at a chosen point where the child stands still.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import random
import sys
import time
from pathlib import Path

import pytest
import torch

from bedplate.core.artifact import MANIFEST
from bedplate.core.errors import IntegrityError
from bedplate.core.events import read_events
from bedplate.pretrain.checkpoint import FOLDER, list_checkpoints, newest, read_state

HERE = Path(__file__).parent
SETTINGS = {
    "run": {"steps": 150},
    "checkpoint": {"every_steps": 4},
    "schedule": {"context_stages": [[0.3, 8]], "average_share": 0.4},
    "evaluate": {"every_steps": 15},
}


def child(folder: Path, pause_s: float, stall_at: str) -> None:
    """A training process. `stall_at` names the point of its next save where it stands still until it is killed."""
    sys.path.insert(0, str(HERE))
    import safetensors.torch
    from small import SmallRows, small_training

    from bedplate.pretrain import checkpoint

    torch.set_num_threads(1)

    class SlowRows(SmallRows):
        def batch(self, first_row, rows, context):
            time.sleep(pause_s)
            with (folder / "batches").open("ab") as handle:
                handle.write(b".")
            return super().batch(first_row, rows, context)

    def stalling(function, after: bool):
        def wrapped(*arguments, **keywords):
            result = function(*arguments, **keywords) if after else None
            (folder / "stalled").touch()
            time.sleep(60)
            return result

        return wrapped

    if stall_at == "first file":
        safetensors.torch.save_file = stalling(safetensors.torch.save_file, after=True)
    elif stall_at == "before manifest":
        checkpoint.seal = stalling(checkpoint.seal, after=False)
    elif stall_at == "before rename":
        checkpoint.seal = stalling(checkpoint.seal, after=True)
    elif stall_at == "after rename":
        checkpoint.fsync_folder = stalling(checkpoint.fsync_folder, after=False)
    elif stall_at == "deleting":
        rmtree = checkpoint.shutil.rmtree
        half = stalling(lambda path: next(path.glob("*.safetensors")).unlink(), after=True)
        checkpoint.shutil.rmtree = lambda path, **k: half(path) if "gone" in path.name and path.is_dir() else rmtree(path, **k)
    training = small_training(folder, SETTINGS, rows=SlowRows())
    (folder / "training").touch()
    training.train()


def attempt(context, folder: Path, batches: int, delay_s: float, stall_at: str = "") -> None:
    """Start a training and kill it a moment after it has read so many batches, or once it stands still."""
    for name in ("training", "stalled", "batches"):
        (folder / name).unlink(missing_ok=True)
    process = context.Process(target=child, args=(folder, 0.002, stall_at))
    process.start()
    marker = folder / ("stalled" if stall_at else "training")
    while not marker.exists() and process.is_alive():
        time.sleep(0.002)
    read = folder / "batches"
    while not stall_at and process.is_alive() and (read.stat().st_size if read.exists() else 0) < batches:
        time.sleep(0.001)
    time.sleep(delay_s)
    assert marker.exists(), f"the run ended before it could be killed at {stall_at!r}"
    process.kill()
    process.join()


@pytest.fixture(scope="module")
def context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "safetensors.torch", "bedplate.pretrain.training"])
    return context


def test_killed_runs_end_with_the_weights_of_an_uninterrupted_one(tmp_path, context):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for folder in (whole, torn):
        folder.mkdir()
    process = context.Process(target=child, args=(whole, 0.0, ""))
    process.start()
    process.join()
    assert process.exitcode == 0

    rng = random.Random(5)
    points = ["first file", "before manifest", "before rename", "after rename", "deleting"]
    kills = [(rng.randint(0, 40), rng.uniform(0.0, 0.01), "") for _ in range(20)] + [(0, 0.0, point) for point in points]
    rng.shuffle(kills)
    killed_before_end = 0
    for batches, delay_s, point in kills:
        attempt(context, torn, batches, delay_s, point)
        steps = [p.name for p in list_checkpoints(torn / FOLDER)]
        killed_before_end += "step-00000150" not in steps
    process = context.Process(target=child, args=(torn, 0.0, ""))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert killed_before_end >= 20, "the kills came too late to test anything"
    resumed_at = {e["step"] for e in read_events(torn / "events.jsonl", ("run_resumed",))}
    assert len(resumed_at) >= 4, f"the kills did not spread over the run: {resumed_at}"

    expected, found = (read_state(folder / FOLDER / "step-00000150") for folder in (whole, torn))
    assert dataclasses.replace(found.progress, trained_s=0) == dataclasses.replace(expected.progress, trained_s=0)
    for part in ("model", "optimiser", "average"):
        tensors, others = getattr(expected, part), getattr(found, part)
        assert tensors.keys() == others.keys() and tensors
        for name, tensor in tensors.items():
            assert torch.equal(tensor, others[name]), f"{part}.{name}"
    losses = [{e["step"]: e["loss"] for e in read_events(f / "events.jsonl", ("step",))} for f in (whole, torn)]
    assert losses[0] == losses[1]
    assert not list((torn / FOLDER).glob(".*.tmp"))


def trained(folder: Path, steps: int = 12, **tree) -> Path:
    from small import small_training

    training = small_training(folder, {"run": {"steps": steps}, "checkpoint": {"every_steps": 4, "keep_last": 3}, **tree})
    assert training.train()
    training.run.close()
    return folder


@pytest.mark.parametrize("damage", ["flip a byte", "cut a file", "remove a file", "remove the manifest", "foreign file"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, damage):
    paths = list_checkpoints(trained(tmp_path) / FOLDER)
    victim = paths[-1] / "optimiser.safetensors"
    if damage == "flip a byte":
        data = bytearray(victim.read_bytes())
        data[-3] ^= 1
        victim.write_bytes(data)
    elif damage == "cut a file":
        victim.write_bytes(victim.read_bytes()[:100])
    elif damage == "remove a file":
        victim.unlink()
    elif damage == "remove the manifest":
        (paths[-1] / MANIFEST).unlink()
    else:
        (paths[-1] / "more.bin").write_bytes(b"x")
    warnings: list[str] = []
    state = newest(tmp_path / FOLDER, lambda message, hint: warnings.append(message))
    assert state is not None and state.progress.step == 8
    assert len(warnings) == 1 and paths[-1].name in warnings[0]


def test_when_no_checkpoint_holds_the_run_says_so(tmp_path):
    for path in list_checkpoints(trained(tmp_path) / FOLDER):
        (path / MANIFEST).unlink()
    with pytest.raises(IntegrityError, match="none of the"):
        newest(tmp_path / FOLDER, lambda *_: None)


def test_keep_policy(tmp_path):
    from small import small_training

    tree = {"run": {"steps": 20}, "checkpoint": {"every_steps": 2, "keep_last": 2, "keep_every_steps": 8}}
    assert small_training(tmp_path, tree).train()
    assert [int(p.name[5:]) for p in list_checkpoints(tmp_path / FOLDER)] == [8, 16, 18, 20]


def test_checkpoints_by_the_clock(tmp_path):
    from small import small_training

    tree = {"run": {"steps": 20}, "checkpoint": {"every_steps": 0, "every_s": 1e-6, "keep_last": 50}}
    assert small_training(tmp_path, tree).train()
    assert [int(p.name[5:]) for p in list_checkpoints(tmp_path / FOLDER)] == list(range(1, 21))


def test_a_failed_save_stops_the_run_with_a_reason(tmp_path, monkeypatch):
    from small import small_training

    from bedplate.core.errors import ResourceError
    from bedplate.pretrain import checkpoint

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "seal", full)
    with pytest.raises(ResourceError, match="No space left"):
        small_training(tmp_path).train()


def test_training_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    """The steps after a save run while it is being written: the save's thread is held until training has gone on."""
    import threading

    from small import small_training

    from bedplate.pretrain import checkpoint

    gone_on = threading.Event()
    seal = checkpoint.seal

    def held(*arguments, **keywords):
        assert gone_on.wait(20), "training stood still while the checkpoint was written"
        return seal(*arguments, **keywords)

    monkeypatch.setattr(checkpoint, "seal", held)
    training = small_training(tmp_path, {"run": {"steps": 8}, "checkpoint": {"every_steps": 4}})
    take = training.take_step

    def take_and_tell():
        take()
        if training.progress.step == 6:
            gone_on.set()

    training.take_step = take_and_tell
    assert training.train()
