"""``i2p corpus info``: what it prints of each kind of corpus, as text and as JSON, and what it answers a script."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support.commands import run
from tests.support.corpora import ball, cube_text
from tests.support.limits import HANG, heed_interruptions

ROOT = Path(__file__).resolve().parents[2]


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Meshes and clouds in two splits; a twin across them, and two that are refused for one reason."""
    root = tmp_path / "set"
    for folder in ("train/box", "test/box", "train/ball"):
        (root / folder).mkdir(parents=True)
    (root / "train/box/a.off").write_bytes(cube_text("off"))
    (root / "test/box/a.off").write_bytes(cube_text("off"))
    (root / "test/box/b.obj").write_bytes(cube_text("obj") + b"l 1 2\nl 2 3\n")
    np.save(root / "train/ball/c.npy", ball(90))
    np.save(root / "train/ball/d.npy", ball(41))
    np.save(root / "train/ball/e.npy", ball(52))
    (root / "train/ball/notes.md").write_text("x")
    return root


def test_counts_without_reading(capsys, mixed):
    (mixed / "train/box/a.off").write_text("never read")
    outcome = run(capsys, "corpus", "info", f"folder:{mixed}", "--points", 64)
    assert outcome.code == 0
    said = lines(outcome.out)
    for line in ("shapes 6, 64 points each", "ignored 1 other files", "labels 2 classes, 6 shapes labelled",
                 "train test", "ball 3 0", "box 1 2"):  # fmt: skip
        assert line in said
    found = json.loads(run(capsys, "corpus", "info", f"folder:{mixed}", "--points", 64, "--json").out)
    assert (found["shapes"], found["points"], found["ignored"]) == (6, 64, 1)
    assert found["groups"][0] == {"split": "test", "label": "box", "shapes": 2}
    assert run(capsys, "corpus", "info", f"folder:{mixed}", "--workers", 2).code == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_the_whole_report(capsys, mixed, workers):
    outcome = run(capsys, "corpus", "info", f"folder:{mixed}", "--points", 64, "--check", "--workers", workers)
    assert outcome.code == 1
    said = lines(outcome.out)
    names = ("train/box/a.off", "test/box/a.off", "test/box/b.obj", "train/ball/c.npy")
    usable = sum((mixed / name).stat().st_size for name in names)
    for line in (
        f"formats 3 npy, 1 obj, 2 off; {usable / 1e3:.1f} kB can be used",
        "train test refused",
        "ball 3 0 2",
        "box 1 2 0",
        "size smallest median largest",
        "faces 12 12 12",
        "area 6 6 6",
        "points 90 90 90",
        "3 meshes, 1 clouds; faces, vertices, area are of meshes, points of clouds",
        "same bytes 1 groups (1 across splits), 1 shapes more than once",
        "test/box/a.off = train/box/a.off",
        "same shape 1 groups (1 across splits) beyond those, 2 shapes more than once",
        "refused 2 of 6",
    ):
        assert line in said, line
    assert any(line.startswith("2 ") and line.endswith("in 1 shapes: test/box/b.obj") for line in said)
    assert any(line.startswith("2 x has N points, N were requested") for line in said)
    assert any("d.npy: has 41 points, 64 were requested" in line for line in said)
    assert "checking: 6/6 shapes" in outcome.err
    assert "refused 2" in outcome.err
    found = json.loads(
        run(capsys, "corpus", "info", f"folder:{mixed}", "--points", 64, "--check", "--json", "--workers", workers).out
    )
    assert found["refused"] == 2
    assert found["faces"] == {"smallest": 12.0, "median": 12.0, "largest": 12.0}
    assert found["same_content"]["examples"][0]["shapes"] == 3
    assert found["refusals"][0]["examples"][0][1].startswith("has 41 points")


