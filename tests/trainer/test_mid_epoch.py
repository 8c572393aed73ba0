"""Checkpoints within an epoch: the next batch, the sums and the final bytes are those of a run that never stopped."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.models import TINY
from tests.support.training import train, trainer_config, training_cache
from trainer.checkpoints import files as checkpoint
from trainer.engine.events import CheckpointWritten, StepDone
from trainer.engine.ranks import Ranks
from trainer.errors import CheckpointError
from trainer.pretraining.data import Loader

ALONE = Ranks(rank=0, size=1, device=torch.device("cpu"))
TIMES = ("seconds", "waited", "shapes_per_second", "memory", "gpu_memory", "path")


class Stop(Exception):
    pass


def stop_after(step: int) -> Any:
    def on_event(event: Any) -> None:
        if isinstance(event, StepDone) and event.step == step:
            raise Stop

    return on_event


def lines(run_dir: Path, *events: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run_dir / "train.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found if line["event"] in events]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(run_dir: Path) -> list[str]:
    return [path.name for path in checkpoint.checkpoints(run_dir)]


@pytest.mark.parametrize("readers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_the_next_batch_is_the_one_that_would_have_come(cache: Any, start: int, readers: int) -> None:
    loader = Loader(cache, TINY, trainer_config(readers=readers), ALONE)
    whole, rest = list(loader.epoch(4)), list(loader.epoch(4, start))
    assert len(rest) == len(whole) - start
    for (a,), (b,) in zip(whole[start:], rest, strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.points, b.points)
        assert torch.equal(a.draws.mask, b.draws.mask)


@pytest.mark.parametrize(("size", "readers", "accumulation"), [(2, 0, 1), (4, 3, 1), (2, 1, 2)])
def test_the_next_batch_is_the_same_under_other_ranks_readers_and_parts(
    cache: Any, size: int, readers: int, accumulation: int
) -> None:
    whole = list(Loader(cache, TINY, trainer_config(readers=2), ALONE).epoch(4))
    config = trainer_config(readers=readers, accumulation=accumulation)
    ranks = [dataclasses.replace(ALONE, rank=rank, size=size) for rank in range(size)]
    shares = [list(Loader(cache, TINY, config, one).epoch(4, 1)) for one in ranks]
    for step, (one,) in enumerate(whole[1:]):
        parts = [part for share in shares for part in share[step]]
        assert [id for part in parts for id in part.ids] == one.ids
        assert torch.equal(torch.cat([part.points for part in parts]), one.points)
        assert torch.equal(torch.cat([part.draws.mask for part in parts]), one.draws.mask)


@pytest.mark.parametrize("step", [2, 3, 4, 5, 8])
def test_a_run_stopped_within_an_epoch_ends_like_one_in_one_go(cache: Any, tmp_path: Path, step: int) -> None:
    """Three steps an epoch, a checkpoint every two: at 2, 3 (end), 4, 6 (end), 8, 9 (end)."""
    settings = {"epochs": 3, "checkpoint_steps": 2}
    whole = train(cache, tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        train(cache, tmp_path / "pieces", **settings, on_event=stop_after(step))
    written = {2: [], 3: ["epoch-0000-step-000002"], 4: ["epoch-0001"]}
    written |= {5: ["epoch-0001", "epoch-0001-step-000004"], 8: ["epoch-0001", "epoch-0002"]}
    assert names(tmp_path / "pieces") == written[step]
    pieces = train(cache, tmp_path / "pieces", **settings)
    assert files(pieces.checkpoint) == files(whole.checkpoint)
    assert pieces.metrics == whole.metrics
    assert names(tmp_path / "pieces") == names(tmp_path / "whole") == ["epoch-0002", "epoch-0003"]
    kept = [lines(tmp_path / name, "step", "epoch") for name in ("whole", "pieces")]
    assert kept[0] == kept[1]


def test_checkpoints_within_an_epoch_change_nothing_else(cache: Any, tmp_path: Path) -> None:
    events: list[Any] = []
    often = train(cache, tmp_path / "often", checkpoint_steps=1, on_event=events.append)
    never = train(cache, tmp_path / "never")
    assert files(often.checkpoint)["model.safetensors"] == files(never.checkpoint)["model.safetensors"]
    assert files(often.checkpoint)["optimizer.safetensors"] == files(never.checkpoint)["optimizer.safetensors"]
    written = [Path(event.path).name for event in events if isinstance(event, CheckpointWritten)]
    assert written == [
        "epoch-0000-step-000001", "epoch-0000-step-000002", "epoch-0001",
        "epoch-0001-step-000004", "epoch-0001-step-000005", "epoch-0002",
    ]  # fmt: skip
    # ... and one run may turn them on or off when it goes on
    assert train(cache, tmp_path / "never", checkpoint_steps=1, epochs=3).epochs == 3


def test_an_epoch_that_has_begun_is_not_given_up(cache: Any, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(cache, tmp_path, epochs=2, checkpoint_steps=1, on_event=stop_after(5))
    assert names(tmp_path)[-1] == "epoch-0001-step-000004"
    with pytest.raises(CheckpointError, match=r"trainer\.epochs is 1, but epoch 2 has already begun"):
        train(cache, tmp_path, epochs=1, checkpoint_steps=1)


@pytest.mark.parametrize(
    "odd",
    [{"steps": 1}, {"steps": "1", "totals": [0.0] * 3, "skipped": 0}, {"steps": 1, "totals": [0.0], "skipped": 0}],
)
def test_a_header_with_an_odd_place_is_refused(cache: Any, tmp_path: Path, odd: dict[str, Any]) -> None:
    report = train(cache, tmp_path, epochs=1)
    path = report.checkpoint / checkpoint.HEADER
    content = json.loads(path.read_text())
    del content["sha256"]  # as of a header that is whole, but odd
    path.write_text(json.dumps(content | {"under_way": odd}))
    with pytest.raises(CheckpointError, match=r"under_way is .*, not of the expected form"):
        checkpoint.read_header(report.checkpoint)


def test_a_checkpoint_of_an_older_version_has_no_place(cache: Any, tmp_path: Path) -> None:
    report = train(cache, tmp_path, epochs=1)
    path = report.checkpoint / checkpoint.HEADER
    content = json.loads(path.read_text())
    del content["sha256"]
    del content["under_way"], content["config"]["trainer"]["checkpoint_steps"], content["config"]["trainer"]["damaged"]
    path.write_text(json.dumps(content))
    assert checkpoint.read_header(report.checkpoint).under_way is None
    assert train(cache, tmp_path, epochs=2).epochs == 2


def test_a_run_killed_within_a_long_epoch(tmp_path: Path) -> None:
    """SIGKILL, in a process of its own, as soon as a checkpoint within an epoch is there."""
    cache = training_cache(tmp_path / "cache", 160)
    settings = {"epochs": 2, "schedule_epochs": 0, "checkpoint_steps": 3}
    whole = train(cache, tmp_path / "whole", **settings)
    program = (
        "import sys, time, teacher_cache, torch; from pathlib import Path; from tests.support.training import train;"
        "torch.set_num_threads(int(sys.argv[3]));"
        "halt = lambda event: [time.sleep(1) for _ in iter(lambda: event.step >= 35, False)];"  # it is killed before
        f"train(teacher_cache.open(sys.argv[1]), Path(sys.argv[2]), on_event=halt, **{settings!r})"
    )
    run_dir = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(cache.path), str(run_dir), str(torch.get_num_threads())],
        cwd=Path(__file__).resolve().parents[2],
    )
    while process.poll() is None and not list(run_dir.glob("checkpoints/epoch-*-step-*/checkpoint.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert "-step-" in names(run_dir)[-1]
    report = train(cache, run_dir, **settings)
    assert files(report.checkpoint) == files(whole.checkpoint)
    assert [line["step"] for line in lines(run_dir, "step")] == list(range(1, 41))


def test_bfloat16_has_no_scale_to_carry(cache: Any, tmp_path: Path) -> None:
    """bfloat16 has no scaler; its header says so, and the run goes on all the same."""
    with pytest.raises(Stop):
        train(cache, tmp_path, precision="bfloat16", checkpoint_steps=1, on_event=stop_after(2))
    header = checkpoint.read_header(checkpoint.checkpoints(tmp_path)[-1])
    assert header.loss_scale is None
    assert header.under_way is not None
    assert header.under_way["steps"] == 1
    assert dataclasses.asdict(header)["step"] == 1
    assert train(cache, tmp_path, precision="bfloat16", checkpoint_steps=1).steps == 6
