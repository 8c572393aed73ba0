"""``i2p teacher``: from a settings file to a teacher, and what it is worth."""

import json

import numpy as np
import pytest

from tests.support.commands import run

TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 512, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "towers.json").write_text(json.dumps(TOWERS))
    (folder / "mine.toml").write_text(
        "[views]\nshapes = 36\npoints = [64, 128]\nimage_side = 32\npatch_side = 8\n"
        f'[learning]\narchitecture = "{folder / "towers.json"}"\n'
        'steps = 3\nfinish = 1\nbatch_size = 8\ndevice = "cpu"\n'
    )
    return folder


def test_train_then_eval(capsys, made):
    out = made / "run"
    first = run(capsys, "teacher", "train", made / "mine.toml", "--out", out)
    assert first.code == 0, first.err
    assert "clip.safetensors" in first.out
    assert (out / "curve.png").stat().st_size > 1000
    again = run(capsys, "teacher", "train", made / "mine.toml", "--out", out)
    assert again.code == 0
    assert "already complete" in again.err
    options = ["--architecture", made / "towers.json", "--weights", out / "clip.safetensors", "--shapes", 72]
    scored = run(capsys, "teacher", "eval", *options, "--points", 64, "--seeds", 2, "--json")
    assert scored.code == 0, scored.err
    found = json.loads(scored.out)["corpora"]["synthetic"]
    assert found["classes"] == 36
    assert set(found["rows"]) == {"teacher", "random"}
    assert len(found["rows"]["random"]["class"]["scores"]) == 2
    assert 0 <= found["zero_shot"]["accuracy"] <= 1
    assert found["zero_shot"]["shapes"] == 36
    table = run(capsys, "teacher", "eval", *options, "--points", 64, "--seeds", 1)
    assert "zero-shot synthetic" in table.out


def test_all_faults_at_once(capsys, made):
    answer = run(capsys, "teacher", "train", made / "mine.toml", "--set", "learning.steps=0", "--set", "views.size=3")
    assert answer.code == 2
    assert "2 problems" in answer.err
    assert "learning.steps = 0 is smaller than 1" in answer.err
    assert "views.size is not a setting" in answer.err
    assert run(capsys, "teacher", "train", "nothing").code == 2
    assert "NAME=TRAIN,TEST" in run(capsys, "teacher", "eval", "--corpus", "x").err


def test_the_embedded_weights_have_an_architecture(capsys):
    answer = run(capsys, "teacher", "eval", "--architecture", "ViT-B-16")
    assert answer.code == 1
    assert "this package has no weights of ViT-B-16" in answer.err


def test_corpora_whose_uris_hold_commas_are_told_apart(capsys, made, tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for k in range(6):
                np.save(folder / f"{k}.npy", np.random.default_rng(k).normal(size=(80, 3)).astype("f4"))
    pair = ",".join(f"folder:{tmp_path}?formats=npy,off&split={split}" for split in ("train", "test"))
    options = ["--architecture", made / "towers.json", "--pretrained", "random", "--shapes", 72, "--points", 64]
    scored = run(capsys, "teacher", "eval", *options, "--seeds", 1, "--json", "--corpus", f"mine={pair}")
    assert scored.code == 0, scored.err
    assert "mine" in json.loads(scored.out)["corpora"]
    three = run(capsys, "teacher", "eval", "--corpus", f"mine={pair},npz:x.npz")
    assert three.code == 2
    assert "two corpora" in three.err
