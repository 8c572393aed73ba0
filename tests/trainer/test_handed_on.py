"""Encoders for use elsewhere: folders for a hub, and graphs that run without this package."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from cuda.fps import farthest_point_sample
from cuda.gather import group
from cuda.knn import knn
from tests.support.commands import run
from tests.support.finetune import classifier_checkpoint
from tests.support.models import TINY, TINY_CHANNELS
from trainer.checkpoints.files import Header, find_checkpoint, read_header, write_checkpoint_at
from trainer.checkpoints.graph import _fps, _group, _knn, encoder_graph
from trainer.checkpoints.models import load_encoder, load_fine_tuned, sections_of, software_versions
from trainer.errors import CheckpointDamaged, CheckpointError
from trainer.models.config import MaskingConfig
from trainer.models.hierarchical.student import I2PMAE

MODEL = replace(TINY, groups=(11, 6, 3), neighbours=(7, 4, 3))


def student(**settings) -> I2PMAE:
    model = I2PMAE(replace(MODEL, **settings), MaskingConfig(ratio=0.5), teacher_channels=TINY_CHANNELS)
    model.initialise(torch.Generator().manual_seed(3))
    return model.eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A tiny encoder's checkpoint."""
    model = student()
    header = Header(
        epoch=2, step=9, config=sections_of(model=model.config, masking=model.masking),
        cache={"recipe": "r", "records": 5}, teacher={"channels": TINY_CHANNELS, "views": 3},
        versions=software_versions(), metrics={"loss_3d": 0.5},
    )  # fmt: skip
    return write_checkpoint_at(tmp_path_factory.mktemp("handed") / "epoch-0002", header, model.state_dict(), None)


def clouds(count: int = 4, points: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, points, 3, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_folder_for_a_hub_is_read_back(written, capsys, tmp_path) -> None:
    out = tmp_path / "encoder"
    outcome = run(capsys, "checkpoint", "hub", written, "--out", out)
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert torch.equal(load_encoder(out).encode(clouds()), load_encoder(written).encode(clouds()))
    (out / ".gitattributes").write_text("*.safetensors lfs")  # as hubs add
    header, before = read_header(find_checkpoint(out)), read_header(written)
    assert replace(header, files={}) == replace(before, files={})
    # plain readers: settings in JSON, weights in safetensors with the metadata that hubs ask for
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["architecture"]) == ("i2p-mae", "hierarchical")
    assert config["checkpoint"]["config"]["model"]["groups"] == [11, 6, 3]
    from safetensors import safe_open

    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    # the same call writes the same bytes, and nothing is overwritten
    run(capsys, "checkpoint", "hub", written, "--out", tmp_path / "again")
    for name in ("README.md", "config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    refused = run(capsys, "checkpoint", "hub", written, "--out", out)
    assert (refused.code, "exists already" in refused.err) == (1, True)
    assert "pretraining" in run(capsys, "checkpoint", "info", out).out
    tuned = classifier_checkpoint(tmp_path / "tuned")
    run(capsys, "checkpoint", "hub", tuned, "--out", tmp_path / "classifier")
    assert load_fine_tuned(tmp_path / "classifier")[1].kind == "classifier"


def test_a_damaged_folder_for_a_hub_is_refused(written, capsys, tmp_path) -> None:
    run(capsys, "checkpoint", "hub", written, "--out", tmp_path / "a")
    weights, config = tmp_path / "a" / "model.safetensors", tmp_path / "a" / "config.json"
    sound = config.read_text()
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointDamaged, match=r"model\.safetensors does not match its sha256"):
        load_encoder(tmp_path / "a")
    config.write_text(sound.replace('"epoch": 2', '"epoch": 3'))
    with pytest.raises(CheckpointDamaged, match=r"config\.json .*sha256"):
        load_encoder(tmp_path / "a")
    for text in ("{}", "[]", '{"checkpoint": []}', '{"model_type": "bert", "hidden_size": 768}'):
        config.write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json is not marked as an i2p-checkpoint"):
            load_encoder(tmp_path / "a")
    weights.unlink()
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        load_encoder(tmp_path / "a")


