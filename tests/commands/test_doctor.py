"""`i2p doctor`: what it prints, and that it notices what does not work."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.teacher.weights import cached_weights
from tests.support.commands import run


def test_it_prints_versions_machine_and_checks(capsys) -> None:
    outcome = run(capsys, "doctor")
    assert outcome.code == 0, outcome.out
    for words in ("python 3.", "torch ", "[cuda]", "cores for this process", "GiB available", "GiB free at"):
        assert words in outcome.out
    assert "ok      kernels on the CPU" in outcome.out


def test_its_json_has_the_same(capsys) -> None:
    outcome = run(capsys, "doctor", "--json")
    found = json.loads(outcome.out)
    assert found["failed"] == 0
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert states["kernels on the CPU"] == states["teacher i2p-vit-tiny-16 embedded"] == "ok"
    assert found["versions"]["torch"]
    assert found["machine"]["memory"] >= found["machine"]["memory_available"] > 0


def test_a_kernel_that_is_wrong_fails_it(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuda.plain.farthest_point_sample", lambda points, k: np.zeros((len(points), k), np.int64))
    outcome = run(capsys, "doctor")
    assert outcome.code == 1
    assert "failed  kernels on the CPU" in outcome.out
    assert "farthest-point sampling disagrees with its definition" in outcome.out


def test_weights_at_hand_are_found_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    by_url = {"url": "https://host.example/models/some-1234.pt"}
    assert cached_weights("some", "tag", by_url) is None
    path = tmp_path / ".cache" / "clip" / "some-1234.pt"
    path.parent.mkdir(parents=True)
    path.touch()
    assert cached_weights("some", "tag", by_url) == path
    on_hub = {"hf_hub": "some/model/"}
    asked = []

    def look(repository: str, name: str) -> str | None:
        asked.append((repository, name))
        return "/there/weights.bin" if name.endswith(".bin") else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look)
    assert cached_weights("some", "tag", on_hub) == Path("/there/weights.bin")
    assert asked == [("some/model", "open_clip_model.safetensors"), ("some/model", "open_clip_pytorch_model.bin")]
