"""A tiny CLIP is trained, goes on where it was killed, and is read like any other teacher."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pipeline.config import TeacherConfig
from pipeline.errors import TeacherError
from pipeline.teacher.tiny_clip.config import LearningConfig, ViewsConfig
from pipeline.teacher.tiny_clip.files import load_clip
from pipeline.teacher.tiny_clip.train import CLIP_FILE, train_clip
from pipeline.teacher.tiny_clip.views import LEVELS, draw_cloud, draw_views, objects, open_views
from pipeline.teacher.tiny_clip.zero_shot import class_directions, classify, readable
from pipeline.teacher.tower import load_teacher

VIEWS = ViewsConfig(shapes=40, points=(64, 128), image_side=32, patch_side=8)


@pytest.fixture
def learning(tmp_path):
    path = tmp_path / "small.json"
    tower = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 40, "vocab_size": 512, "width": 32, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": tower, "text_cfg": text}))
    return LearningConfig(
        architecture=str(path), steps=4, finish=2, batch_size=12, patch_dropout=0.5, precision="float32",
        checkpoint_every=2, device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    draw_views(VIEWS, folder)
    return folder


def test_views_are_drawn_once_and_the_same(tmp_path, drawn):
    draw_views(VIEWS, tmp_path)
    (block,) = tmp_path.glob("views-*.npz")
    (other,) = drawn.glob("views-*.npz")
    before = block.stat().st_mtime_ns
    draw_views(VIEWS, tmp_path)
    assert block.stat().st_mtime_ns == before
    first, second = open_views(VIEWS, tmp_path), open_views(VIEWS, drawn)
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.parts, second.parts)
    assert first.poses == second.poses
    assert other.exists()
    empty = first.images == LEVELS // 2
    assert 0.2 < empty.mean() < 0.95  # most of an image is background, none is all of it
    touched = (~empty).reshape(40, 3, 4, 8, 4, 8).any(axis=(3, 5)).reshape(40, 3, 16)
    assert (first.parts >= 0)[~touched].sum() == 0  # a patch that shows a part is not empty
    names = objects(VIEWS).part_names
    shown = {names[part].split("/")[0] for part in np.unique(first.parts[5]) if part >= 0}
    assert shown == {objects(VIEWS).describe(5).category}


def test_a_cloud_depends_on_its_index_alone():
    longer = replace(VIEWS, shapes=80)
    cloud, parts, *rest = draw_cloud(objects(VIEWS), 17, VIEWS)
    again, same_parts, *same_rest = draw_cloud(objects(longer), 17, longer)
    assert np.array_equal(cloud, again)
    assert np.array_equal(parts, same_parts)
    assert rest == same_rest
    assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(1.0, abs=1e-6)


def test_every_kind_of_pose_and_reduction_is_drawn():
    found = [draw_cloud(objects(VIEWS), index, VIEWS)[2:] for index in range(40)]
    assert {pose.kind for pose, _ in found} == {"upright", "yaw", "tumbled"}
    assert {reduction for _, reduction in found} == {"sum", "mean", "max", "nearest"}


def test_views_of_other_settings_are_not_mixed(drawn):
    with pytest.raises(TeacherError, match=r"started with other settings: views\.noise differ"):
        draw_views(replace(VIEWS, noise=0.1), drawn)


def test_a_damaged_block_is_named(tmp_path):
    draw_views(VIEWS, tmp_path)
    (block,) = tmp_path.glob("views-*.npz")
    block.write_bytes(block.read_bytes()[:1000])
    with pytest.raises(TeacherError, match=r"views-00000\.npz: not a complete block"):
        open_views(VIEWS, tmp_path)


def test_training_learns_something(tmp_path, drawn, learning):
    few = replace(
        learning, steps=150, finish=0, batch_size=24, learning_rate=3e-3, patch_dropout=0.0, checkpoint_every=150
    )
    reports = []
    train_clip(VIEWS, few, tmp_path / "run", views_folder=drawn, on_step=reports.append)
    first = np.mean([report.loss for report in reports[:5]])
    last = np.mean([report.loss for report in reports[-5:]])
    assert last < min(first, np.log(24)) - 0.5


def test_a_stopped_run_ends_in_the_same_weights(tmp_path, drawn, learning):
    class Stop(Exception):
        pass

    def stop(report):
        if report.step == 5:
            raise Stop

    whole = train_clip(VIEWS, learning, tmp_path / "whole", views_folder=drawn)
    with pytest.raises(Stop):
        train_clip(VIEWS, learning, tmp_path / "stopped", views_folder=drawn, on_step=stop)
    seen = []
    resumed = train_clip(
        VIEWS, learning, tmp_path / "stopped", views_folder=drawn, on_step=lambda report: seen.append(report.step)
    )
    assert seen == [5, 6]  # the checkpoint of step 4 was the last
    assert resumed.read_bytes() == whole.read_bytes()
    again = []
    train_clip(VIEWS, learning, tmp_path / "whole", views_folder=drawn, on_step=again.append)
    assert again == []


def test_a_run_of_other_settings_is_refused(tmp_path, drawn, learning):
    train_clip(VIEWS, learning, tmp_path, views_folder=drawn)
    with pytest.raises(TeacherError, match=r"other settings: learning\.batch_size differ"):
        train_clip(VIEWS, replace(learning, batch_size=10), tmp_path, views_folder=drawn)


def test_views_of_other_sizes_than_the_towers_are_refused(tmp_path, drawn, learning):
    with pytest.raises(TeacherError, match=r"views\.patch_side = 16 is not the 8"):
        train_clip(replace(VIEWS, patch_side=16), learning, tmp_path, views_folder=drawn)


def test_the_vision_tower_loads_like_any_other(tmp_path, drawn, learning):
    path = train_clip(VIEWS, learning, tmp_path, views_folder=drawn)
    with safe_open(path, framework="pt") as file:
        assert all(file.get_tensor(name).dtype == torch.float16 for name in file.keys())  # noqa: SIM118
    config = TeacherConfig(architecture=learning.architecture, weights=str(path), device="cpu")
    teacher = load_teacher(config)
    clip, words = load_clip(path)
    images = torch.randn(3, 3, 32, 32)
    assert torch.allclose(teacher.encode_class(images)[0], clip.encode_image(images), atol=1e-5)
    assert words.knows("a chair with four legs")
    assert load_clip(_other(tmp_path)) is None


def _other(folder):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, folder / "other.safetensors")
    return folder / "other.safetensors"


def test_a_clip_names_what_it_is_told_it_sees(tmp_path, drawn, learning):
    clip, words = load_clip(train_clip(VIEWS, learning, tmp_path, views_folder=drawn))
    directions, known = class_directions(clip, words, ["chair", "giraffe", "Table"])
    assert known == [0, 2]
    assert torch.allclose(directions.norm(dim=1), torch.ones(2))
    seen = directions[[1, 0, 1]][:, None].expand(3, 3, -1)
    assert classify(seen, directions).tolist() == [1, 0, 1]
    assert class_directions(clip, words, ["giraffe"])[1] == []


def test_labels_become_words():
    assert [readable(name) for name in ("night_stand", "NightStand", "chair")] == [
        "night stand",
        "night stand",
        "chair",
    ]


def test_a_kill_leaves_a_run_that_goes_on(tmp_path, drawn, learning):
    whole = train_clip(VIEWS, learning, tmp_path / "whole", views_folder=drawn)
    script = (
        "import os, signal, sys, torch\nfrom pathlib import Path\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"  # the same bytes are of the same number
        "from pipeline.teacher.tiny_clip.config import LearningConfig, ViewsConfig\n"
        "from pipeline.teacher.tiny_clip.train import train_clip\n"
        f"views, learning = {VIEWS!r}, {learning!r}\n"
        "train_clip(views, learning, Path(sys.argv[1]), views_folder=Path(sys.argv[2]),\n"
        "           on_step=lambda report: os.kill(os.getpid(), signal.SIGKILL) if report.step == 4 else None)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "killed"), str(drawn)], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "killed" / CLIP_FILE).exists()
    resumed = train_clip(VIEWS, learning, tmp_path / "killed", views_folder=drawn)
    assert resumed.read_bytes() == whole.read_bytes()
    for name in ("whole", "killed"):  # a step that was done twice has one line
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, learning.all_steps + 1))


def test_a_checkpoint_of_other_weights_is_named(tmp_path, drawn, learning):
    from safetensors.torch import save_file

    train_clip(VIEWS, learning, tmp_path, views_folder=drawn)
    save_file({"model.visual.x": torch.zeros(1)}, tmp_path / "checkpoint.safetensors", metadata={"step": "2"})
    with pytest.raises(TeacherError, match=r"checkpoint\.safetensors: weights of another architecture"):
        train_clip(VIEWS, learning, tmp_path, views_folder=drawn)


def test_a_note_of_settings_that_cannot_be_read_is_named(tmp_path, drawn, learning):
    (tmp_path / "settings.json").write_text("[1]")
    with pytest.raises(TeacherError, match=r"settings\.json: not a settings file"):
        train_clip(VIEWS, learning, tmp_path, views_folder=drawn)
