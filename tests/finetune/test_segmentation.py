"""Part segmentation: parts stay with their points, steps are the field's, scores are by hand, stopped runs go on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.parity.quantities import gradient_norms
from benchmarks.parity.recorded import Recorded
from cli.actions.finetuning import PARTS, load_recipe, recipe_names, reference_settings
from tests.support.finetune import TINY_HEAD, recorded_segmenter, tiny_sizes
from tests.support.models import tiny_model
from tests.support.ranks import on_two_ranks
from tests.support.reference import reference_arrays, shared_dir
from trainer.checkpoints.files import read_header, read_tensors
from trainer.checkpoints.models import load_fine_tuned
from trainer.downstream.features import part_scores_of
from trainer.downstream.finetuning.batches import Batch, batches, sampled
from trainer.downstream.finetuning.config import SegmentConfig
from trainer.downstream.finetuning.loop import read_sets, segment
from trainer.downstream.finetuning.tasks import Parts
from trainer.engine.events import EpochDone, StepDone
from trainer.engine.ranks import Ranks
from trainer.engine.schedule import learning_rate
from trainer.engine.update import Updates
from trainer.errors import EvaluationError
from trainer.models.heads.config import SegmentationConfig
from trainer.randomness import Purpose

NAMES = ("Ball", "Box")
PART_NAMES = ("Ball/left", "Ball/right", "Ball/none", "Box/top", "Box/bottom")
HEAD = SegmentationConfig(
    parts=5, categories=2, embedding=4, propagation=(16, 12), hidden=(16, 12, 8), dropout=0.1, **TINY_HEAD
)
CPU = Ranks(rank=0, size=1, device=torch.device("cpu"))


def parted(count, seed, points=70):
    """Balls with a left and a right part, boxes with a top and a bottom: a point's part follows from its sign."""
    rng = np.random.default_rng(seed)
    cloud = rng.standard_normal((count, points, 3))
    cloud /= np.linalg.norm(cloud, axis=2, keepdims=True)
    label = np.arange(count) % 3 // 2  # two balls a box
    cloud[label == 1] /= np.abs(cloud[label == 1]).max(axis=2, keepdims=True)
    part = np.where(label[:, None] == 0, (cloud[..., 0] > 0).astype(int), 3 + (cloud[..., 2] > 0))
    return cloud.astype("f4"), label, part


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    path = tmp_path_factory.mktemp("parts") / "set.npz"
    cloud, label, part = parted(45, seed=3)
    split = np.array(["train"] * 30 + ["test"] * 15)
    np.savez(path, points=cloud, label=label, label_names=np.array(NAMES), split=split, part=part,
             part_names=np.array(PART_NAMES))  # fmt: skip
    return path


def config(path, **settings):
    small = {
        "train": f"npz:{path}?split=train", "test": f"npz:{path}?split=test", "epochs": 4, "warmup_epochs": 1,
        "batch_size": 6, "stored_points": 70, "points": 52, "drop_path": 0.0, "tensorboard": False, "device": "cpu",
        "learning_rate": 5e-3, "frame": "stored",
    }  # fmt: skip
    return SegmentConfig(**{**small, **settings})


def run(path, run_dir, *, start=None, on_event=None, head=HEAD, **settings):
    asked = config(path, **settings)
    return segment(read_sets(asked), run_dir, model=tiny_sizes(), segmentation=head, config=asked, start=start,
                   source="the start", on_event=on_event)  # fmt: skip


def by_hand(predicted, truth, label):
    """Instance and class mIoU, set by set: another way than trainer.downstream.metrics goes."""
    of_shape = []
    for found, true, category in zip(predicted.tolist(), truth.tolist(), label.tolist(), strict=True):
        ious = []
        for part in ((0, 1, 2), (3, 4))[category]:
            a = {at for at, part_of in enumerate(found) if part_of == part}
            b = {at for at, part_of in enumerate(true) if part_of == part}
            ious.append(len(a & b) / len(a | b) if a | b else 1.0)
        of_shape.append(sum(ious) / len(ious))
    classes = [np.mean([iou for iou, at in zip(of_shape, label, strict=True) if at == c]) for c in (0, 1)]
    return np.mean(of_shape), np.mean(classes)


