"""The weights that travel with the package: what their card says of them holds."""

import hashlib
import re
from pathlib import Path

import pytest

from cli.actions.teacher_scores import score_teacher
from pipeline.config import ProjectionConfig, TeacherConfig
from pipeline.teacher.tiny_clip.files import load_clip
from pipeline.teacher.tower import embedded_weights, load_teacher

EMBEDDED = TeacherConfig(architecture="i2p-vit-tiny-16", pretrained="embedded", device="cpu")


def test_the_card_is_of_this_file():
    path = embedded_weights("i2p-vit-tiny-16")
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert path.stat().st_size <= 8 * 2**20


def test_it_is_a_small_clip_with_both_towers():
    clip, words = load_clip(Path(embedded_weights("i2p-vit-tiny-16")))
    assert sum(value.numel() for value in clip.parameters()) < 4_000_000
    assert words.knows("a tall chair seen from the front with four legs")
    teacher = load_teacher(EMBEDDED)
    assert (teacher.channels, teacher.tokens, teacher.image_side) == (128, 196, 224)
    assert "random_seed" not in teacher.identity()
    assert re.fullmatch("[0-9a-f]{64}", teacher.identity()["weights_sha256"])


def test_it_knows_more_than_a_random_one():
    train, test = (
        f"synthetic:?count={n}&seed=1002&split={split}&rotate=yaw" for n, split in ((72, "train"), (36, "test"))
    )
    drawn = ProjectionConfig(reduction="nearest", depth_offset=1.5)
    found = score_teacher(EMBEDDED, drawn, [("toys", train, test)], points=512, seeds=1)["corpora"]["toys"]
    assert found["rows"]["teacher"]["patches"]["accuracy"] > found["rows"]["random"]["patches"]["accuracy"] + 0.05
    assert found["zero_shot"]["accuracy"] > 4 * found["zero_shot"]["chance"]


def test_other_architectures_have_no_embedded_weights():
    from pipeline.errors import TeacherError

    with pytest.raises(TeacherError, match=r"has no weights of ViT-B-16, only of: i2p-vit-tiny-16"):
        embedded_weights("ViT-B-16")
