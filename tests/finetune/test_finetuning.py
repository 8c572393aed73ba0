"""Fine-tuning runs: what is trained, what is chosen on what, and that a stopped run goes on to the same bytes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cli.actions.finetuning import CLASSES, PARTS, load_recipe, recipe_names, reference_settings
from tests.support.finetune import tiny_classifier, tiny_sizes
from tests.support.models import tiny_model
from tests.support.training import clouds
from trainer.checkpoints.files import find_checkpoint, read_header, read_tensors
from trainer.checkpoints.models import load_fine_tuned
from trainer.downstream.clouds import read_clouds
from trainer.downstream.features import ClassifierEncoder, settle_by
from trainer.downstream.finetuning.batches import batches, turned
from trainer.downstream.finetuning.config import FinetuneConfig
from trainer.downstream.finetuning.loop import finetune, read_sets
from trainer.downstream.linear_svm import fitted_layer, fold_numbers
from trainer.downstream.voting import farthest_points
from trainer.engine.events import EpochDone, StepDone
from trainer.engine.schedule import learning_rate
from trainer.errors import CheckpointError, EvaluationError, TrainingError
from trainer.models.heads.config import ClassifierConfig
from trainer.randomness import Purpose, record_uniforms

HEAD = ClassifierConfig(
    classes=3, neighbours=(8, 4, 4), radius=(0.5, 0.8, 1.2), hidden=(16, 12), dropout=0.1, label_smoothing=0.1
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Three kinds of boxes and ellipsoids, 40 to train on and 20 to test on."""
    path = tmp_path_factory.mktemp("tuning") / "set.npz"
    points, label = clouds(60, points=64, seed=2), np.arange(60) % 3
    points[np.arange(60), :, label] *= 0.25
    split = np.array(["train"] * 40 + ["test"] * 20)
    np.savez(path, points=points, label=label, label_names=np.array(["flat", "thin", "low"]), split=split)
    return path


def config(path, **settings):
    uris = {"train": f"npz:{path}?split=train", "test": f"npz:{path}?split=test"}
    small = {
        "epochs": 4,
        "warmup_epochs": 1,
        "batch_size": 8,
        "stored_points": 64,
        "points": 48,
        "pool": 56,
        "drop_path": 0.0,
    }
    return FinetuneConfig(
        **{
            **uris,
            **small,
            "tensorboard": False,
            "device": "cpu",
            "learning_rate": 5e-3,
            "scale": (0.9, 1.1),
            "shift": 0.05,
            **settings,
        }
    )


def tune(path, run_dir, *, start=None, on_event=None, head=HEAD, model=None, begins="new", **settings):
    asked = config(path, head=begins, **settings)
    return finetune(
        read_sets(asked), run_dir, model=model or tiny_sizes(), classifier=head, config=asked, start=start,
        source="the start", on_event=on_event,
    )  # fmt: skip


def weights(run_dir):
    found = find_checkpoint(run_dir)
    return read_tensors(found, read_header(found))


def pretrained():
    model = tiny_model(seed=7)
    return "hash", {name: value.clone() for name, value in model.state_dict().items()}