def test_it_learns_and_is_scored_as_by_hand(shapes, tmp_path):
    losses = []
    report = run(shapes, tmp_path, epochs=12, points=60, seed=4,
                 on_event=lambda event: losses.append(event) if type(event) is EpochDone else None)  # fmt: skip
    assert losses[-1].losses["segmentation"] < 0.7 * losses[0].losses["segmentation"]
    # With both parts of a kind guessed at random: a ball's third part is absent, and counts as one.
    assert report.scores.instance > 0.75
    assert (report.shapes, report.step, report.chosen, report.validation, report.best) == (15, 1 / 15, 12, None, {})
    model, header = load_fine_tuned(tmp_path)
    assert (header.kind, header.epoch, header.step, model.config.parts) == ("segmentation", 12, 60, 5)
    asked = config(shapes, points=60, seed=4)
    test = read_sets(asked).test
    points, parts = sampled(test.points, test.part_labels, np.arange(15), asked, 0, Purpose.SUBSET)
    scores = part_scores_of(model, torch.device("cpu"))(points, test.labels)
    answers = np.where(test.labels[:, None] == 0, scores[..., :3].argmax(-1), 3 + scores[..., 3:].argmax(-1))
    instance, classes = by_hand(answers, parts, test.labels)
    assert report.scores.instance == pytest.approx(instance, abs=1e-12)
    assert report.scores.classes == pytest.approx(classes, abs=1e-12)
    assert report.scores.accuracy == np.mean(answers == parts)
    assert abs(report.scores.instance - report.scores.classes) > 1e-6
    assert set(report.scores.categories) == set(NAMES)


def test_rivals_of_a_part_are_all_or_those_of_its_category(shapes, tmp_path):
    """A tiny rate leaves the first weights, so the first loss is that of these weights on the first batch."""

    def first_loss(rivals):
        losses = []
        run(shapes, tmp_path / rivals, epochs=1, warmup_epochs=0, learning_rate=1e-12, rivals=rivals,
            head=replace(HEAD, dropout=0.0),
            on_event=lambda event: losses.append(event) if type(event) is StepDone else None)  # fmt: skip
        return losses[0].losses["segmentation"]

    found = {rivals: first_loss(rivals) for rivals in ("all", "category")}
    asked = config(shapes)
    batch = next(batches(read_sets(asked).train, np.arange(30), asked, 0))
    model = load_fine_tuned(tmp_path / "all")[0].train()
    with torch.no_grad():
        log_probs = model(torch.from_numpy(batch.points), torch.from_numpy(batch.labels), None).double().numpy()
    rows = [
        (of_point, part, (0, 1, 2) if label == 0 else (3, 4))
        for cloud, parts, label in zip(log_probs, batch.parts, batch.labels, strict=True)
        for of_point, part in zip(cloud, parts, strict=True)
    ]
    among_all = np.mean([-of_point[part] for of_point, part, _ in rows])
    among_own = np.mean([np.log(np.exp(of_point[list(own)]).sum()) - of_point[part] for of_point, part, own in rows])
    assert found["all"] == pytest.approx(among_all, rel=2e-3)  # 7e-4 was seen, after five steps at that rate
    assert found["category"] == pytest.approx(among_own, rel=2e-3)
    assert among_all - among_own > 0.1


@pytest.mark.parametrize("sampling", ["distinct", "replacement"])
def test_parts_travel_with_their_points(shapes, sampling):
    asked = config(shapes, sampling=sampling, shift=0.0)
    clouds = read_sets(asked).train
    seen = []
    for batch in batches(clouds, np.arange(30), asked, 2):
        assert (batch.points.shape, batch.parts.shape, batch.parts.dtype) == ((6, 52, 3), (6, 52), np.int64)
        ball = batch.labels[:, None] == 0
        assert np.array_equal(batch.parts, np.where(ball, batch.points[..., 0] > 0, 3 + (batch.points[..., 2] > 0)))
        seen += [len(np.unique(cloud, axis=0)) for cloud in batch.points]
    assert set(seen) == {52} if sampling == "distinct" else 30 < np.mean(seen) < 40  # 70 (1 - exp(-52/70)) = 37
    other = next(batches(clouds, np.arange(30), asked, 3))
    first, again = (next(batches(clouds, np.arange(30), asked, 2)) for _ in range(2))
    assert np.array_equal(first.points, again.points)
    assert not np.array_equal(first.rows, other.rows)