@torch.no_grad()
@pytest.mark.parametrize("skip", [False, True])
def test_the_definitions_in_torch_are_the_kernels(skip) -> None:
    points = clouds(3, 57, seed=1)
    points[1, 5:25] *= 0.005  # near the origin
    points[2] *= 1e-3  # all of it: with the rule nothing can be chosen, and index 0 repeats
    chosen = farthest_point_sample(points, 19, skip_near_origin=skip)
    assert torch.equal(_fps(points, 19, skip), chosen)
    assert (chosen[2] == 0).all() == skip
    centres = points.gather(1, chosen[:, :8, None].expand(3, 8, 3))
    dist2, idx = knn(points, centres, 6)
    if not skip:
        found = _knn(points, centres, 6)
        assert torch.equal(found[0], dist2)
        assert torch.equal(found[1], idx)
    assert torch.equal(_group(points, centres, idx), group(points, centres, idx))


@torch.no_grad()
def test_the_graph_is_the_encoder_for_any_batch() -> None:
    model, feature = student(fps_skip_near_origin=True), "top"
    program = encoder_graph(model, points=40, feature=feature)
    assert not [node for node in program.graph.nodes if "i2p." in str(node.target)]
    for count in (1, 5):
        found = program.module()(clouds(count, seed=count))
        torch.testing.assert_close(found, model.encode(clouds(count, seed=count), feature), rtol=0, atol=1e-5)


def test_a_graph_runs_where_this_package_is_not(written, capsys, tmp_path) -> None:
    out = tmp_path / "encoder.pt2"
    outcome = run(capsys, "checkpoint", "graph", written, "--out", out, "--points", 40)
    assert outcome.code == 0, outcome.err
    assert "points [B, 40, 3] float32 -> features [B, 174] (levels)" in outcome.out
    code = (
        "import sys, json, numpy as np, torch; extra = {'about.json': ''}\n"
        f"program = torch.export.load({str(out)!r}, extra_files=extra)\n"
        f"found = program.module()(torch.from_numpy(np.load({str(tmp_path / 'points.npy')!r})))\n"
        f"np.save({str(tmp_path / 'found.npy')!r}, found.detach().numpy())\n"
        "assert 'trainer' not in sys.modules and 'cuda.fps' not in sys.modules\n"
        "print(json.loads(extra['about.json'])['points'])"
    )
    np.save(tmp_path / "points.npy", clouds(6).numpy())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "40"
    with torch.no_grad():
        wanted = load_encoder(written).encode(clouds(6)).numpy()
    assert np.load(tmp_path / "found.npy") == pytest.approx(wanted, abs=1e-5)


def test_onnx_is_the_encoder_or_says_what_it_needs(written, capsys, tmp_path) -> None:
    out = tmp_path / "encoder.onnx"
    outcome = run(capsys, "checkpoint", "graph", written, "--out", out, "--points", 40)
    if find_spec("onnxscript") is None:
        assert (outcome.code, 'pip install "i2p-pretrain[onnx]"' in outcome.err) == (1, True)
        assert not out.exists()
        return
    assert outcome.code == 0, outcome.err
    from onnx.reference import ReferenceEvaluator

    (found,) = ReferenceEvaluator(str(out)).run(None, {"points": clouds(3).numpy()})
    with torch.no_grad():
        assert found == pytest.approx(load_encoder(written).encode(clouds(3)).numpy(), abs=1e-4)


def test_what_is_no_graph_is_refused(written, capsys, tmp_path) -> None:
    with pytest.raises(
        CheckpointError, match=r"I2PMAE with these settings is no single graph: [^\n]+\n.*eval_hide_unused"
    ):
        encoder_graph(student(eval_hide_unused=True, token0_leak=True), points=40)
    (tmp_path / "there.pt2").write_text("x")
    for arguments, code, said in (
        (("--out", tmp_path / "a.pt"), 2, "expected a name that ends in .pt2 or .onnx"),
        (("--out", tmp_path / "there.pt2"), 2, "is there already"),
        (("--out", tmp_path / "a.pt2", "--points", 9), 1, "needs at least 11 points, not 9"),
    ):
        refused = run(capsys, "checkpoint", "graph", written, *arguments)
        assert (refused.code, said in refused.err) == (code, True), refused.err