def test_it_learns(labelled, tmp_path):
    losses = []
    report = tune(
        labelled,
        tmp_path,
        epochs=30,
        seed=1,
        on_event=lambda event: losses.append(event) if type(event) is EpochDone else None,
    )
    assert losses[-1].losses["classification"] < losses[0].losses["classification"]
    assert report.accuracy > 0.6  # a third by chance
    assert (report.shapes, report.step, report.chosen, report.validation) == (20, 1 / 20, 30, None)
    tuned, header = load_fine_tuned(tmp_path)
    assert (header.kind, header.epoch, header.step, tuned.config.classes) == ("classifier", 30, 150, 3)


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"select": "validation", "validation_folds": 4, "checkpoint_every": 2},
        {"head": replace(HEAD, pooling="levels", hidden=()), "begins": "fitted"},
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bytes(labelled, tmp_path, settings):
    def files(folder):
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix in (".safetensors", ".json")
        }

    whole = tune(labelled, tmp_path / "whole", **settings)

    def stop_at(step):
        def on_event(event):
            if isinstance(event, StepDone) and event.step == step:
                raise Stop

        return on_event

    for step in (2, 5, 8, 11):
        with pytest.raises(Stop):
            tune(labelled, tmp_path / "parts", on_event=stop_at(step), **settings)
    again = tune(labelled, tmp_path / "parts", **settings)
    assert again.resumed_from > 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert (again.accuracy, again.chosen) == (whole.accuracy, whole.chosen)
    done = tune(labelled, tmp_path / "parts", **settings)
    assert (done.resumed_from, done.accuracy) == (4, whole.accuracy)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_another_run_in_the_folder_is_refused(labelled, tmp_path):
    tune(labelled, tmp_path, epochs=2)
    with pytest.raises(CheckpointError, match=r"finetune\.learning_rate was 0\.005, is now 0\.1"):
        tune(labelled, tmp_path, epochs=2, learning_rate=0.1)
    with pytest.raises(CheckpointError, match=r"corpora and start\.start was 'none', is now 'hash'"):
        tune(labelled, tmp_path, epochs=2, start=pretrained())
    with pytest.raises(CheckpointError, match=r"classifier\.dropout was 0\.1, is now 0\.2"):
        tune(labelled, tmp_path, epochs=2, head=replace(HEAD, dropout=0.2))
    tune(labelled, tmp_path, epochs=2, keep_checkpoints=1)


def test_frozen_means_frozen(labelled, tmp_path):
    start = pretrained()
    for protocol in ("linear", "mlp-3"):
        tune(labelled, tmp_path / protocol, protocol=protocol, start=start, epochs=2)
        found = weights(tmp_path / protocol)
        encoder = [name for name in found if name.startswith("h_encoder.")]
        assert len(encoder) > 20
        assert all(torch.equal(found[name], start[1][name]) for name in encoder)  # running statistics too
        heads = [name for name in found if name.startswith("cls_head_finetune.")]
        assert len([name for name in heads if name.endswith("weight")]) == (1 if protocol == "linear" else 5)
    tune(labelled, tmp_path / "field", protocol="linear", frozen="reference", start=start, epochs=2)
    found = weights(tmp_path / "field")
    moved = {name for name in found if name in start[1] and not torch.equal(found[name], start[1][name])}
    assert moved
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in moved)
    tune(labelled, tmp_path / "full", start=start, epochs=2)
    assert not torch.equal(weights(tmp_path / "full")[encoder[0]], start[1][encoder[0]])