def test_one_factor_a_cloud_or_one_an_axis(shapes):
    clouds = read_sets(config(shapes)).train
    plain = next(batches(clouds, np.arange(30), config(shapes, scale=(1.0, 1.0), shift=0.0), 0)).points
    for scaling, same in (("cloud", True), ("axis", False)):
        found = next(batches(clouds, np.arange(30), config(shapes, scaling=scaling, shift=0.0), 0)).points
        factor = (found / plain).reshape(6, -1, 3)
        assert factor.min() > 0.8 - 1e-5
        assert factor.max() < 1.25 + 1e-5
        assert np.ptp(factor, axis=1).max() < 1e-4  # of a cloud's points
        assert (np.ptp(factor, axis=2).max() < 1e-4) == same
        assert np.ptp(factor[:, 0, 0]) > 0.01
    shifted = next(batches(clouds, np.arange(30), config(shapes, scale=(1.0, 1.0)), 0)).points - plain
    assert 0.05 < np.abs(shifted).max() <= 0.1 + 1e-6
    assert np.ptp(shifted, axis=1).max() < 1e-6
    assert np.ptp(shifted[:, 0], axis=1).min() > 1e-4


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "settings", [{"select": "validation", "validation_folds": 5}, {"select": "test", "updates": 2}]
)
def test_a_stopped_run_goes_on_to_the_same_bytes(shapes, tmp_path, settings):
    def files(folder):
        return {str(path.relative_to(folder)): path.read_bytes()
                for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".json")}  # fmt: skip

    def stop_at(step):
        def on_event(event):
            if isinstance(event, StepDone) and event.step == step:
                raise Stop

        return on_event

    whole = run(shapes, tmp_path / "whole", **settings)
    for step in (2, 6, 13):
        with pytest.raises(Stop):
            run(shapes, tmp_path / "parts", on_event=stop_at(step), **settings)
    again = run(shapes, tmp_path / "parts", **settings)
    assert again.resumed_from > 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert again.scores == whole.scores
    assert whole.checkpoint.parent.name == "best"
    metrics = read_header(whole.checkpoint).metrics
    if settings["select"] == "test":
        assert whole.best["instance"] == whole.scores.instance == metrics["best_test_instance"]
        assert whole.best["classes"] >= whole.scores.classes
        assert whole.best["accuracy"] >= whole.scores.accuracy
    else:
        assert whole.validation == metrics["best_validation_instance"]
        assert not any("test" in name for name in metrics)


def adamw(weights, gradient, state, rate, decay):
    """One step of AdamW by its definition, in float64 (Loshchilov and Hutter 2019)."""
    t, m, v = state[0] + 1, 0.9 * state[1] + 0.1 * gradient, 0.999 * state[2] + 0.001 * gradient**2
    state[:] = [t, m, v]
    moved = weights * (1 - rate * decay)
    return moved - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


