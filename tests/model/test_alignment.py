"""The global loss, by hand and against a slow definition in float64, at sizes that all differ."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cuda.project import project
from cuda.untouched import untouched_tokens
from teacher_cache import RecordBatch
from tests.support.models import tiny_batch, tiny_model
from tests.support.ranks import WORLD, on_two_ranks
from tests.support.training import SCHEMA, training_cache
from trainer.config import AlignmentConfig
from trainer.engine.ranks import Ranks
from trainer.losses.alignment import Candidates, alignment_sum, targets
from trainer.models.hierarchical.student import I2PMAE
from trainer.models.layers.alignment_head import AlignmentHead
from trainer.models.random_inputs import Draws
from trainer.pretraining.alignment import Alignment, wholes_of

B, V, C, TEMPERATURE = 7, 3, 5, 0.3
CPU = torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def candidates(wholes: torch.Tensor, mean: torch.Tensor, shapes: list[int] | None = None) -> Candidates:
    values, known = targets(wholes, mean)
    return Candidates(values, known, torch.arange(len(wholes)) if shapes is None else torch.tensor(shapes))


def plain_targets(wholes: np.ndarray, mean: np.ndarray) -> list[np.ndarray]:
    rows = []
    for shape in wholes.astype(np.float64):
        views = [view - middle for view, middle in zip(shape, mean.astype(np.float64), strict=True)]
        row = np.concatenate([view / np.sqrt((view**2).sum()) for view in views])
        rows.append(row / np.sqrt((row**2).sum()))
    return rows


def plain_sum(answers: np.ndarray, own: list[np.ndarray], others: list[list[np.ndarray]]) -> float:
    """others: the negatives of each row."""
    total = 0.0
    for z, t, negatives in zip(answers.astype(np.float64), own, others, strict=True):
        z = z / np.sqrt((z**2).sum())
        right = math.exp(z @ t / TEMPERATURE)
        total -= math.log(right / (right + sum(math.exp(z @ n / TEMPERATURE) for n in negatives)))
    return total


def test_the_loss_is_that_of_the_definition():
    wholes, mean, answers = drawn(B, V, C), drawn(V, C, seed=1), 3 * drawn(B, V * C, seed=2)
    own = candidates(wholes, mean)
    rows = plain_targets(wholes.numpy(), mean.numpy())
    np.testing.assert_allclose(own.targets.numpy(), np.stack(rows), atol=1e-6)
    expected = plain_sum(answers.numpy(), rows, [rows[:i] + rows[i + 1 :] for i in range(B)])
    assert alignment_sum(answers, own, own, TEMPERATURE).item() == pytest.approx(expected, rel=1e-5)
    fixed = candidates(drawn(11, V, C, seed=3), mean, list(range(100, 111)))
    sample = plain_targets(drawn(11, V, C, seed=3).numpy(), mean.numpy())
    expected = plain_sum(answers.numpy(), rows, [sample] * B)
    assert alignment_sum(answers, own, fixed, TEMPERATURE).item() == pytest.approx(expected, rel=1e-5)


def test_views_are_contrasted_each_on_its_own():
    """Every view with the same view of the other shapes; one that equals the mean has no target, and is none."""
    wholes, mean, answers = drawn(B, V, C), drawn(V, C, seed=1), drawn(B, V * C, seed=2)
    wholes[3, 1] = mean[1]
    wholes[5, 2] = wholes[0, 2]
    own = candidates(wholes, mean)
    expected = 0.0
    for v in range(V):
        known = [i for i in range(B) if (i, v) != (3, 1)]
        rows = {i: plain_targets(wholes[i : i + 1, v : v + 1].numpy(), mean[v : v + 1].numpy())[0] for i in known}
        same = {(0, 5), (5, 0)} if v == 2 else set()
        others = [[rows[j] for j in known if j != i and (i, j) not in same] for i in known]
        expected += plain_sum(answers[known, v * C : (v + 1) * C].numpy(), [rows[i] for i in known], others) / V
    found = alignment_sum(answers, own, own, TEMPERATURE, parts=V)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    halves = [Candidates(*(one[rows] for one in own)) for rows in torch.arange(B).split(3)]
    parts = zip(answers.split(3), halves, strict=True)
    again = sum(alignment_sum(answer, half, own, TEMPERATURE, parts=V) for answer, half in parts)
    torch.testing.assert_close(again, found)


def test_two_shapes_by_hand():
    """Right angles: the own cosine is 1, the other 0."""
    values = torch.eye(2, 4)
    own = Candidates(values, torch.ones(2, dtype=torch.bool), torch.arange(2))
    expected = 2 * math.log(1 + math.exp(-1))
    assert alignment_sum(5 * values, own, own, 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_duplicates_of_a_shape_are_no_negatives_of_each_other():
    wholes, mean = drawn(B, V, C), drawn(V, C, seed=1)
    wholes[4] = wholes[1]
    wholes[6] = wholes[1] * (1 + 2e-7)
    answers = drawn(B, V * C, seed=2)
    own = candidates(wholes, mean)
    rows = plain_targets(wholes.numpy(), mean.numpy())
    twins = {1, 4, 6}
    others = [[rows[j] for j in range(B) if j != i and not {i, j} <= twins] for i in range(B)]
    expected = plain_sum(answers.numpy(), rows, others)
    assert alignment_sum(answers, own, own, TEMPERATURE).item() == pytest.approx(expected, rel=1e-5)
    assert sum(map(len, others)) == B * (B - 1) - 6


def test_poses_of_one_shape_are_no_negatives_of_each_other():
    wholes, mean, answers = drawn(3, V, C), drawn(V, C, seed=1), drawn(3, V * C, seed=2)
    own = candidates(wholes, mean, [8, 9, 8])
    rows = plain_targets(wholes.numpy(), mean.numpy())
    expected = plain_sum(answers.numpy(), rows, [[rows[1]], [rows[0], rows[2]], [rows[1]]])
    assert alignment_sum(answers, own, own, TEMPERATURE).item() == pytest.approx(expected, rel=1e-5)


def test_what_is_nothing_beside_the_mean_is_neither_target_nor_negative():
    wholes, mean = 1 + drawn(4, V, C), 1 + drawn(V, C, seed=1)
    wholes[2] = mean * (1 + 1e-7)
    wholes[3, 0] = mean[0]  # one view only: the others make its target
    own = candidates(wholes, mean)
    assert own.known.tolist() == [True, True, False, True]
    assert own.targets[2].abs().max() == 0
    torch.testing.assert_close(torch.linalg.vector_norm(own.targets, dim=1), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    answers = drawn(4, V * C, seed=2).requires_grad_()
    loss = alignment_sum(answers, own, own, TEMPERATURE)
    rows = own.targets.numpy()
    known = [0, 1, 3]
    others = [[rows[other] for other in known if other != one] for one in known]
    assert loss.item() == pytest.approx(plain_sum(answers.detach().numpy()[known], rows[known], others), rel=1e-5)
    loss.backward()
    assert answers.grad is not None
    assert answers.grad[2].abs().max() == 0
    assert answers.grad[[0, 1, 3]].abs().amax(1).min() > 0
    alike = candidates(mean.expand(3, V, C).clone(), mean)
    assert alignment_sum(drawn(3, V * C), alike, alike, TEMPERATURE).item() == 0.0


def test_a_batch_of_one_loses_nothing_unless_there_is_a_sample():
    mean = drawn(V, C, seed=1)
    own = candidates(drawn(1, V, C), mean)
    answers = drawn(1, V * C, seed=2).requires_grad_()
    loss = alignment_sum(answers, own, own, TEMPERATURE)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert answers.grad is not None
    assert answers.grad.abs().max() < 1e-6
    others = candidates(drawn(4, V, C, seed=3), mean, [0, 5, 6, 7])  # of which the first is the shape itself
    rows = plain_targets(drawn(4, V, C, seed=3).numpy(), mean.numpy())
    expected = plain_sum(answers.detach().numpy(), plain_targets(drawn(1, V, C).numpy(), mean.numpy()), [rows[1:]])
    assert alignment_sum(answers, own, others, TEMPERATURE).item() == pytest.approx(expected, rel=1e-5)


def test_autocast_does_not_reach_the_cosines():
    wholes, mean, answers = drawn(B, V, C), drawn(V, C, seed=1), drawn(B, V * C, seed=2)
    own = candidates(wholes, mean)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = alignment_sum(answers, own, own, TEMPERATURE)
    assert torch.equal(found, alignment_sum(answers, own, own, TEMPERATURE))


def test_the_head_sees_the_visible_top_tokens_and_no_padding():
    head = AlignmentHead(4, 6)
    tokens = drawn(2, 5, 4)
    valid = torch.tensor([[True] * 5, [True, True, False, False, False]])
    tokens[1, 2:] = torch.nan
    found = head(tokens, valid)
    pooled = torch.stack([torch.cat((x.amax(0), x.mean(0))) for x in (tokens[0], tokens[1, :2])])
    expected = head[2](torch.nn.functional.gelu(head[0](pooled)))
    torch.testing.assert_close(found, expected)


def test_the_head_changes_no_other_first_weight_and_only_exists_where_it_is_wanted():
    without = tiny_model()
    with_head = I2PMAE(without.config, without.masking, teacher_channels=without.teacher_channels, whole=True)
    with_head.initialise(torch.Generator().manual_seed(0))
    own, other = with_head.state_dict(), without.state_dict()
    added = [name for name in own if name not in other]
    assert added == [f"align_head.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    assert all(torch.equal(own[name], value) for name, value in other.items())


@pytest.mark.parametrize("layout", ["packed", "static"])
def test_a_shapes_answer_does_not_depend_on_its_company(layout):
    points, maps = tiny_batch()
    base = tiny_model(layout=layout)
    model = I2PMAE(base.config, base.masking, teacher_channels=base.teacher_channels, whole=True).eval()
    draws = Draws.for_records(range(4), model.config, seed=0, epoch=0)

    def answers(rows: list[int]) -> torch.Tensor:
        geometry = type(maps.geometry)(*(x[rows] for x in maps.geometry))
        some = maps._replace(features=maps.features[rows], saliency=maps.saliency[rows], geometry=geometry)
        chosen = Draws(draws.mask[rows], draws.drop_path[rows])
        with torch.no_grad():
            found = model.network(model.plan(points[rows], points[rows], some, chosen), None).whole
        assert found is not None
        return found

    torch.testing.assert_close(answers([0, 1, 2, 3]), torch.cat([answers([b]) for b in range(4)]), rtol=1e-5, atol=1e-6)


def two_ranks_targets(rank: int) -> list[torch.Tensor]:
    wholes, mean = drawn(6, V, C), drawn(V, C, seed=1)
    mean[0] = wholes[3, 0]
    share = slice(3 * rank, 3 * rank + 3)
    alignment = Alignment(AlignmentConfig(weight=1.0), mean, None, "")
    own = alignment.candidates(wholes[share], torch.arange(6)[share])
    others = alignment.others(own, Ranks(rank=rank, size=WORLD, device=CPU))
    return [*others, alignment_sum(drawn(6, V * C, seed=2)[share], own, others, TEMPERATURE)]


def test_ranks_see_each_others_targets_and_add_up_to_one(tmp_path):
    one, two = on_two_ranks(two_ranks_targets, tmp_path)
    wholes, mean = drawn(6, V, C), drawn(V, C, seed=1)
    mean[0] = wholes[3, 0]
    whole = candidates(wholes, mean)
    for found in (one, two):
        assert all(map(torch.equal, found[:3], whole))
    expected = alignment_sum(drawn(6, V * C, seed=2), whole, whole, TEMPERATURE)
    torch.testing.assert_close(one[3] + two[3], expected, rtol=1e-6, atol=0)


def test_class_tokens_of_the_cache_and_what_stands_in_for_them(tmp_path, caplog):
    plain = training_cache(tmp_path / "plain", 10)
    stored = training_cache(tmp_path / "stored", 10, class_token="float16")
    config = AlignmentConfig(weight=1.0)
    found = Alignment.of_cache(config, stored, seed=0, device=CPU, skip_damaged=False)
    assert (found.source, found.fixed) == ("class token", None)
    expected = np.mean([record.class_token.astype(np.float64) for record in stored], axis=0)
    np.testing.assert_allclose(found.mean.numpy(), expected, rtol=1e-6)
    assert not caplog.records
    stand_in = Alignment.of_cache(config, plain, seed=0, device=CPU, skip_damaged=False)
    assert stand_in.source == "mean of the patch features that lookups read"
    assert (
        "has no class tokens, so the global loss uses the mean of the patch features that lookups read" in caplog.text
    )
    record, batch = plain[4], plain.read([4])
    np.testing.assert_array_equal(wholes_of(batch, SCHEMA.image_side, SCHEMA.patch_side)[0].shape, (3, SCHEMA.channels))
    assert record.class_token is None


def test_only_patches_that_lookups_read_stand_in(tmp_path):
    points = drawn(2, 6, 3).contiguous()
    _, geometry = project(points, image_side=128)
    off = untouched_tokens(points.numpy(), geometry, image_side=128, side=16)
    assert off.any(axis=2).all()
    features = drawn(2, 3, 256, C, seed=1).numpy()
    lo, cell, offset = (part.numpy() for part in geometry)
    batch = RecordBatch(
        ids=["a", "b"], label=np.zeros(2, np.int64), points=points.numpy(), lo=lo, cell=cell, offset=offset,
        features=features, saliency=np.zeros((2, 3, 256), np.float32),
    )  # fmt: skip
    means = wholes_of(batch, 128, 8)
    for shape in range(2):
        for view in range(3):
            wanted = features[shape, view][~off[shape, view]].astype(np.float64).mean(0)
            np.testing.assert_allclose(means[shape, view], wanted, rtol=1e-5, atol=1e-6)
    features[off] = 0
    np.testing.assert_array_equal(wholes_of(batch, 128, 8), means)


class Posed:
    """A cache as one of 3 poses a shape."""

    poses, stores_class = 3, True

    def __init__(self, cache):
        self.class_tokens, self.schema, self.read = cache.class_tokens, cache.schema, cache.read

    def __len__(self):
        return 24


def test_a_fixed_sample_follows_from_the_seed_and_holds_shapes_not_poses(tmp_path):
    stored = training_cache(tmp_path / "c", 24, class_token="float16")
    cache = Posed(stored)
    config = AlignmentConfig(weight=1.0, negatives=5)
    one, same, other = (
        Alignment.of_cache(config, cache, seed=seed, device=CPU, skip_damaged=False) for seed in (1, 1, 2)
    )
    assert all(map(torch.equal, one.fixed, same.fixed))
    assert one.fixed.targets.shape == (5, 3 * SCHEMA.channels)
    assert len(set(one.fixed.shapes.tolist())) == 5
    assert set(one.fixed.shapes.tolist()) <= set(range(8))
    assert one.fixed.shapes.tolist() != other.fixed.shapes.tolist()
    at = one.fixed.shapes.tolist()[2]
    row, _ = targets(torch.from_numpy(stored.class_tokens([3 * at]).astype(np.float32)), one.mean)
    torch.testing.assert_close(one.fixed.targets[2:3], row)
    everything = Alignment.of_cache(replace(config, negatives=99), cache, seed=1, device=CPU, skip_damaged=False)
    assert everything.fixed.shapes.tolist() == list(range(8))
