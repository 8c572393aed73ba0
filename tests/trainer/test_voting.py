"""Votes: what is averaged, what is drawn, and that the largest round is called the largest."""

import numpy as np
import pytest

from cuda.fps import farthest_point_sample
from tests.support.training import clouds
from trainer.downstream.voting import VoteConfig, pool_of, vote
from trainer.errors import EvaluationError

LABELS = np.arange(12) % 3


def spread_logits(points):
    """Logits that depend on the points: coordinates' deviations, which augmentation moves."""
    return (points.std(axis=1) * 7).astype(np.float32)


def spying(seen, answer=spread_logits):
    def logits(points):
        seen.append(points)
        return answer(points)

    return logits


def test_pools_are_the_fields():
    assert [pool_of(points, 8192) for points in (512, 1024, 2048, 4096, 8192)] == [1200, 1200, 2400, 4800, 8192]
    assert pool_of(1024, 1100) == 1100
    assert pool_of(2048, 2048) == 2048


def test_a_vote_of_one_draw_without_augmentation_is_a_permuted_test_where_all_points_are_drawn():
    points = clouds(12, points=64)
    seen = []
    config = VoteConfig(points=64, draws=1, rounds=1, scale=(1, 1), shift=0, batch_size=12)
    found = vote(spying(seen), points, LABELS, config)
    plain, drawn = seen
    assert not np.array_equal(plain, drawn)
    assert np.array_equal(np.sort(plain, axis=1), np.sort(drawn, axis=1))  # axis by axis: the same values
    assert found.rounds == (found.plain,)
    assert (found.mean, found.spread, found.best_of_rounds, found.together) == (
        found.plain,
        0.0,
        found.plain,
        found.plain,
    )


def test_plain_is_the_farthest_points_in_their_order():
    import torch

    points, seen = clouds(12, points=100), []
    vote(spying(seen), points, LABELS, VoteConfig(points=32, draws=1, rounds=1, batch_size=12))
    chosen = farthest_point_sample(torch.from_numpy(points), 32).numpy()
    assert np.array_equal(seen[0], np.take_along_axis(points, chosen[:, :, None], axis=1))


def test_logits_are_averaged_and_not_probabilities():
    """One draw is sure and wrong, two are hardly right: their logits say wrong, their probabilities would say right."""
    answers = iter([[0, 0], [9, 0], [0, 1], [0, 1]])

    def logits(points):
        return np.tile(np.array(next(answers), np.float32), (len(points), 1))

    found = vote(logits, clouds(3, points=40), np.ones(3, int), VoteConfig(points=32, draws=3, rounds=1, batch_size=3))
    assert found.rounds == (0.0,)


def test_rounds_are_told_by_mean_spread_and_the_largest():
    points = clouds(12, points=64)
    found = vote(spread_logits, points, LABELS, VoteConfig(points=32, pool=40, draws=2, rounds=5))
    assert len(found.rounds) == 5
    assert len(set(found.rounds)) > 1
    assert found.mean == pytest.approx(np.mean(found.rounds))
    assert found.spread == pytest.approx(np.std(found.rounds, ddof=1))
    assert found.best_of_rounds == max(found.rounds) > found.mean
    assert (found.shapes, found.step) == (12, 1 / 12)
    assert found.to_json()["rounds"] == list(found.rounds)


def test_the_same_seed_votes_the_same_whatever_the_batch():
    points = clouds(12, points=64)
    config = {"points": 32, "draws": 2, "rounds": 3}
    first = vote(spread_logits, points, LABELS, VoteConfig(**config, batch_size=12))
    assert first == vote(spread_logits, points, LABELS, VoteConfig(**config, batch_size=5))
    assert first != vote(spread_logits, points, LABELS, VoteConfig(**config, seed=1))


def test_a_batch_can_share_its_ranks():
    points, heard = clouds(12, points=64), []
    same = np.repeat(points[:1], 4, axis=0)
    for sharing, alike in (("cloud", False), ("batch", True)):
        seen = []
        config = VoteConfig(points=16, draws=1, rounds=1, scale=(1, 1), shift=0, sharing=sharing)
        vote(spying(seen), same, LABELS[:4], config, progress=heard.append)
        assert all(np.array_equal(seen[1][0], other) for other in seen[1][1:]) is alike
    assert heard == [4, 4, 4, 4]


def test_draws_are_turned_as_the_classifier_was_trained():
    points, seen = clouds(12, points=64), {}
    for rotation in ("none", "cloud", "batch"):
        config = VoteConfig(
            points=64, draws=1, rounds=1, scale=(1, 1), shift=0, rotation=rotation, up="y", batch_size=6
        )
        seen[rotation] = []
        vote(spying(seen[rotation]), points, LABELS, config)
    still = seen["none"][2]  # after two batches without a vote
    for rotation, alike in (("cloud", False), ("batch", True)):
        turned = seen[rotation][2]
        assert np.array_equal(turned[..., 1], still[..., 1])
        angle = np.arctan2(turned[..., 0], turned[..., 2]) - np.arctan2(still[..., 0], still[..., 2])
        assert np.abs(np.exp(1j * angle) - np.exp(1j * angle[:, :1])).max() < 1e-3  # one a cloud
        assert (np.abs(np.exp(1j * angle[:, 0]) - np.exp(1j * angle[0, 0])).max() < 1e-3) == alike
        assert np.abs(turned - still).max() > 0.1


def test_what_cannot_be_voted_on_is_refused():
    points = clouds(12, points=64)
    with pytest.raises(EvaluationError, match="clouds have 64 points; a vote needs 1024"):
        vote(spread_logits, points, LABELS, VoteConfig())
    with pytest.raises(ValueError, match=r"rounds = 0 is smaller than 1; pool = 3 is less than points = 32"):
        vote(spread_logits, points, LABELS, VoteConfig(points=32, pool=3, rounds=0))
    with pytest.raises(EvaluationError, match="logits are not finite"):
        vote(lambda x: np.full((len(x), 3), np.nan), points, LABELS, VoteConfig(points=32))