@pytest.mark.parametrize("updates", [1, 2])
def test_a_step_on_the_recorded_model_is_the_recorded_one_and_adamws(updates):
    """Loss and gradient norms are the recording's; the weights move as AdamW moves them, once, or the field's twice:
    by the gradient as it is, then by the same gradient clipped.
    """
    arrays = reference_arrays("partseg")
    model = recorded_segmenter()
    names = tuple(f"C{number}" for number in range(16))
    part_names = tuple(f"C{min(number // 3, 15)}/{number}" for number in range(50))
    asked = replace(config("x"), updates=updates, clip_gradient=1.0)
    task = Parts(model.model, model.config, asked, names, part_names)
    task.model = model.train()
    updates_of = Updates(model, asked, CPU)
    batch = Batch(np.arange(len(arrays["pts"])), arrays["pts"], arrays["category"], arrays["target"].astype(np.int64))
    before = {name: value.detach().double().numpy().copy() for name, value in model.named_parameters()}
    updates_of.begin()
    loss = task.loss(batch, None, CPU.device)
    assert loss.item() == pytest.approx(float(arrays["train_loss"]), rel=1e-5)
    updates_of.backward(loss)
    gradients = {name: value.grad.double().numpy().copy() for name, value in model.named_parameters()}
    recorded = Recorded(shared_dir("reference")).arrays("partseg")
    rows = list(gradient_norms(model, recorded, "param_names", "train_grad_norms"))
    assert rows
    assert all(row.passed for row in rows), rows
    norm = float(updates_of.take(1e-3, twice=updates == 2))
    true_norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    assert norm == pytest.approx(true_norm, rel=1e-5)
    assert norm > 1.0  # or nothing would be clipped
    clipped = 1.0 / (true_norm + 1e-6)
    for name, value in model.named_parameters():
        spared = value.ndim <= 1 or name.endswith(".bias")
        state, moved = [0, 0.0, 0.0], before[name]
        for factor in (clipped,) if updates == 1 else (1.0, clipped):
            moved = adamw(moved, factor * gradients[name], state, 1e-3, 0.0 if spared else 0.05)
        # where rounding does not decide the sign of a step
        sure = np.abs(gradients[name]) * clipped > 1e-6
        assert np.abs(value.detach().double().numpy() - moved)[sure].max(initial=0) < 2e-6, name


def test_the_encoder_is_taken_over(shapes, tmp_path):
    entries = {name: value.clone() for name, value in tiny_model(seed=7).state_dict().items()}
    report = run(shapes, tmp_path, start=("hash", entries), epochs=1, learning_rate=1e-12, warmup_epochs=0,
                 final_learning_rate=0.0)  # fmt: skip
    found = read_tensors(report.checkpoint, read_header(report.checkpoint))
    moving = ("running_mean", "running_var", "num_batches_tracked")
    weights = [name for name in found if name.startswith("h_encoder.") and not name.endswith(moving)]
    assert len(weights) > 30
    assert all(torch.allclose(found[name].float(), entries[name].float(), atol=1e-6) for name in weights)


def steps_of(path, run_dir, **settings):
    """Losses and gradient norms of the steps of two epochs, the report, and the weights."""
    steps = []
    # A large epsilon: AdamW then follows gradients, and not their signs, which rounding decides where they are small.
    report = run(
        path, run_dir, epochs=2, select="test", epsilon=1.0, learning_rate=2e-3, **settings,
        on_event=lambda event: steps.append(event) if type(event) is StepDone else None,
    )  # fmt: skip
    found = {"step": torch.tensor([[event.losses["segmentation"], event.gradient_norm] for event in steps])}
    found["scores"] = torch.tensor([report.scores.instance, report.scores.classes, report.chosen, report.shapes])
    path = run_dir / "checkpoints" / "epoch-0002"
    return found | {"weights": read_tensors(path, read_header(path))}


def two_ranks(rank):
    import os
    from pathlib import Path

    folder = Path(os.environ["I2P_TEST_PARTS"])
    return steps_of(folder / "set.npz", folder / "run")