@pytest.mark.parametrize("scratch", [False, True])
def test_a_fitted_head_is_logistic_regression_on_the_encoders_feature(labelled, tmp_path, scratch):
    """Before the first step, so a rate of next to nothing leaves it there; the held-out shapes have no part in it."""
    start = None if scratch else pretrained()
    chosen = {"select": "validation", "validation_folds": 4, "learning_rate": 1e-30, "weight_decay": 0.0}
    tune(
        labelled, tmp_path, start=start, begins="fitted", epochs=1, warmup_epochs=0, drop_path=0.0, seed=3,
        head=replace(HEAD, pooling="levels", hidden=(), radius=(0.0, 0.0, 0.0)), protocol="full", **chosen,
    )  # fmt: skip
    found = weights(tmp_path)
    tuned, _ = load_fine_tuned(tmp_path)
    asked = config(labelled, seed=3)
    sets = read_sets(asked)
    held = fold_numbers(sets.train.labels, 4, 3) == 0
    clouds, labels = farthest_points(sets.train.points[~held], asked.points), sets.train.labels[~held]
    if scratch:  # the statistics of the first weights, which the step above has moved on from
        settle_by(tuned, ClassifierEncoder(tuned, torch.device("cpu")), clouds[:: max(1, len(clouds) // 64)][:64])
    else:
        tuned.load_state_dict({name: value for name, value in start[1].items() if name in found}, strict=False)
    features = ClassifierEncoder(tuned, torch.device("cpu"))(clouds)
    layer = fitted_layer(features, labels, classes=3, seed=3)
    # L-BFGS stops at a tolerance, so roundings of the features show: 4e-3 of the norm was seen.
    for name, wanted in (("weight", layer.weight), ("bias", layer.bias)):
        off = found[f"cls_head_finetune.0.{name}"].double().numpy() - wanted
        assert np.linalg.norm(off) < 0.02 * np.linalg.norm(wanted), name
    assert np.mean((features @ layer.weight.T + layer.bias).argmax(1) == labels) > 0.8


def test_a_fitted_head_is_one_layer(labelled, tmp_path):
    with pytest.raises(
        ValueError, match=r'finetune\.head = "fitted" is of one linear layer; set classifier\.hidden = '
    ):
        tune(labelled, tmp_path, start=pretrained(), begins="fitted")
    tune(labelled, tmp_path, start=pretrained(), begins="fitted", protocol="linear", epochs=1, warmup_epochs=0)


def test_the_encoder_is_taken_over_and_what_does_not_fit_is_refused(labelled, tmp_path):
    name, entries = pretrained()
    prefixed = {f"module.{key}": value for key, value in entries.items()}
    first = tune(labelled, tmp_path / "a", start=(name, entries), protocol="linear", epochs=2)
    second = tune(labelled, tmp_path / "b", start=(name, prefixed), protocol="linear", epochs=2)
    assert first.accuracy == second.accuracy
    with pytest.raises(CheckpointError, match="none of its 1 entries is one of the model's"):
        tune(labelled, tmp_path / "c", start=("x", {"other": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"(?s)does not fit the model, so nothing was loaded.*has shape"):
        tune(labelled, tmp_path / "d", start=(name, entries), model=tiny_sizes(embed_first=(16, 24)))
    with pytest.raises(ValueError, match='"linear" trains a head on an untrained encoder'):
        tune(labelled, tmp_path / "e", protocol="linear")
    assert not (tmp_path / "e").exists()


def test_nothing_of_the_test_split_reaches_a_choice(labelled, tmp_path):
    with np.load(labelled) as file:
        arrays = {key: file[key] for key in file.files}
    test = arrays["split"] == "test"
    arrays["label"][test] = np.roll(arrays["label"][test], 1)
    np.savez(tmp_path / "other.npz", **arrays)
    settings = {"select": "validation", "validation_folds": 4, "epochs": 5}
    asked = config(labelled, **settings)
    sets = read_sets(asked)
    other = replace(sets, test=read_sets(config(tmp_path / "other.npz", **settings)).test)
    reports = [
        finetune(part, tmp_path / name, model=tiny_sizes(), classifier=HEAD, config=asked, start=None)
        for name, part in (("a", sets), ("b", other))
    ]
    assert reports[0].chosen == reports[1].chosen
    assert reports[0].validation == reports[1].validation
    a, b = (read_tensors(report.checkpoint, read_header(report.checkpoint)) for report in reports)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert sets.test.labels.tolist() != other.test.labels.tolist()


def test_the_best_on_the_test_split_is_there_for_those_who_ask(labelled, tmp_path):
    report = tune(labelled, tmp_path, select="test", epochs=6)
    assert report.checkpoint.parent.name == "best"
    metrics = read_header(report.checkpoint).metrics
    assert metrics["best_test_accuracy"] == report.accuracy
    assert metrics["best_epoch"] == report.chosen
    assert len(list((tmp_path / "best").iterdir())) == 1


def test_held_out_shapes_are_not_trained_on(labelled, tmp_path):
    seen = set()
    import trainer.downstream.finetuning.loop as loop

    asked = config(labelled, select="validation", validation_folds=4)
    run = loop._Run(
        loop.Classification(tiny_sizes(), HEAD, asked), read_sets(asked), tmp_path, asked, None, "",
        loop.Ranks(rank=0, size=1, device=torch.device("cpu")),
    )  # fmt: skip
    for epoch in range(8):
        for batch in batches(run.sets.train, run.rows, asked, epoch):
            seen |= set(batch.rows.tolist())
    assert len(run.held_out) == 10
    assert seen == set(range(40)) - set(run.held_out.tolist())


def test_batches_are_a_function_of_seed_epoch_and_shape(labelled):
    data, rows = read_clouds(f"npz:{labelled}?split=train", points=64), np.arange(40)
    asked = config(labelled)
    first, again = ([*batches(data, rows, asked, 3)] for _ in range(2))
    assert len(first) == 5
    assert all(np.array_equal(a.points, b.points) for a, b in zip(first, again, strict=True))
    assert sorted(row for batch in first for row in batch.rows) == list(range(40))
    other = [*batches(data, rows, asked, 4)]
    assert [*first[0].rows] != [*other[0].rows]
    wide = [*batches(data, rows, replace(asked, batch_size=20), 3)]
    where = {row: (batch, place) for batch in wide for place, row in enumerate(batch.rows.tolist())}
    for batch in first:
        for place, row in enumerate(batch.rows.tolist()):
            found, at = where[row]
            assert np.array_equal(batch.points[place], found.points[at])
    assert first[0].points.shape == (8, 48, 3)


def test_a_rotation_turns_about_the_axis_that_is_up(labelled):
    data, rows = read_clouds(f"npz:{labelled}?split=train", points=64), np.arange(40)
    base = config(labelled, scale=(1, 1), shift=0.0, rotation="none")
    still = next(batches(data, rows, base, 0)).points
    for up, axis in (("y", 1), ("z", 2)):
        for rotation in ("cloud", "batch"):
            found = next(batches(data, rows, replace(base, rotation=rotation, up=up), 0)).points
            assert np.array_equal(found[..., axis], still[..., axis])
            others = [k for k in range(3) if k != axis]
            angle = np.arctan2(found[..., others[1]], found[..., others[0]])
            angle = (angle - np.arctan2(still[..., others[1]], still[..., others[0]])) % (2 * np.pi)
            spread = np.abs(np.exp(1j * angle) - np.exp(1j * angle[:, :1])).max()
            assert spread < 1e-3  # one angle a cloud
            assert (np.abs(np.exp(1j * angle[:, 0]) - np.exp(1j * angle[0, 0])).max() < 1e-3) == (rotation == "batch")
    quarter = turned(np.array([[[1.0, 0, 0]]], np.float32), np.array([np.pi / 2]), "z")
    assert quarter[0, 0] == pytest.approx([0, 1, 0], abs=1e-6)


def test_a_batch_can_share_its_ranks(labelled):
    data, rows = read_clouds(f"npz:{labelled}?split=train", points=64), np.arange(40)
    data = replace(data, points=np.repeat(data.points[:1], 40, axis=0))
    base = config(labelled, scale=(1, 1), shift=0.0, rotation="none", pool=64)
    place = {point.tobytes(): number for number, point in enumerate(data.points[0])}

    def ranks(sharing):
        """The places of the drawn points among the shuffled ones of each cloud, [B, 48]."""
        batch = next(batches(data, rows, replace(base, sharing=sharing), 0))
        keys = record_uniforms(batch.rows, 64, seed=base.seed, epoch=0, purpose=Purpose.POINTS)
        shuffled = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1)
        drawn = np.array([[place[point.tobytes()] for point in cloud] for cloud in batch.points])
        return np.take_along_axis(shuffled, drawn, axis=1)

    shared, apart = ranks("batch"), ranks("cloud")
    assert (shared == shared[0]).all()
    assert all((row != apart[0]).any() for row in apart[1:])


def test_the_fields_schedule_at_the_passes_that_are_known():
    """The warm-up rises linearly, and does not shift the cosine; every pass has the rate of the one before it."""
    found = load_recipe("modelnet40", [])[0]["finetune"]
    assert (found.epochs, found.batch_size, found.clip_gradient, found.weight_decay) == (301, 32, 10.0, 0.05)
    base, low = 5e-4, 1e-6

    def cosine(t):
        return low + (base - low) * (1 + np.cos(np.pi * t / 300)) / 2

    rise = (base - low) / 10
    expected = {0: low, 1: low, 2: low + rise, 10: low + 9 * rise, 11: cosine(10), 300: cosine(299)}
    for epoch, rate in expected.items():
        assert learning_rate(found, epoch, 5, 307) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_sound_and_names_sets_that_exist(name):
    from pipeline.corpora.uri import KINDS

    sections, stated = load_recipe(name, [])
    assert not stated
    asked = sections["finetune"]
    assert asked.select == "last"
    assert {uri.partition(":")[0] for uri in (asked.train, asked.test)} <= set(KINDS)
    assert asked.test == asked.train.replace("split=train", "split=test").replace("count=720", "count=480")
    of_both = {"synthetic", "modelnet40", "obj-bg", "obj-only", "pb-t50-rs"}
    assert set(recipe_names()) == of_both | {f"plain-{name}" for name in of_both}
    plain = name.startswith("plain-")
    assert sections["model"].architecture == ("plain" if plain else "hierarchical")
    other, _ = load_recipe(name.removeprefix("plain-") if plain else f"plain-{name}", [])
    assert (asked.train, asked.test, asked.points) == (
        other["finetune"].train, other["finetune"].test, other["finetune"].points,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "own", "fields"), [(CLASSES, "head", "fitted", "new"), (PARTS, "rivals", "category", "all")]
)
def test_the_fields_habits_take_the_place_of_the_small_recipes(kind, name, own, fields):
    for habits, wanted in (([], own), (reference_settings(kind), fields)):
        sections, _ = load_recipe("synthetic", habits, kind)
        assert getattr(sections["finetune"], name) == wanted


def test_recipes_of_scanobjectnn_are_the_fields():
    radii = {}
    for name in ("obj-bg", "obj-only", "pb-t50-rs"):
        sections, _ = load_recipe(name, [])
        asked, head = sections["finetune"], sections["classifier"]
        assert (asked.frame, asked.scale, asked.shift, asked.rotation, asked.up) == (
            "stored",
            (0.9, 1.1),
            0.0,
            "batch",
            "y",
        )
        assert (head.classes, head.neighbours, head.pooling, head.label_smoothing) == (15, (32, 16, 16), "concat", 0.0)
        assert f"variant={name.replace('-', '_')}" in asked.train
        radii[name] = head.radius
    assert radii == {"obj-bg": (0.32, 0.64, 1.28), "obj-only": (0.32, 0.64, 1.28), "pb-t50-rs": (0.48, 0.96, 1.92)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": ""}, "train = '' is not a corpus"),
        ({"points": 16}, "points = 16 is smaller than 32"),
        ({"pool": 40}, "pool = 40 is less than points = 48"),
        ({"stored_points": 50}, "stored_points = 50 is less than pool = 56"),
        ({"frozen": "reference"}, 'frozen = "reference" has no effect with protocol = "full", which freezes nothing'),
        (
            {"protocol": "linear", "encoder_rate": 0.5},
            'encoder_rate = 0.5 has no effect with protocol = "linear", which trains the head alone',
        ),
        ({"encoder_rate": 0.0}, "encoder_rate = 0.0 is not positive"),
        ({"protocol": "half"}, "protocol = 'half' is none of full, mlp-3, linear"),
        ({"scale": (0.0, 1.0)}, "is not an ascending range of positive factors"),
        ({"stored_points": 40}, "stored_points = 40 is less than points = 48"),
        ({"accumulation": 3}, "batch_size = 8 is not a multiple of accumulation = 3"),
        ({"accumulation": 8}, "batch_size = 8 in accumulation = 8 parts leaves fewer than 2 shapes a part"),
        ({"batch_size": 1}, "batch_size = 1 in accumulation = 1 parts leaves fewer than 2 shapes a part"),
        ({"checkpoint_steps": 5}, "checkpoint_steps = 5: fine-tuning supports only checkpoint_steps = 0"),
        ({"drop_path": 1.0}, "drop_path = 1.0 is outside"),
    ],
)
def test_wrong_settings_are_named(labelled, settings, message):
    assert any(message in problem for problem in config(labelled, **settings).problems())


def test_runs_that_cannot_be_are_refused(labelled, tmp_path):
    with pytest.raises(ValueError, match=r"classifier\.classes = 4; npz:.* has 3 classes"):
        tune(labelled, tmp_path / "a", head=replace(HEAD, classes=4))
    with pytest.raises(
        EvaluationError, match="has 40 shapes to train on and 0 held out; expected at least one batch of 64"
    ):
        tune(labelled, tmp_path / "b", batch_size=64)
    with pytest.raises(TrainingError, match=r"in step \d of epoch \d at learning rate .*Lower finetune\.learning_rate"):
        tune(labelled, tmp_path / "c", learning_rate=1e18, warmup_epochs=0, clip_gradient=0.0)


def test_accumulated_parts_make_the_batchs_step(labelled, tmp_path):
    """Where nothing normalises over the shapes of a part, the parts' gradients add up to the batch's."""
    found = {}
    for parts in (1, 2, 4):
        steps = []
        tune(
            labelled, tmp_path / str(parts), start=pretrained(), protocol="linear", epochs=2, accumulation=parts,
            on_event=lambda event, steps=steps: steps.append(event) if type(event) is StepDone else None,
        )  # fmt: skip
        found[parts] = [(event.losses["classification"], event.gradient_norm) for event in steps]
    assert len(found[1]) == 10
    for parts in (2, 4):
        assert np.array(found[parts]) == pytest.approx(np.array(found[1]), rel=1e-5)
        for name, value in weights(tmp_path / str(parts)).items():
            assert torch.allclose(value.float(), weights(tmp_path / "1")[name].float(), atol=1e-4), name
    with pytest.raises(CheckpointError, match=r"finetune\.accumulation was 1, is now 2"):
        tune(labelled, tmp_path / "1", start=pretrained(), protocol="linear", epochs=2, accumulation=2)


def test_a_rank_has_its_share_of_the_same_batches(labelled):
    data, rows = read_clouds(f"npz:{labelled}?split=train", points=64), np.arange(40)
    asked = config(labelled, rotation="batch", sharing="batch")
    whole = [*batches(data, rows, asked, 3)]
    shares = [[*batches(data, rows, asked, 3, rank=rank, ranks=2)] for rank in range(2)]
    for index, batch in enumerate(whole):
        for name in ("rows", "points", "labels"):
            together = np.concatenate([getattr(share[index], name) for share in shares])
            assert np.array_equal(together, getattr(batch, name))
        assert [part.rows.tolist() for part in batch.split(4)] == batch.rows.reshape(4, 2).tolist()


@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_a_first_step_is_adamws_by_hand(labelled, tmp_path, factor):
    """One epoch of one batch: the weights move as AdamW moves them, after the gradient was clipped."""
    asked = config(
        labelled, batch_size=40, epochs=1, warmup_epochs=0, drop_path=0.0, clip_gradient=0.01, encoder_rate=factor
    )
    head = replace(HEAD, dropout=0.0)
    finetune(read_sets(asked), tmp_path, model=tiny_sizes(), classifier=head, config=asked, start=None)
    found = weights(tmp_path)
    model = tiny_classifier(
        model={"drop_path": 0.0}, **{key: getattr(head, key) for key in ("classes", "hidden", "dropout")}
    )
    model.train()
    batch = next(batches(read_sets(asked).train, np.arange(40), asked, 0))
    logits = model(torch.from_numpy(batch.points), None).double()
    target = torch.full((40, 3), 0.1 / 2, dtype=torch.float64)
    target[torch.arange(40), torch.from_numpy(batch.labels)] = 0.9
    loss = -(target * logits.log_softmax(1)).sum(1).mean()
    loss.backward()
    norm = torch.sqrt(sum((value.grad.double() ** 2).sum() for value in model.parameters()))
    assert norm > 0.01
    for name, value in model.named_parameters():
        rate = 5e-3 * (factor if name.startswith("h_encoder.") else 1)  # of the first step, without a warm-up
        clipped = value.grad.double() * (0.01 / (norm + 1e-6))
        spared = value.ndim <= 1 or name.endswith(".bias")
        kept = value.detach().double() * (1 if spared else 1 - rate * 0.05)
        moved = kept - rate * clipped / (clipped.abs() + 1e-8)  # both averages are the gradient's after one step
        sure = clipped.abs() > 1e-6  # where rounding does not decide the sign
        assert torch.allclose(found[name].double()[sure], moved[sure], atol=3e-5), name
