"""Links inside a run directory: nothing behind them is written, emptied or removed."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from teacher_cache.errors import CacheError
from tests.support.training import train
from trainer.checkpoints import files as checkpoint
from trainer.engine.ranks import Ranks
from trainer.engine.run_directory import known_json, owned
from trainer.errors import CheckpointDamaged, TrainingError


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "failure"])
def test_a_linked_folder_of_a_run_is_refused(cache: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / ".writing-epoch-0001-7").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "victim")
    with pytest.raises(CacheError, match="found a link to"):
        train(cache, tmp_path / "run", epochs=1)
    assert [path.name for path in (tmp_path / "victim").iterdir()] == [".writing-epoch-0001-7"]


@pytest.mark.parametrize("name", ["metrics.json", "train.jsonl", ".lock"])
def test_a_linked_file_of_a_run_is_replaced_or_refused(cache: Any, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(victim)
    with suppress(CacheError, OSError, TrainingError):
        train(cache, tmp_path / "run", epochs=1)
    assert victim.read_text() == "precious"


def test_a_linked_checkpoint_is_pruned_and_what_it_points_to_stays(cache: Any, tmp_path: Path) -> None:
    report = train(cache, tmp_path / "run", epochs=1)
    elsewhere = tmp_path / "elsewhere"
    report.checkpoint.rename(elsewhere)
    report.checkpoint.symlink_to(elsewhere)
    train(cache, tmp_path / "run", epochs=3, keep_checkpoints=1)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["epoch-0003"]
    assert sorted(path.name for path in elsewhere.iterdir()) == [
        "checkpoint.json", "model.safetensors", "optimizer.safetensors"
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"[]", b"\0" * 40, b'{"epoch": 1', b"\xff\xfe{"])
def test_a_metrics_file_that_is_not_whole_is_written_anew(
    cache: Any, tmp_path: Path, caplog: Any, content: bytes
) -> None:
    train(cache, tmp_path, epochs=1)
    before = (tmp_path / "metrics.json").read_bytes()
    (tmp_path / "metrics.json").write_bytes(content)
    train(cache, tmp_path, epochs=1)
    assert (tmp_path / "metrics.json").read_bytes() == before
    assert f"{tmp_path / 'metrics.json'} is incomplete" in caplog.text


@pytest.mark.parametrize(
    "line", [b"\n", b"\0" * 500 + b"\n", b"7\n", b'{"event": "step"}\n', b'{"event": "st', b"\xff\n"]
)
def test_lines_that_are_no_events_are_dropped_and_told(cache: Any, tmp_path: Path, caplog: Any, line: bytes) -> None:
    train(cache, tmp_path, epochs=1)
    log = tmp_path / "train.jsonl"
    before = log.read_bytes().splitlines()
    log.write_bytes(log.read_bytes() + line)
    train(cache, tmp_path, epochs=1)
    assert log.read_bytes().splitlines()[: len(before)] == before
    assert "train.jsonl: dropping 1 incomplete lines" in caplog.text


PLANTED = [os.mkfifo, lambda path: os.symlink("/dev/zero", path)]


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors"])
def test_a_checkpoint_that_is_a_pipe_or_a_device_is_damaged_and_not_waited_for(
    tmp_path: Path, name: str, plant: Callable[[Path], Any]
) -> None:
    header = checkpoint.Header(epoch=1, step=1, config={}, cache={}, teacher={})
    path = checkpoint.write_checkpoint(tmp_path, header, {}, {})
    found = checkpoint.read_header(path)
    (path / name).unlink()
    plant(path / name)
    if name == checkpoint.MODEL:  # as whoever plants a file of no size would note it
        found.files[name]["bytes"] = 0
    with pytest.raises(CheckpointDamaged, match=name):
        checkpoint.read_header(path) if name == checkpoint.HEADER else checkpoint.read_tensors(path, found)


@pytest.mark.parametrize("plant", [*PLANTED, Path.mkdir, lambda path: path.symlink_to("elsewhere")])
def test_a_lock_that_is_no_file_is_refused_by_name(tmp_path: Path, plant: Callable[[Path], Any]) -> None:
    plant(tmp_path / ".lock")
    with (
        pytest.raises(TrainingError, match=r"\.lock: expected the lock file"),
        owned(tmp_path, Ranks(rank=0, size=1, device=torch.device("cpu")), lambda run_dir: None),
    ):
        raise AssertionError("the run went on")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "plant", [*PLANTED, Path.touch, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to(path)]
)
def test_a_checkpoint_that_is_no_folder_is_set_aside(cache: Any, tmp_path: Path, plant: Callable[[Path], Any]) -> None:
    train(cache, tmp_path / "run", epochs=1)
    plant(tmp_path / "run" / "checkpoints" / "epoch-0007")
    assert train(cache, tmp_path / "run", epochs=2).checkpoint.name == "epoch-0002"
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names[1:] == ["epoch-0001", "epoch-0002"]
    assert names[0].startswith("damaged-epoch-0007-")


@pytest.mark.parametrize("plant", PLANTED)
def test_metrics_that_are_a_pipe_or_a_device_are_as_if_absent(tmp_path: Path, plant: Callable[[Path], Any]) -> None:
    plant(tmp_path / "metrics.json")
    assert known_json(tmp_path / "metrics.json", "the evaluation") == {}


def test_a_weights_file_longer_than_its_header_says_is_not_read(tmp_path: Path) -> None:
    header = checkpoint.Header(epoch=1, step=1, config={}, cache={}, teacher={})
    path = checkpoint.write_checkpoint(tmp_path, header, {}, {})
    os.truncate(path / checkpoint.MODEL, 1 << 42)  # sparse
    with pytest.raises(CheckpointDamaged, match=f"has {1 << 42} bytes"):
        checkpoint.read_tensors(path, checkpoint.read_header(path))
