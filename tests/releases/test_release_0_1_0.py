"""Caches and a run that version 0.1.0 wrote open, verify, grow, convert and resume today.

The archive holds what 0.1.0 made of ``small.toml``: seven synthetic shapes in both formats under a
random teacher, and a run that stopped after the first of its two epochs. All sizes differ from one another.
"""

import hashlib
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest

import teacher_cache
from tests.support.commands import run

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "release-0.1.0.tar.xz"
CACHES = {"zarr": "synthetic-96dc30b52b1d", "webdataset": "synthetic-6242500db310"}
VOLATILE = ("logs", "tmp", "seen")  # what a cache does not promise the bytes of
# The second epoch of that run, undisturbed, as 0.1.0 logged it: losses of the steps 3 and 4.
LOSSES = {
    3: (1.4792333841323853, 1.0543797016143799),
    4: (1.3424720764160156, 0.9997796416282654),
}

# The preset that small.toml extends has class tokens and a loss of whole shapes by now.
AS_THEN = ("--set", "cache.class_token=none", "--set", "alignment.weight=0")


@pytest.fixture
def released(tmp_path, monkeypatch):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(cache: Path) -> dict[str, str]:
    """SHA-256 of each file whose bytes are promised."""
    found = (path for path in sorted(cache.rglob("*")) if path.is_file())
    names = {path.relative_to(cache): path for path in found}
    return {
        str(name): hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if name.parts[0] not in VOLATILE
    }


@pytest.mark.parametrize("format", CACHES)
def test_a_cache_opens_verifies_and_is_complete(released, capsys, format):
    cache = released / "caches" / CACHES[format]
    before = files(cache)
    assert len(teacher_cache.open(cache)) == 7
    assert run(capsys, "cache", "verify", cache).code == 0
    assert run(capsys, "cache", "info", cache).code == 0
    built = run(capsys, "cache", "build", "small.toml", "--set", f"cache.format={format}", *AS_THEN)
    assert built.code == 0, built.err
    assert built.out.strip().endswith(CACHES[format])  # the same recipe names the same cache
    assert files(cache) == before


def test_both_formats_hold_the_same_records(released):
    one, other = (teacher_cache.open(released / "caches" / name) for name in CACHES.values())
    for a, b in zip(one, other, strict=True):
        assert (a.id, a.label) == (b.id, b.label)
        np.testing.assert_array_equal(a.features, b.features)
        np.testing.assert_array_equal(a.points, b.points)
        np.testing.assert_array_equal(a.depth, b.depth)


@pytest.mark.parametrize("format", CACHES)
def test_a_cache_grows_and_keeps_what_it_has(released, capsys, format):
    cache = released / "caches" / CACHES[format]
    grows = ("manifest.json", "zarr.json")  # which hold the number of records
    before = {name: digest for name, digest in files(cache).items() if not name.endswith(grows)}
    grown = run(
        capsys, "cache", "build", "small.toml", "--set", f"cache.format={format}",
        "--set", "corpus.uri=synthetic:?count=11&seed=3", *AS_THEN,
    )  # fmt: skip
    assert grown.code == 0, grown.err
    assert run(capsys, "cache", "verify", cache).code == 0
    assert len(teacher_cache.open(cache)) == 11
    after = files(cache)
    assert {name: after[name] for name in before} == before


def test_a_cache_converts_to_the_other_format(released, capsys):
    done = run(capsys, "cache", "convert", released / "caches" / CACHES["zarr"], "--format", "webdataset",
               "--root", released / "converted")  # fmt: skip
    assert done.code == 0, done.err
    converted = teacher_cache.open(done.out.strip().splitlines()[-1])
    for a, b in zip(converted, teacher_cache.open(released / "caches" / CACHES["webdataset"]), strict=True):
        assert a.id == b.id
        np.testing.assert_array_equal(a.features, b.features)


def test_a_run_resumes_and_ends_as_it_would_have(released, capsys):
    other = run(capsys, "pretrain", "small.toml", "--out", released / "runs" / "small")
    assert other.code == 1
    assert "alignment.weight was 0.0, is now 1.0" in other.err
    assert "Use the settings that the run was started with" in other.err
    done = run(capsys, "pretrain", "small.toml", "--out", released / "runs" / "small", *AS_THEN)
    assert done.code == 0, done.err
    events = [json.loads(line) for line in (released / "runs/small/train.jsonl").read_text().splitlines()]
    resumed = {event["step"]: (event["loss_3d"], event["loss_2d"]) for event in events if event["event"] == "step"}
    assert sorted(resumed) == [1, 2, 3, 4]
    for step, losses in LOSSES.items():
        # Equal to the bit on the machine that wrote them; sums in another order differ by 1e-6 elsewhere.
        assert all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(resumed[step], losses, strict=True))


def test_a_checkpoint_loads_by_path(released):
    from trainer.checkpoints.models import load_encoder

    encoder = load_encoder(released / "runs" / "small")
    assert sum(parameter.numel() for parameter in encoder.parameters()) > 0
