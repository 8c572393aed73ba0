"""Stored poses: the shape itself first, then stretched copies that depend on nothing but (id, pose)."""

import numpy as np
import pytest

from pipeline.config import CorpusConfig, ProjectionConfig
from pipeline.corpora import open_corpus
from pipeline.poses import STRETCH, open_source
from pipeline.recipe import recipe_for
from teacher_cache import CacheConfig

URI = "synthetic:?count=5&seed=3"


def test_one_pose_is_the_corpus_itself():
    plain = open_source(CorpusConfig(uri=URI, points=64))
    assert type(plain) is type(open_corpus(URI, points=64))
    assert "poses" not in plain.identity


def test_poses_of_a_shape_stand_together_and_the_first_is_the_shape():
    plain, posed = open_corpus(URI, points=64), open_source(CorpusConfig(uri=URI, points=64, poses=3))
    assert len(posed) == 15
    assert [posed.id(index) for index in (3, 4, 5)] == [plain.id(1), f"{plain.id(1)}@pose1", f"{plain.id(1)}@pose2"]
    assert np.array_equal(posed[3].points, plain[1].points)
    assert [posed.label(index) for index in (3, 4, 5)] == [plain.label(1)] * 3
    assert posed[5].id == posed.id(5)
    assert len({posed.fingerprint(index) for index in range(15)}) == 15
    with pytest.raises(IndexError, match=r"15 is outside 0\.\.14"):
        posed.id(15)


def test_a_pose_is_a_stretch_within_the_range_and_never_changes():
    posed = open_source(CorpusConfig(uri=URI, points=64, poses=3))
    longer = open_source(CorpusConfig(uri="synthetic:?count=9&seed=3", points=64, poses=3))
    original, stretched = posed[6].points, posed[7].points
    factors = np.ptp(stretched, axis=0) / np.ptp(original, axis=0)
    assert np.all((factors >= STRETCH[0] - 1e-5) & (factors <= STRETCH[1] + 1e-5))
    assert not np.allclose(factors, factors[0])
    assert np.array_equal(stretched, longer[7].points)
    assert not np.allclose(stretched, posed[8].points)


def test_poses_are_part_of_the_recipe():
    def recipe(poses):
        source = open_source(CorpusConfig(uri=URI, points=64, poses=poses))
        return recipe_for(source, ProjectionConfig(), {"architecture": "x"}, CacheConfig(), points=64)

    assert len({recipe(poses).hash for poses in (1, 2, 3)}) == 3


def test_the_number_of_poses_is_checked():
    assert list(CorpusConfig(poses=0).problems()) == ["poses = 0 is outside 1..64"]