def test_two_ranks_train_as_one(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("I2P_TEST_PARTS", str(tmp_path))
    (tmp_path / "set.npz").write_bytes(shapes.read_bytes())
    first, second = on_two_ranks(two_ranks, tmp_path)
    alone = steps_of(tmp_path / "set.npz", tmp_path / "alone")
    assert torch.equal(first["scores"], second["scores"])
    assert all(torch.equal(first["weights"][name], value) for name, value in second["weights"].items())
    assert second["step"].shape[0] == 0  # rank 0 alone tells
    # Measured 5e-6 in six steps; then a maximum between near-equal entries flips, and gradients go elsewhere.
    assert torch.allclose(first["step"][:6], alone["step"][:6], rtol=1e-4)
    assert torch.allclose(first["step"], alone["step"], rtol=0.1)
    assert torch.allclose(first["scores"], alone["scores"], atol=0.05)


def test_a_batch_that_does_not_divide_is_refused(shapes, tmp_path):
    with pytest.raises(ValueError, match=r"finetune\.batch_size = 6 is not a multiple of accumulation = 4"):
        run(shapes, tmp_path / "odd", accumulation=4)


def test_what_has_no_parts_or_wrong_ones_is_refused_before_training(shapes, tmp_path):
    with np.load(shapes) as file:
        arrays = {key: file[key] for key in file.files}

    def refused(message, error=EvaluationError, asked=None, **changes):
        path = tmp_path / "wrong.npz"
        np.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
        with pytest.raises(error, match=message):
            run(path, tmp_path / "run", **(asked or {}))
        assert not (tmp_path / "run").exists()

    refused("has no part labels", part=None, part_names=None)
    other = arrays["part"].copy()
    other[4, 7] = 3
    refused("1 shapes have parts of another category, first .* of 'Ball'", part=other)
    refused("part 'Cone/left' belongs to none of the categories", part_names=np.array(["Cone/left", *PART_NAMES[1:]]))
    boxless = (arrays["split"] == "test") & (arrays["label"] == 1)
    refused("no shape of Box, so the mean over categories is undefined",
            split=np.where(boxless, "train", arrays["split"]))  # fmt: skip
    for name, value, said in (("parts", 6, "5 parts"), ("categories", 3, "2 categories")):
        with pytest.raises(ValueError, match=rf"segmentation\.{name} = {value}; npz:.* has {said}"):
            run(shapes, tmp_path / "run", head=replace(HEAD, **{name: value}))
    with pytest.raises(ValueError, match='updates = 2 with precision = "float16"'):
        run(shapes, tmp_path / "run", updates=2, precision="float16", device="auto")


@pytest.mark.parametrize("name", recipe_names(PARTS))
def test_every_recipe_is_sound(name):
    from pipeline.corpora.uri import KINDS

    sections, stated = load_recipe(name, [], PARTS)
    assert not stated
    asked = sections["finetune"]
    assert (asked.select, asked.updates, asked.sampling) == ("last", 1, "distinct")
    assert {uri.partition(":")[0] for uri in (asked.train, asked.test)} <= set(KINDS)
    assert set(recipe_names(PARTS)) == {"labeled-psb", "plain-shapenetpart", "shapenetpart", "synthetic"}


def test_the_recipe_of_shapenetpart_is_the_fields():
    from pipeline.corpora.kinds.shapenetpart import CATEGORIES, PART_NAMES

    sections, _ = load_recipe("shapenetpart", reference_settings(PARTS), PARTS)
    asked, head = sections["finetune"], sections["segmentation"]
    assert (head.parts, head.categories) == (len(PART_NAMES), len(CATEGORIES))
    assert head == SegmentationConfig()
    assert (asked.points, asked.batch_size, asked.epochs, asked.warmup_epochs) == (2048, 16, 300, 10)
    assert (asked.weight_decay, asked.clip_gradient, asked.scale, asked.shift) == (0.05, 10.0, (0.8, 1.25), 0.1)
    assert (asked.scaling, asked.rotation, asked.drop_path) == ("cloud", "none", 0.1)
    assert (asked.select, asked.sampling, asked.updates) == ("test", "replacement", 2)
    assert 13998 // asked.batch_size == 874
    base, low = 2e-4, 1e-6
    expected = {0: low, 1: low, 2: low + (base - low) / 10, 10: low + 9 * (base - low) / 10,
                11: low + (base - low) * (1 + np.cos(np.pi * 10 / 300)) / 2,
                299: low + (base - low) * (1 + np.cos(np.pi * 298 / 300)) / 2}  # fmt: skip
    for epoch, rate in expected.items():
        assert learning_rate(asked, epoch, 5, 874) == pytest.approx(rate, rel=1e-12)


def test_recipes_of_corpora_at_hand_know_their_numbers():
    from pipeline.corpora import open_corpus

    sections, _ = load_recipe("synthetic", [], PARTS)
    corpus = open_corpus(sections["finetune"].train, points=64)
    head = sections["segmentation"]
    assert (head.parts, head.categories) == (len(corpus.part_names), len(corpus.label_names))
    path = shared_dir("data") / "labeled_psb" / "labeled_psb.npz"
    head = load_recipe("labeled-psb", [], PARTS)[0]["segmentation"]
    with np.load(path) as file:
        assert (head.parts, head.categories) == (len(file["part_names"]), len(file["label_names"]))