def test_clouds_alone_say_nothing_about_faces(capsys, tmp_path):
    np.savez(tmp_path / "a.npz", points=np.stack([ball(80, seed=k) for k in range(3)]))
    outcome = run(capsys, "corpus", "info", f"npz:{tmp_path / 'a.npz'}", "--points", 64, "--check")
    assert outcome.code == 0, outcome.err
    for word in ("faces", "area", "vertices", "meshes", "same bytes"):
        assert word not in outcome.out
    assert "same shape  none\n" in outcome.out
    assert "refused   0 of 3" in outcome.out
    found = json.loads(
        run(capsys, "corpus", "info", f"npz:{tmp_path / 'a.npz'}", "--check", "--json", "--points", 64).out
    )
    assert (found["faces"], found["area"], found["same_bytes"]) == (None, None, None)


def test_meshes_alone_say_nothing_about_points_of_clouds(capsys):
    outcome = run(capsys, "corpus", "info", "synthetic:?count=40&split=all", "--points", 64, "--check")
    assert outcome.code == 0
    said = lines(outcome.out)
    assert not any(line.startswith("points") or "clouds" in line for line in said)
    assert any(line.startswith("faces ") for line in said)
    assert "formats 40 synthetic" in said


def test_modelnet_and_shapenet_are_reported(capsys, tmp_path):
    h5py = pytest.importorskip("h5py")
    for split, count in (("train", 5), ("test", 3)):
        with h5py.File(tmp_path / f"{split}0.h5", "w") as file:
            file["data"] = np.stack([ball(70, seed=k) for k in range(count)])
            file["label"] = np.arange(count)[:, None] % 2
        (tmp_path / f"{split}_files.txt").write_text(f"{split}0.h5\n")
    (tmp_path / "shape_names.txt").write_text("airplane\nbathtub\n")
    outcome = run(capsys, "corpus", "info", f"modelnet40:{tmp_path}?split=all", "--points", 64, "--check")
    assert outcome.code == 0, outcome.err
    said = lines(outcome.out)
    for line in ("formats 8 hdf5", "bathtub 2 1", "same shape 3 groups (3 across splits), 3 shapes more than once"):
        assert line in said, line

    net = tmp_path / "net"
    (net / "ShapeNet-55").mkdir(parents=True)
    (net / "shapenet_pc").mkdir()
    names = [f"02691156-{k:04x}.npy" for k in range(3)]
    for k, name in enumerate(names[:2]):
        np.save(net / "shapenet_pc" / name, ball(100, seed=k))
    (net / "ShapeNet-55" / "train.txt").write_text("\n".join(names))
    outcome = run(capsys, "corpus", "info", f"shapenet55:{net}", "--points", 64, "--check")
    assert outcome.code == 1
    assert "1 x is listed in train.txt, but does not exist" in lines(outcome.out)
    assert "faces" not in outcome.out


def test_strangers_cannot_forge_a_line(capsys, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a\x1b[2J\tb.off").write_bytes(cube_text("off"))
    (folder / "c\nrefused   0 of 9.off").write_bytes(cube_text("off") + b"\n")
    (folder / "d\nforged.xyz").write_text("1 2 \x1b[31m\n")
    outcome = run(capsys, "corpus", "info", f"folder:{folder}", "--points", 64, "--check")
    assert outcome.code == 1
    assert "\x1b" not in outcome.out + outcome.err
    assert not any(line.startswith(("forged", "refused   0")) for line in outcome.out.splitlines())
    assert r"a\x1b[2J\tb.off = c\nrefused   0 of 9.off" in outcome.out


def test_an_interruption_ends_all_processes(tmp_path):
    (tmp_path / "0.off").write_bytes(cube_text("off"))
    for number in range(1, 8_000):  # more than are read while this process looks for the others
        os.link(tmp_path / "0.off", tmp_path / f"{number}.off")
    command = [sys.executable, "-m", "cli.main", "corpus", "info", f"folder:{tmp_path}", "--check", "--workers", "2"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interruptions,
    )
    end = time.monotonic() + HANG
    children: list[psutil.Process] = []
    while len(children) < 3 and process.poll() is None and time.monotonic() < end:  # two, and what tracks resources
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, said = process.communicate(timeout=HANG)
    assert process.returncode == 130
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=HANG)
    assert alive == []
