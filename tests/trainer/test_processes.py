"""What only shows between processes: a run that is killed, and one that is spread over two."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import teacher_cache
from tests.support.limits import HANG
from tests.support.ranks import on_two_ranks
from tests.support.training import second_cache, train, training_cache, weights_of
from trainer.checkpoints import files as checkpoint
from trainer.config import AlignmentConfig

ROOT = Path(__file__).resolve().parents[2]
RUN = [sys.executable, "-m", "tests.support.training"]


# As `python -m tests.support.training`, but it never gets to its end: how soon it is killed is the machine's affair.
ENDLESS = """
import sys, time
from pathlib import Path
import teacher_cache, torch
from tests.support.training import train

def halt(event):
    while event.epoch >= int(sys.argv[3]) - 1:
        time.sleep(1)

torch.set_num_threads(1)
train(teacher_cache.open(sys.argv[1]), Path(sys.argv[2]), epochs=int(sys.argv[3]), schedule_epochs=0, on_event=halt)
"""


def _start(cache: Any, run_dir: Path, epochs: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", ENDLESS, str(cache.path), str(run_dir), str(epochs)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)


def _lines(run_dir: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "train.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    cache = training_cache(tmp_path / "cache", 40)
    epochs = 12
    whole = train(cache, tmp_path / "whole", epochs=epochs, schedule_epochs=0)
    run_dir = tmp_path / "killed"
    process = _start(cache, run_dir, epochs)
    deadline = time.monotonic() + HANG
    while len(checkpoint.checkpoints(run_dir)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read() if process.stderr else b""
    newest = checkpoint.latest(run_dir)
    assert newest is not None
    reached = int(newest.name[-4:])
    assert 2 <= reached < epochs
    report = train(cache, run_dir, epochs=epochs, schedule_epochs=0)
    assert report.resumed_from == reached
    assert weights_of(report) == weights_of(whole)
    optimizer = checkpoint.OPTIMIZER
    assert (report.checkpoint / optimizer).read_bytes() == (whole.checkpoint / optimizer).read_bytes()
    assert [line["step"] for line in _lines(run_dir, "step")] == list(range(1, 5 * epochs + 1))


def _two_epochs(rank: int) -> None:
    cache, run_dir = os.environ["I2P_TEST_RANKS"].split(os.pathsep)
    train(teacher_cache.open(cache), Path(run_dir), epochs=2)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_two_ranks_train_the_student_that_one_would(
    tmp_path: Path, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = training_cache(tmp_path / "cache", class_token="float16")
    further = [second_cache(tmp_path / "further")] if weight else []
    one = train(cache, tmp_path / "one", epochs=2, alignment=AlignmentConfig(weight=weight), further=further)
    if weight:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [RUN[0], *launcher, *RUN[1:], str(cache.path), str(tmp_path / "two"), "2"]
        command += ["global", *(f"and={more.path}" for more in further)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=False)
        assert done.returncode == 0, done.stderr
    else:  # without a launcher, which costs seconds
        monkeypatch.setenv("I2P_TEST_RANKS", f"{cache.path}{os.pathsep}{tmp_path / 'two'}")
        on_two_ranks(_two_epochs, tmp_path)
    assert _lines(tmp_path / "two", "start")[0]["ranks"] == 2
    more = ["loss_2d_2", "loss_global_2"] if weight else []
    steps = [
        np.array(
            [
                [line[k] for k in ("loss_3d", "loss_2d", "loss_global", *more, "gradient_norm")]
                for line in _lines(tmp_path / name, "step")
            ]
        )
        for name in ("one", "two")
    ]
    # Batch norms and sums run in another order. First step: 8e-6 was seen. Then AdamW turns the rounding noise of
    # gradients that are zero into whole steps: 4e-4 of a loss was seen after six.
    assert np.allclose(steps[1][0], steps[0][0], rtol=1e-4)
    assert np.allclose(steps[1][:, :-1], steps[0][:, :-1], rtol=1e-2)
    assert (steps[0][:, 2] > 0).all() == (weight > 0)
    weights = [
        load_file(path / "model.safetensors") for path in (one.checkpoint, tmp_path / "two/checkpoints/epoch-0002")
    ]
    assert weights[0].keys() == weights[1].keys()
    flat = [
        torch.cat([w[name].float().reshape(-1) for name in sorted(w) if "num_batches" not in name]) for w in weights
    ]
    # 7e-4 was seen
    assert (flat[0] - flat[1]).norm() < 1e-2 * flat[0].norm()
