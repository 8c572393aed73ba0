"""Runs with several teachers: caches joined by id, heads and losses of their own, and the promises of one teacher."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import teacher_cache
from teacher_cache.testing import make_recipe
from teacher_cache.writer import create_cache, write_shard
from tests.support.models import TINY
from tests.support.training import (
    MASKING,
    OTHER,
    clouds,
    second_cache,
    train,
    trainer_config,
    training_cache,
    weights_of,
)
from tests.trainer.test_mid_epoch import Stop, files, lines, stop_after
from trainer.checkpoints import files as checkpoint
from trainer.checkpoints.models import load_encoder, load_model
from trainer.checkpoints.reference.convert import export_reference
from trainer.config import AlignmentConfig, TeachersConfig
from trainer.engine.ranks import Ranks
from trainer.errors import CheckpointError, DataError
from trainer.losses.terms import weighted_sum
from trainer.models.build import new_student
from trainer.models.student import Further
from trainer.pretraining.alignment import Alignment
from trainer.pretraining.data import Loader
from trainer.pretraining.joined import JoinedCaches, join
from trainer.pretraining.step import Stepper, TeacherTargets

ON = AlignmentConfig(weight=0.7)
ALONE = Ranks(rank=0, size=1, device=torch.device("cpu"))
CPU = ALONE.device


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> teacher_cache.Cache:
    return training_cache(tmp_path_factory.mktemp("one") / "cache", class_token="float16")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> teacher_cache.Cache:
    return second_cache(tmp_path_factory.mktemp("two") / "cache")


def test_each_teacher_is_learnt_from_as_if_it_were_the_only_one(one: Any, two: Any) -> None:
    """Losses and gradients of a student with two teachers are the sum of those of two students with one each."""
    config = trainer_config(readers=0, weight_2d=0.3)
    (joined,) = join(one, [two], [(True, True)])
    both = Loader(one, TINY, config, ALONE, whole=True, further=[joined])
    (part,) = next(both.epoch(1))
    alone = Loader(joined.records, TINY, config, ALONE, whole=True)
    (same,) = next(alone.epoch(1))
    assert part.ids == same.ids
    assert torch.equal(part.points, same.points)

    sizes = {"channels": one.schema.channels, "views": one.schema.views}
    more = Further(OTHER.channels, OTHER.views, True, True)._asdict()
    model = new_student(TINY, MASKING, sizes | {"further": [more]}, seed=5, whole=True).train()
    first = new_student(TINY, MASKING, sizes, seed=5, whole=True).train()
    second = new_student(TINY, MASKING, {"channels": 5, "views": 3}, seed=5, whole=True).train()
    own = model.state_dict()
    first.load_state_dict({name: value for name, value in own.items() if not name.startswith("further_heads")})
    second.load_state_dict({name: own.get(f"further_heads.0.{name}", own[name]) for name in second.state_dict()})
    targets = [Alignment.of_cache(ON, cache, seed=0, device=CPU, skip_damaged=False) for cache in (one, joined.records)]
    # The first's saliency masks in all of them.
    same = same._replace(maps=same.maps._replace(saliency=part.maps.saliency.new_zeros(same.maps.saliency.shape)))
    part = part._replace(maps=part.maps._replace(saliency=torch.zeros_like(part.maps.saliency)))

    found = {}
    for name, student, seen, alignment, further in (
        ("both", model, part, targets[0], [TeacherTargets(1.5, targets[1], 2.0, 0.5)]),
        ("first", first, part._replace(further=()), targets[0], []),
        ("second", second, same, targets[1], []),
    ):
        factors = (2.0, 0.5) if name == "second" else (1.0, 1.0)
        stands_for = 1.5 if name == "second" else 1.0
        stepper = Stepper(
            student, config, ALONE, None, stands_for=stands_for, alignment=alignment, factors=factors, further=further
        )
        stepper.updates.take = lambda rate: torch.zeros(())  # type: ignore[method-assign]
        losses = stepper.step([seen], 0.0).losses
        gradients = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
        found[name] = losses, gradients
    losses, gradients = found["both"]
    assert set(losses) == {"3d", "2d", "global", "2d_2", "global_2"}
    for ours, (name, theirs) in {
        "3d": ("first", "3d"), "2d": ("first", "2d"), "global": ("first", "global"),
        "2d_2": ("second", "2d"), "global_2": ("second", "global"),
    }.items():  # fmt: skip
        assert losses[ours] == pytest.approx(found[name][0][theirs], rel=1e-5), ours
    # The 3D loss is in both of the students with one teacher.
    plain = new_student(replace(TINY, targets="3d"), MASKING, sizes, seed=5).train()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    plan = plain.plan(part.points, part.points_canonical, part.maps, part.draws)
    weighted_sum(plain.losses(plan, plain.network(plan, part.draws.drop_path))).backward()
    only_3d = {name: value.grad for name, value in plain.named_parameters()}
    shared = [name for name in gradients if name in found["second"][1] and not name.startswith(("rec_", "align"))]
    assert len(shared) > 20
    scale = max(value.norm() for value in gradients.values())
    for name in shared:
        rest = only_3d[name] if only_3d[name] is not None else 0
        expected = found["first"][1][name] + found["second"][1][name] - rest
        assert (gradients[name] - expected).norm() < 2e-5 * scale + 1e-4 * expected.norm(), name
    for name, value in found["second"][1].items():
        if name.startswith(("rec_head_2d", "align_head")):
            torch.testing.assert_close(gradients[f"further_heads.0.{name}"], value, rtol=1e-4, atol=1e-6)


def test_the_order_of_a_further_cache_and_what_else_it_holds_change_nothing(one: Any, two: Any, tmp_path: Path) -> None:
    other = second_cache(tmp_path / "plain", more=0, order=0, shapes_per_shard=24)
    negatives = {"alignment": replace(ON, negatives=9)}
    mixed = train(one, tmp_path / "mixed", further=[two], **negatives)
    plain = train(one, tmp_path / "in-order", further=[other], readers=0, **negatives)
    assert weights_of(mixed) == weights_of(plain)
    assert mixed.metrics == plain.metrics


@pytest.mark.parametrize("step", [2, 5])
def test_a_run_that_stopped_ends_with_the_same_bytes(one: Any, two: Any, tmp_path: Path, step: int) -> None:
    chosen: dict[str, Any] = {"alignment": ON, "further": [two], "checkpoint_steps": 1, "accumulation": 2}
    chosen["teachers"] = TeachersConfig(weights_2d=(1.0, 0.1))
    whole = train(one, tmp_path / "whole", **chosen)
    with pytest.raises(Stop):
        train(one, tmp_path / "pieces", **chosen, on_event=stop_after(step))
    pieces = train(one, tmp_path / "pieces", **chosen)
    assert files(pieces.checkpoint) == files(whole.checkpoint)
    kept = [lines(tmp_path / name, "step", "epoch") for name in ("whole", "pieces")]
    assert kept[0] == kept[1]
    assert set(whole.metrics) == {
        "loss_3d", "loss_2d", "loss_global", "loss_2d_2", "loss_global_2", "learning_rate",
    }  # fmt: skip
    assert lines(tmp_path / "whole", "start")[0]["global_target"] == "class token; class token"


def test_a_checkpoint_names_every_cache_and_a_run_goes_on_with_no_other(one: Any, two: Any, tmp_path: Path) -> None:
    report = train(one, tmp_path / "run", epochs=1, alignment=ON, further=[two])
    header = checkpoint.read_header(report.checkpoint)
    assert header.cache == {"recipe": one.recipe.hash, "records": 24, "further": [{"recipe": two.recipe.hash}]}
    heads = {"channels": 5, "views": 3, "features": True, "whole": True}
    assert header.teacher == {"channels": 6, "views": 3, "further": [heads]}
    assert header.config["teachers"] == {"weights_2d": [1.0, 1.0], "weights_global": [1.0, 1.0]}
    other = second_cache(tmp_path / "other", compression="none")
    for given, said in (
        ({"further": [other]}, r"cache\.further was \[\{'recipe': '\w+'\}\], is now"),
        ({}, r"cache\.further was .* is now absent"),
        ({"further": [two], "teachers": TeachersConfig(weights_2d=(1, 2))}, r"teachers\.weights_2d was \[1\.0, 1\.0\]"),
    ):
        with pytest.raises(CheckpointError, match=said):
            train(one, tmp_path / "run", alignment=ON, **given)
    # Spelt out, the same factors are the same run; and its model loads, encodes and is exported without the heads.
    train(one, tmp_path / "run", alignment=ON, further=[two], teachers=TeachersConfig(weights_global=(1.0, 1.0)))
    model, _ = load_model(tmp_path / "run")
    assert [name for name in model.state_dict() if "further_heads.0.align_head" in name]
    assert load_encoder(tmp_path / "run").encode(torch.rand(2, 96, 3)).shape == (2, 3 * sum(TINY.encoder_dims))
    done = export_reference(tmp_path / "run", tmp_path / "out.pth")
    state = torch.load(tmp_path / "out.pth", weights_only=True)["base_model"]
    assert not [name for name in state if "further" in name or "align" in name]
    assert any("the heads for further teachers" in note for note in done.notes)


def test_a_further_teacher_leaves_the_first_weights_and_one_teacher_leaves_no_trace(one: Any, tmp_path: Path) -> None:
    sizes = {"channels": 6, "views": 3}
    more = Further(5, 3, True, True)._asdict()
    alone = new_student(TINY, MASKING, sizes, seed=3, whole=True).state_dict()
    both = new_student(TINY, MASKING, sizes | {"further": [more, more]}, seed=3, whole=True).state_dict()
    assert all(torch.equal(both[name], value) for name, value in alone.items())
    assert {name.split(".")[0] for name in set(both) - set(alone)} == {"further_heads"}
    report = train(one, tmp_path / "run", epochs=1, teachers=TeachersConfig(weights_2d=(1.0,)))
    header = checkpoint.read_header(report.checkpoint)
    assert "teachers" not in header.config
    assert set(header.teacher) == {"channels", "views"}
    halved = train(one, tmp_path / "half", epochs=1, teachers=TeachersConfig(weights_2d=(0.5,)))
    assert weights_of(halved) == weights_of(train(one, tmp_path / "same", epochs=1, weight_2d=0.5))


def test_a_loss_of_factor_nothing_is_left_out_and_only_class_tokens_are_read(one: Any, tmp_path: Path) -> None:
    def made_of(path: Path, cache: Any, of: str = "a") -> Any:
        """The same cache again, whose receipts say what each shape was made from."""
        config = teacher_cache.CacheConfig(depth="none", shapes_per_shard=8, class_token="float16")
        recipe = replace(make_recipe(config), teacher=cache.recipe.teacher)
        writer = create_cache(path, recipe, cache.schema, config)
        for shard in range(3):
            records = [cache[i] for i in range(8 * shard, 8 * shard + 8)]
            write_shard(writer.handle, shard, records, shapes=[(record.id, 64 * of) for record in records])
        writer.finish(planned=24)
        return teacher_cache.open(path)

    first = made_of(tmp_path / "first", one)
    second = made_of(tmp_path / "second", second_cache(tmp_path / "plain", more=0, order=0))
    chosen = {"epochs": 1, "alignment": ON, "teachers": TeachersConfig(weights_2d=(1, 0))}
    whole = train(first, tmp_path / "whole", further=[second], **chosen)
    assert set(whole.metrics) == {"loss_3d", "loss_2d", "loss_global", "loss_global_2", "learning_rate"}
    for file in (tmp_path / "second" / "features").glob("c.*"):
        file.unlink()  # not needed
    again = train(first, tmp_path / "again", further=[teacher_cache.open(tmp_path / "second")], **chosen)
    assert weights_of(again) == weights_of(whole)
    # Without a word on what shapes were made from, their points are compared, and so the records read.
    with pytest.raises(teacher_cache.ShardDamaged):
        train(one, tmp_path / "unknown", further=[teacher_cache.open(tmp_path / "second")], **chosen)
    other = made_of(tmp_path / "third", second_cache(tmp_path / "plain-too", more=0, order=0), of="b")
    with pytest.raises(DataError, match=r"has 24 shapes made from other data than in .*'shape-0000'"):
        train(first, tmp_path / "changed", further=[other], **chosen)
    neither = {"teachers": TeachersConfig(weights_2d=(1, 0), weights_global=(1, 0)), "further": [second]}
    silent = train(first, tmp_path / "neither", **chosen | neither)
    alone = train(first, tmp_path / "alone", **chosen | {"teachers": None})
    assert weights_of(silent) == weights_of(alone)


def test_caches_that_do_not_hold_the_same_are_refused_by_name(one: Any, two: Any, tmp_path: Path) -> None:
    few = second_cache(tmp_path / "few", first=2)
    with pytest.raises(DataError, match=r"few lacks 2 of the 24 records of .*: 'shape-0000', 'shape-0001'\."):
        train(one, tmp_path / "run", further=[few])
    moved = clouds(24)
    moved[20, 3, 1] += 1e-6
    other = second_cache(tmp_path / "moved", shapes=moved, teacher="third")
    with pytest.raises(DataError, match="has other points of 'shape-0020' than the first teacher's cache"):
        train(one, tmp_path / "run", epochs=1, further=[two, other])
    config = teacher_cache.CacheConfig(depth="none")
    recipe = make_recipe(config)
    recipe = replace(recipe, corpus={**recipe.corpus, "points": 77}, teacher={"architecture": "third"})
    writer = create_cache(tmp_path / "sampled", recipe, OTHER, config)
    write_shard(writer.handle, 0, [two[0]])
    writer.finish(planned=1)
    with pytest.raises(DataError, match=r"recipes of their corpora differ:\n  corpus\.points: .* 77 there"):
        train(one, tmp_path / "run", further=[teacher_cache.open(tmp_path / "sampled")])
    with pytest.raises(DataError, match="is the cache of a teacher that was already given"):
        train(one, tmp_path / "run", further=[two, second_cache(tmp_path / "copy")])
    with pytest.raises(ValueError, match=r"teachers\.weights_2d = \(1, 2, 3\) has 3 factors for 2 teachers"):
        train(one, tmp_path / "run", further=[two], teachers=TeachersConfig(weights_2d=(1, 2, 3)))
    with pytest.raises(ValueError, match=r'teacher = "live" with several teachers'):
        train(one, tmp_path / "run", further=[two], teacher=lambda points: None)
    assert list(TeachersConfig(weights_2d=(-1.0,), caches=("",)).problems()) == [
        "weights_2d = (-1.0,) has -1.0, which is negative", "caches = ('',) has an empty name",
    ]  # fmt: skip


def test_a_record_damaged_in_a_further_cache_is_left_out_in_all(one: Any, tmp_path: Path) -> None:
    second_cache(tmp_path / "two", more=0, order=0, shapes_per_shard=8)
    (tmp_path / "two" / "features" / "c.1.0.0.0").unlink()
    broken = teacher_cache.open(tmp_path / "two")
    with pytest.raises(teacher_cache.ShardDamaged):
        train(one, tmp_path / "run", epochs=1, further=[broken])
    report = train(one, tmp_path / "run", epochs=1, further=[broken], damaged="skip", alignment=ON)
    assert report.metrics["skipped"] == 8
    start = lines(tmp_path / "run", "start")[0]
    assert start["records"] == 24


def test_a_selection_and_poses_are_joined_record_by_record(one: Any, two: Any) -> None:
    chosen = teacher_cache.select(one, [one.ids[i] for i in (3, 4, 11, 19, 23)])
    (joined,) = join(chosen, [two], [(True, False)])
    assert joined.records.ids == chosen.ids
    batch = JoinedCaches(chosen, [joined]).read(np.array([4, 0, 2]))
    (said,) = batch.further
    assert isinstance(said, teacher_cache.RecordBatch)
    assert said.ids == batch.ids == [chosen.ids[i] for i in (4, 0, 2)]
    for row, id in enumerate(said.ids):
        np.testing.assert_array_equal(said.features[row], two[two.ids.index(id)].features)


def test_the_batch_of_a_loss_that_is_not_finite_is_saved_with_every_teacher(one: Any, two: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from trainer.errors import TrainingError

    with pytest.raises(TrainingError, match="loss_2d_2"):
        train(one, tmp_path / "run", further=[two], alignment=ON, learning_rate=1e30, warmup_epochs=0)
    saved = load_file(tmp_path / "run" / "failure" / "rank0.safetensors")
    assert saved["0/teacher-2/features"].shape == (8, *OTHER.shapes["features"])
    assert saved["0/teacher-2/whole"].shape == (8, *OTHER.class_shape)
    assert json.loads((tmp_path / "run" / "failure" / "rank0.json").read_text())["ids"]
