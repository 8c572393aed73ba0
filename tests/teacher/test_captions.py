"""Captions say what is so, and words become tokens that open_clip's text tower understands."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpora import open_corpus
from pipeline.corpora.kinds.synthetic import Attributes
from pipeline.teacher.tiny_clip.captions import CLASS_PROMPTS, Pose, Vocabulary, caption, every_phrase

CORPUS = open_corpus("synthetic:?count=360&seed=7", points=64)
CHAIR = Attributes(
    category="chair",
    parts={"seat": 1, "leg": 4, "foot": 2},
    areas={"seat": 0.5, "leg": 0.4, "foot": 0.1},
    facts={"back": "slatted", "armrests": False, "cushion": True, "slats": 5, "nozzles": "3", "kind": "bar"},
    size=(0.3, 0.3, 1.0),
)


def captions(attributes, pose, view, count=300):
    rng = np.random.default_rng(0)
    return {caption(attributes, pose, view, rng) for _ in range(count)}


@given(index=st.integers(0, 359), view=st.integers(0, 2), seed=st.integers(0, 2**32 - 1), degrees=st.floats(0, 360))
def test_a_caption_names_its_category_and_uses_known_words(index, view, seed, degrees):
    attributes = CORPUS.describe(index)
    words = Vocabulary.of([attributes], size=512, length=40)
    text = caption(attributes, Pose("yaw", degrees), view, np.random.default_rng(seed))
    assert attributes.category in text
    assert words.knows(text)


def test_what_a_caption_may_say_of_a_chair():
    assert set(every_phrase(CHAIR)) == {
        "chair", "one seat", "four legs", "two feet", "slatted back", "no armrests", "cushion", "five slats",
        "three nozzles", "bar",
    }  # fmt: skip
    said = " | ".join(captions(CHAIR, Pose("upright", 0.0), 1))
    assert "slender chair" in said
    assert "four legs" in said
    assert "with armrests" not in said
    assert "tumbled" not in said


@pytest.mark.parametrize(
    ("pose", "view", "side"),
    [
        (Pose("upright", 0.0), 0, "above"),
        (Pose("yaw", 77.0), 0, "above"),
        (Pose("upright", 0.0), 1, "the front"),
        (Pose("upright", 0.0), 2, "the side"),
        (Pose("yaw", 90.0), 1, "the side"),
        (Pose("yaw", 90.0), 2, "the front"),
        (Pose("yaw", 180.0), 1, "the front"),
        (Pose("yaw", 45.0), 1, "a corner"),
        (Pose("yaw", 45.0), 2, "a corner"),
    ],
)
def test_the_side_an_object_is_seen_from(pose, view, side):
    seen = [text.split("seen from ")[1].split(" with")[0] for text in captions(CHAIR, pose, view) if "seen" in text]
    assert set(seen) == {side}


def test_a_tumbled_object_has_no_front():
    assert not any("seen" in text for text in captions(CHAIR, Pose("tumbled", 0.0), 1))


def test_class_prompts_are_among_the_known_words():
    words = Vocabulary.of([CHAIR], size=512, length=40)
    assert all(words.knows(prompt.format("chair")) for prompt in CLASS_PROMPTS)
    assert not words.knows("a giraffe")


def test_tokens_start_end_and_are_cut():
    words = Vocabulary(["a", "chair", "red"], size=10, length=5)
    assert words(["a chair", "a red chair", "a red red red chair", "giraffe"]).tolist() == [
        [1, 3, 4, 9, 0],
        [1, 3, 5, 4, 9],
        [1, 3, 5, 5, 9],
        [1, 2, 9, 0, 0],
    ]
    assert words(["a"]).dtype == torch.int64


def test_a_table_too_small_for_its_words_is_refused():
    with pytest.raises(ValueError, match="3 words for a vocabulary of 6"):
        Vocabulary(["a", "b", "c"], size=6, length=5)
