"""Commands on encoders: few shots, votes, features of a corpus, the table of results."""

import csv
import io
import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
import zarr

from tests.support.commands import run
from tests.support.finetune import classifier_checkpoint
from trainer.checkpoints.models import load_encoder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Four kinds of synthetic objects as an NPZ file of 12 to train on and 10 to test on in each, 256 points."""
    from pipeline.corpora import open_corpus

    path = tmp_path_factory.mktemp("labelled") / "set.npz"
    shapes, splits = [], []
    for split, count in (("train", 48), ("test", 40)):
        uri = f"synthetic:?count={count}&split={split}&categories=chair,mug,car,airplane"
        corpus = open_corpus(uri, points=256)
        shapes += [corpus[i] for i in range(count)]
        splits += [split] * count
    np.savez(
        path,
        points=np.stack([shape.points for shape in shapes]),
        label=np.array([shape.label for shape in shapes]),
        label_names=np.array(corpus.label_names),
        split=np.array(splits),
        ids=np.array([shape.id for shape in shapes]),
        part=np.stack([shape.part_labels for shape in shapes]),
        part_names=np.array(corpus.part_names),
    )
    return path


def test_fewshot_scores_an_encoder_beside_what_has_learnt_nothing(smoke, labelled, capsys, tmp_path):
    base = ("fewshot", smoke.run_dir, "--train", f"npz:{labelled}?split=train", "--test", f"npz:{labelled}?split=test")
    options = ("--way", 3, "--shot", 4, "--shot", 6, "--folds", 3, "--queries", 8, "--points", 256)
    found = json.loads(run(capsys, *base, *options, "--json").out)
    assert (found["task"], found["folds"], found["queries"], found["points"]) == ("few-shot", 3, 8, 256)
    assert list(found["rows"]) == ["coordinates", "untrained", str(smoke.run_dir)]
    for row in found["rows"].values():
        assert [(score["way"], score["shot"]) for score in row["settings"]] == [(3, 4), (3, 6)]
        for score in row["settings"]:
            assert len(score["scores"]) == 3
            assert score["mean"] == pytest.approx(np.mean(score["scores"]))
            assert score["sample_spread"] >= score["population_spread"]
            assert (score["tested"], score["step"]) == (24, pytest.approx(1 / 24))
            assert score["mean"] > 0.4  # a third by chance
    text = run(capsys, *base, *options)
    assert "3-way 4-shot" in text.out
    assert "divided by the folds; by one less" in text.out
    assert "encoding (coordinates): 88/88 shapes" in text.err
    mean = found["rows"]["untrained"]["settings"][1]["mean"]
    assert f"{100 * mean:.1f}%" in next(line for line in text.out.splitlines() if line.startswith("  untrained"))


def test_fewshot_takes_stored_folds(capsys, tmp_path):
    from tests.corpora.test_fewshot import fold_items, write_fold

    for fold in range(2):
        write_fold(tmp_path / "ModelNetFewshot", fold=fold, train=fold_items(5, 10, seed=fold))
    options = ("--stored", tmp_path / "ModelNetFewshot", "--way", 5, "--shot", 10, "--folds", 2, "--points", 64)
    outcome = run(capsys, "fewshot", "coordinates", *options, "--json")
    assert outcome.code == 0, outcome.err
    (score,) = json.loads(outcome.out)["rows"]["coordinates"]["settings"]
    assert (len(score["scores"]), score["tested"]) == (2, 100)
    refused = run(capsys, "fewshot", "coordinates", *options, "--train", "npz:x")
    assert (refused.code, "give one of --train and --stored" in refused.err) == (2, True)


def test_embed_writes_features_that_load_encoder_gives(smoke, labelled, capsys, tmp_path):
    uri, points = f"npz:{labelled}?split=test", ("--points", 256)
    for name in ("out.npz", "out.zarr", "out.parquet"):
        outcome = run(
            capsys,
            "embed",
            smoke.run_dir,
            uri,
            "--out",
            tmp_path / name,
            *points,
            "--neighbours",
            tmp_path / "near.png",
        )
        assert outcome.code == 0, outcome.err
        assert "40 shapes of" in outcome.out
        assert "nearest of a shape have its label" in outcome.out
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    assert arrays["ids"][0] == "chair/test-s0-0000000"
    assert arrays["label_names"][arrays["labels"][1]] == "mug"
    assert json.loads(str(arrays["about"]))["corpus"] == uri
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert np.array_equal(group["features"][:], arrays["features"])
    assert np.array_equal(group["labels"][:], arrays["labels"])
    assert group.attrs["ids"] == arrays["ids"].tolist()
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == arrays["ids"].tolist()
    assert table["label"].to_pylist() == arrays["labels"].tolist()
    assert table["label_name"].to_pylist()[:2] == ["chair", "mug"]
    assert np.array_equal(np.stack(table["features"].to_numpy(zero_copy_only=False)), arrays["features"])
    assert json.loads(table.schema.metadata[b"about"]) == json.loads(str(arrays["about"]))
    from trainer.downstream.clouds import read_clouds

    drawn = read_clouds(uri, points=256).draw(256, 0)
    with torch.no_grad():
        expected = load_encoder(smoke.run_dir).encode(torch.from_numpy(drawn)).numpy()
    # batches of other sizes round their products differently
    assert arrays["features"] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert (tmp_path / "near.png").read_bytes()[:4] == b"\x89PNG"
    again = run(capsys, "embed", smoke.run_dir, uri, "--out", tmp_path / "out.npz", *points)
    assert (again.code, "already exists" in again.err) == (2, True)


def test_embed_takes_baselines_and_corpora_without_labels(capsys, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "bare.npz", points=rng.normal(size=(5, 64, 3)).astype("f4"))
    outcome = run(capsys, "embed", "point-nn", f"npz:{tmp_path}/bare.npz", "--out", tmp_path / "x.npz", "--points", 64)
    assert outcome.code == 0, outcome.err
    assert "5 shapes of 1152 numbers (point-nn)" in outcome.out
    assert "label" not in outcome.out
    with np.load(tmp_path / "x.npz") as file:
        assert file["labels"].tolist() == [-1] * 5
    for arguments, said in (
        (
            ("embed", "nothing", "npz:x", "--out", tmp_path / "y.npz"),
            "nothing is not an encoder; expected a run directory",
        ),
        (
            ("embed", "point-nn", "npz:x", "--out", tmp_path / "y.txt"),
            "expected a name ending in .npz, .zarr or .parquet",
        ),
    ):
        refused = run(capsys, *arguments)
        assert (refused.code, said in refused.err) == (2, True), refused.err


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A classifier of four classes with random weights, as a checkpoint."""
    return classifier_checkpoint(tmp_path_factory.mktemp("tuned") / "checkpoint", classes=4)


def test_vote_prints_mean_spread_and_calls_the_largest_by_its_name(tuned, labelled, capsys):
    options = (
        "--test",
        f"npz:{labelled}?split=test",
        "--points",
        96,
        "--stored-points",
        256,
        "--rounds",
        3,
        "--draws",
        2,
    )
    outcome = run(capsys, "vote", tuned, *options, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["task"], found["shapes"], found["step"], len(found["rounds"])) == ("vote", 40, 1 / 40, 3)
    assert found["best_of_rounds"] == max(found["rounds"])
    text = run(capsys, "vote", tuned, *options)
    assert f"the largest of 3 rounds{100 * found['best_of_rounds']:>18.2f}%  chosen on the test split" in text.out
    assert f"{100 * found['mean']:.2f}% ± {100 * found['spread']:.2f}" in text.out
    assert "voting: 280/280 clouds" in text.err
    other = run(capsys, "vote", tuned, "--test", "synthetic:?count=36&split=test", *options[2:])
    assert (other.code, "has 36 classes, the classifier 4" in other.err) == (1, True)


def test_a_tuned_classifier_is_an_encoder_too(tuned, labelled, capsys, tmp_path):
    outcome = run(capsys, "embed", tuned, f"npz:{labelled}?split=test", "--out", tmp_path / "t.npz", "--points", 256)
    assert outcome.code == 0, outcome.err
    assert "(pooled)" in outcome.out


def test_results_are_one_table_with_what_a_shape_is_worth(smoke, labelled, tuned, capsys, tmp_path):
    few, votes = tmp_path / "few.json", tmp_path / "vote.json"
    base = ("--train", f"npz:{labelled}?split=train", "--test", f"npz:{labelled}?split=test")
    options = ("--way", 3, "--shot", 4, "--folds", 2, "--queries", 5, "--points", 64)
    few.write_text(run(capsys, "fewshot", "coordinates", *base, *options, "--json").out)
    voting = (
        "--test",
        f"npz:{labelled}?split=test",
        "--points",
        64,
        "--stored-points",
        128,
        "--rounds",
        2,
        "--draws",
        1,
    )
    votes.write_text(run(capsys, "vote", tuned, *voting, "--json").out)
    outcome = run(capsys, "results", smoke.run_dir, few, votes)
    assert outcome.code == 0, outcome.err
    head, _, *lines = outcome.out.strip().splitlines()
    assert head.startswith("| task | test set | encoder or method | feature | % | ± |")
    recorded = json.loads((smoke.run_dir / "metrics.json").read_text())["evaluation"]
    trained = next(line for line in lines if "| trained |" in line)
    assert f"| {100 * recorded['rows']['trained']['accuracy']:.2f} |" in trained
    assert f"| {100 / recorded['test']['shapes']:.3g} |" in trained
    assert sum("few-shot, 3-way 4-shot" in line for line in lines) == 1
    assert sum("the largest of 2 rounds, chosen on test" in line for line in lines) == 1
    rows = json.loads(run(capsys, "results", smoke.run_dir, few, votes, "--format", "json").out)
    table = list(csv.DictReader(io.StringIO(run(capsys, "results", smoke.run_dir, few, votes, "--format", "csv").out)))
    assert [row["who"] for row in table] == [row["who"] for row in rows]
    assert [float(row["value"]) for row in table] == [row["value"] for row in rows]
    written = run(capsys, "results", few, "--out", tmp_path / "table.md")
    assert written.code == 0
    assert "few-shot" in (tmp_path / "table.md").read_text()


def test_results_take_studies_and_the_downstream_suite(capsys, tmp_path):
    from cli.study.report import summarise

    results = [
        {"arm": arm, "teacher": "embedded", "seed": seed, "settings": "x", "seconds": 1.0, "sets": {"toys": {
            "accuracy": accuracy, "coordinates": 0.7, "largest class": 0.1,
            "features": {"levels": {"accuracy": accuracy, "numbers": 9}}}}}
        for arm, seed, accuracy in (("full", 0, 0.8), ("full", 1, 0.9), ("untrained", 0, 0.5))
    ]  # fmt: skip
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text(json.dumps(summarise(results) | {"seconds": 2.0}))
    column = {"title": "fine-tuned on 9 shapes", "over": "seeds", "step": 0.02}
    cell = {"mean": 0.5, "spread": 0.1, "scores": [0.4, 0.6]}
    suite = {"task": "downstream", "run": "r", "notes": ["a note"],
             "sets": {"toys": {"columns": [column], "rows": {"full": [cell], "coordinates": [None]}}}}  # fmt: skip
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "downstream.json").write_text(json.dumps(suite))
    outcome = run(capsys, "results", tmp_path / "study", tmp_path / "suite", "--format", "json")
    assert outcome.code == 0, outcome.err
    rows = {row["who"] + "/" + row["source"].rpartition("/")[2]: row for row in json.loads(outcome.out)}
    assert set(rows) == {"full, embedded/study", "untrained, embedded/study", "coordinates/study",
                         "always the largest class/study", "full/suite"}  # fmt: skip
    full = rows["full, embedded/study"]
    assert (full["task"], full["set"], full["feature"], full["of"]) == ("linear SVM", "toys", "levels", "seeds")
    assert (full["value"], full["spread"]) == (pytest.approx(85.0), pytest.approx(100 * np.std([0.8, 0.9], ddof=1)))
    assert rows["untrained, embedded/study"]["spread"] is None
    assert rows["coordinates/study"]["value"] == pytest.approx(70.0)
    tuned = rows["full/suite"]
    assert (tuned["task"], tuned["value"], tuned["spread"]) == ("fine-tuned on 9 shapes", 50.0, 10.0)
    assert (tuned["step"], tuned["of"]) == (2.0, "seeds")


def test_published_figures_stand_beside_the_same_set_and_task(capsys, tmp_path):
    row = {"accuracy": 0.9, "spread": 0.0, "feature": "top"}
    probe = {"protocol": "reference", "points": 1024, "seeds": 1, "chance": 0.04, "rows": {"trained": row},
             "test": {"uri": "modelnet40:data?split=test", "shapes": 2468, "skipped": 0}}  # fmt: skip
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    lines = run(capsys, "results", tmp_path / "probe.json").out.splitlines()
    mine = next(line for line in lines if "| trained |" in line)
    assert "| 90.00 |" in mine
    assert "| 0.0405 |" in mine
    published = next(line for line in lines if "| I2P-MAE |" in line)
    assert "| 93.35 |" in published
    assert "C chosen on test" in published
    assert not any("OBJ-BG" in line or "few-shot, 5-way" in line for line in lines)
    assert "I2P-MAE" not in run(capsys, "results", tmp_path / "probe.json", "--no-published").out


def test_what_is_no_result_is_named(capsys, tmp_path):
    for name, content, said in (
        ("a.json", "[1]", "contains a list"),
        ("b.json", "{", "not valid JSON"),
        (
            "c.json",
            '{"task": "sleep"}',
            "task 'sleep' is none of few-shot, fine-tuning, part segmentation, vote",
        ),
        ("d.json", '{"test": {}}', "a result of unknown form (KeyError: 'uri')"),
    ):
        (tmp_path / name).write_text(content)
        outcome = run(capsys, "results", tmp_path / name)
        assert (outcome.code, said in outcome.err) == (1, True), outcome.err
    (tmp_path / "run").mkdir()
    assert "contains no result; expected a run" in run(capsys, "results", tmp_path / "run").err


def test_evaluate_takes_the_runs_own_corpora_and_repeats_its_score(smoke, capsys):
    recorded = json.loads((smoke.run_dir / "metrics.json").read_text())
    settings = recorded["evaluation_settings"]
    options = ("--points", settings["points"], "--seeds", settings["seeds"], "--json")
    outcome = run(capsys, "evaluate", smoke.run_dir, *options)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["test"]["uri"] == settings["test"]
    assert found["rows"] == recorded["evaluation"]["rows"]
    assert "--c is the C of --protocol reference" in run(capsys, "evaluate", smoke.run_dir, "--c", 1).err
    refused = run(capsys, "evaluate", smoke.run_dir, "--train", "npz:x")
    assert (refused.code, "give both --train and --test, or neither" in refused.err) == (2, True)


def test_evaluate_scores_point_nn_and_logistic_regression_where_asked(smoke, labelled, capsys, tmp_path):
    uris = ("--train", f"npz:{labelled}?split=train", "--test", f"npz:{labelled}?split=test")
    options = (*uris, "--points", 64, "--seeds", 1, "--point-nn", "--logistic")
    outcome = run(capsys, "evaluate", smoke.run_dir, *options)
    assert outcome.code == 0, outcome.err
    assert "  Point-NN (no weights)" in outcome.out
    found = json.loads(run(capsys, "evaluate", smoke.run_dir, *options, "--json").out)
    assert list(found["logistic"]) == list(found["rows"])
    accuracy = [100 * found[key]["point-nn"]["accuracy"] for key in ("rows", "logistic")]
    assert f"1152{accuracy[0]:>11.1f}%{accuracy[1]:>28.1f}%" in outcome.out
    (tmp_path / "found.json").write_text(json.dumps(found))
    every = run(capsys, "evaluate", smoke.run_dir, *uris, "--points", 64, "--seeds", 1, "--feature", "all", "--json")
    rows = json.loads(every.out)["rows"]
    assert (rows["trained"]["feature"], rows["trained-top"]["feature"]) == ("levels", "top")
    assert rows["trained"] == found["rows"]["trained"]
    assert rows["trained-top"]["dimensions"] < rows["trained"]["dimensions"]
    rows = json.loads(run(capsys, "results", tmp_path / "found.json", "--format", "json").out)
    assert [row["who"] for row in rows if row["task"] == "logistic regression"] == list(found["rows"])


def test_evaluate_on_several_sets_is_one_table_of_what_each_alone_gives(smoke, labelled, capsys, tmp_path):
    uris = {
        "npz": (f"npz:{labelled}?split=train", f"npz:{labelled}?split=test"),
        "made": ("synthetic:?count=24&categories=chair,mug", "synthetic:?count=12&split=test&categories=chair,mug"),
    }
    on = [text for name, pair in uris.items() for text in ("--on", f"{name}={','.join(pair)}")]
    options = ("--points", 64, "--seeds", 2, "--feature", "top")
    found = json.loads(run(capsys, "evaluate", smoke.run_dir, *on, *options, "--logistic", "--json").out)
    assert list(found["sets"]) == list(uris)
    train, test = uris["made"]
    alone = run(capsys, "evaluate", smoke.run_dir, "--train", train, "--test", test, *options, "--json")
    assert {key: found["sets"]["made"][key] for key in json.loads(alone.out)} == json.loads(alone.out)
    for kind in ("rows", "logistic"):
        assert list(found["means"][kind]) == ["coordinates", "untrained", "trained"]
        for name, mean in found["means"][kind].items():
            each = [np.mean([one[kind][name]["scores"][seed] for one in found["sets"].values()]) for seed in range(2)]
            assert mean["scores"] == pytest.approx(each)
            assert (mean["accuracy"], mean["spread"]) == (pytest.approx(np.mean(each)), pytest.approx(np.std(each)))
    text = run(capsys, "evaluate", smoke.run_dir, *on, *options).out.splitlines()
    assert text[0] == "linear SVM: 64 points, cross-validated, 2 seeds"
    assert text[1].split() == ["feature", "numbers", "npz", "made", "mean"]
    rows = [*(one["rows"]["trained"] for one in found["sets"].values()), found["means"]["rows"]["trained"]]
    cells = " ".join(f"{100 * row['accuracy']:.1f}% ± {100 * row['spread']:.1f}" for row in rows)
    assert " ".join(text[5].split()) == f"trained encoder top {rows[0]['dimensions']} {cells}"
    assert text[6] == f"  npz: 40 shapes of {uris['npz'][1]}, fitted on 48 of {uris['npz'][0]}; 4 classes"
    (tmp_path / "found.json").write_text(json.dumps(found))
    rows = json.loads(run(capsys, "results", tmp_path / "found.json", "--format", "json").out)
    assert [row["who"] for row in rows if row["set"] == "made" and row["task"] == "linear SVM"] == [
        "always the largest class", "coordinates", "untrained", "trained",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--on", "a=npz:x"), "expected NAME=TRAIN,TEST"),
        (("--on", "a=npz:x,npz:y", "--on", "a=npz:z,npz:y"), "--on a: that name is taken"),
        (("--on", "a=npz:x,npz:y", "--train", "npz:x", "--test", "npz:y"), "leave --train and --test out"),
    ],
)
def test_sets_that_evaluate_cannot_take_are_refused(smoke, capsys, options, message):
    outcome = run(capsys, "evaluate", smoke.run_dir, *options)
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err


def test_finetune_goes_from_an_encoder_and_from_scratch_to_the_table(smoke, labelled, capsys, tmp_path):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        "[classifier]\nclasses = 4\nneighbours = [8, 4, 4]\nradius = [0.5, 0.8, 1.2]\nhidden = [8]\n"
        f'[finetune]\ntrain = "npz:{labelled}?split=train"\ntest = "npz:{labelled}?split=test"\nstored_points = 96\n'
        "points = 64\nepochs = 2\nwarmup_epochs = 0\nbatch_size = 16\ntensorboard = false\n"
    )
    tuned = ("finetune", recipe, "--from", smoke.run_dir, "--protocol", "linear", "--seeds", 2, "--out", tmp_path / "a")
    outcome = run(capsys, *tuned)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert (found["task"], found["protocol"], found["seeds"]) == ("fine-tuning", "linear", [0, 1])
    assert f"± {100 * found['spread']:.2f}" in outcome.out
    assert "scored: the last weights" in outcome.out
    assert run(capsys, *tuned, "--json").out.strip() == json.dumps(found, indent=1)
    scratch = ("finetune", recipe, "--from", "none", "--sizes", smoke.run_dir, "--out", tmp_path / "b")
    outcome = run(capsys, *scratch, "--set", "finetune.select=test")
    assert outcome.code == 0, outcome.err
    assert "the best ON THE TEST SPLIT" in outcome.out
    table = run(capsys, "results", tmp_path / "a", tmp_path / "b").out
    assert "linear, last weights, 64 points, 2 epochs, 2 seeds; scale 0.667..1.5, shift 0.2" in table
    assert "| from scratch |" in table
    assert "full, best on the test split, 64 points" in table
    for arguments, code, said in (
        (("--from", "nowhere"), 2, "--from nowhere: no such directory; expected a run"),
        (("--from", "none", "--sizes", "nowhere"), 2, "--sizes nowhere: no such directory; expected a run"),
        (("--from", "none", "--set", "model.architecture='flat'"), 2, "model.architecture = 'flat' is"),
        (("--from", smoke.run_dir, "--sizes", smoke.run_dir), 2, "--sizes needs --from none"),
        (("--from", smoke.run_dir, "--set", "model.heads=2"), 2, "[model] is given, but the sizes are those of"),
        (("--from", smoke.run_dir, "--set", "classifier.classes=5"), 2, "classifier.classes = 5; npz:"),
        (("--from", smoke.run_dir, "--set", "finetune.epoch=5"), 2, "did you mean finetune.epochs?"),
    ):
        refused = run(capsys, "finetune", recipe, *arguments, "--out", tmp_path / "c")
        assert (refused.code, said in refused.err) == (code, True), refused.err


def test_segment_goes_from_an_encoder_and_by_the_fields_habits_to_the_table(smoke, labelled, capsys, tmp_path):
    with np.load(labelled) as file:
        parts = len(file["part_names"])
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        f"[segmentation]\nparts = {parts}\ncategories = 4\nneighbours = [8, 4, 4]\nradius = [0.5, 0.8, 1.2]\n"
        "embedding = 8\npropagation = [16, 12]\nhidden = [16, 12, 8]\n"
        f'[finetune]\ntrain = "npz:{labelled}?split=train"\ntest = "npz:{labelled}?split=test"\nstored_points = 96\n'
        "points = 64\nepochs = 2\nwarmup_epochs = 0\nbatch_size = 16\ntensorboard = false\n"
    )
    tuned = ("segment", recipe, "--from", smoke.run_dir, "--seeds", 2, "--out", tmp_path / "a")
    outcome = run(capsys, *tuned)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert (found["task"], found["reference"], found["seeds"]) == ("part segmentation", False, [0, 1])
    assert list(found["categories"]) == ["chair", "mug", "car", "airplane"]
    assert np.mean([row["mean"] for row in found["categories"].values()]) == pytest.approx(found["class_mean"])
    assert f"{100 * found['mean']:.2f}% ± {100 * found['spread']:.2f}" in outcome.out
    assert f"  chair   {100 * found['categories']['chair']['mean']:>9.2f}%" in outcome.out
    assert "by the field's habits" not in outcome.out
    assert run(capsys, *tuned, "--json").out.strip() == json.dumps(found, indent=1)
    field = ("segment", recipe, "--from", "none", "--sizes", smoke.run_dir, "--reference", "--out", tmp_path / "b")
    outcome = run(capsys, *field)
    assert outcome.code == 0, outcome.err
    for said in ("by the field's habits (reference)", "the best ON THE TEST SPLIT", "64 points, with replacement",
                 "2 optimiser steps a batch", "largest class mIoU of any epoch on the test split"):  # fmt: skip
        assert said in outcome.out
    rows = json.loads(run(capsys, "results", tmp_path / "a", tmp_path / "b", "--format", "json").out)
    own, other = ([row for row in rows if row["source"] == str(tmp_path / name)] for name in "ab")
    assert [(row["task"], row["value"]) for row in own] == [
        ("part segmentation, instance mIoU", 100 * found["mean"]),
        ("part segmentation, class mIoU", 100 * found["class_mean"]),
    ]
    assert (own[0]["step"], own[1]["step"]) == (100 / 40, None)
    assert all("reference protocol" in row["protocol"] for row in other)
    assert sum("the largest of 2 epochs, chosen on test" in row["protocol"] for row in other) == 2
    for arguments, said in (
        (("--from", smoke.run_dir, "--set", f"segmentation.parts={parts + 1}"), f"segmentation.parts = {parts + 1}"),
        (("--from", "none", "--set", "finetune.updates=3"), "updates = 3 is none of 1, 2"),
        (("--from", smoke.run_dir, "--sizes", smoke.run_dir), "--sizes needs --from none"),
    ):
        refused = run(capsys, "segment", recipe, *arguments, "--out", tmp_path / "c")
        assert (refused.code, said in refused.err) == (2, True), refused.err


def test_a_wrong_number_of_classes_is_refused_before_a_shape_is_read(labelled, capsys, tmp_path, monkeypatch):
    import trainer.downstream.finetuning.loop as loop

    monkeypatch.setattr(loop, "read_sets", lambda *_, **__: pytest.fail("shapes were read"))
    uris = [f"finetune.{split}='npz:{labelled}?split={split}'" for split in ("train", "test")]
    options = [option for uri in uris for option in ("--set", uri)]
    refused = run(capsys, "finetune", "synthetic", "--from", "embedded", *options, "--out", tmp_path / "x")
    assert (refused.code, "classifier.classes = 36; npz:" in refused.err) == (2, True), refused.err


def test_a_classifier_from_the_packages_own_encoder_is_voted_on_as_it_was_trained(labelled, capsys, tmp_path):
    """The vote takes corpus, points and frame from the run, so its plain accuracy is the run's."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        "[classifier]\nclasses = 4\nneighbours = [8, 4, 4]\nradius = [0.5, 0.8, 1.2]\nhidden = []\n"
        f'[finetune]\ntrain = "npz:{labelled}?split=train"\ntest = "npz:{labelled}?split=test"\nstored_points = 200\n'
        'points = 150\nframe = "stored"\nscale = [0.9, 1.2]\nshift = 0.05\nrotation = "batch"\nup = "y"\n'
        "epochs = 2\nwarmup_epochs = 0\nbatch_size = 16\ntensorboard = false\n"
    )
    outcome = run(capsys, "finetune", recipe, "--from", "embedded", "--out", tmp_path / "run", "--json")
    assert outcome.code == 0, outcome.err
    tuned = json.loads(outcome.out)
    assert tuned["from"] == "embedded"
    seed = tmp_path / "run" / "seed-0"
    voted = json.loads(run(capsys, "vote", seed, "--rounds", 1, "--draws", 1, "--json").out)
    assert (voted["test"]["uri"], voted["settings"]["points"]) == (f"npz:{labelled}?split=test", 150)
    assert {name: voted["settings"][name] for name in ("scale", "shift", "rotation", "up", "sharing")} == {
        "scale": [0.9, 1.2], "shift": 0.05, "rotation": "batch", "up": "y", "sharing": "cloud"
    }  # fmt: skip
    other = run(capsys, "vote", seed, "--rounds", 1, "--draws", 1, "--scale", 1, 1, "--rotation", "none")
    assert "draws: scale 1..1, shift 0.05; one shape" in other.out
    assert (voted["plain"], voted["plain_class"]) == (tuned["scores"][0], tuned["class_scores"][0])
    for arguments, code, said in (
        ((seed, "--points", 64), 2, "--points 64 is too few: the classifier needs at least 128"),
        ((seed, "--stored-points", 140), 2, "--stored-points 140 is less than --points 150"),
        (("embedded",), 1, "is of kind pretraining; expected a fine-tuned model"),
        ((tmp_path / "run",), 1, "neither a checkpoint"),
        ((seed, "--rotation", "none", "--up", "z"), 2, "--up z with --rotation none, which turns nothing"),
    ):
        refused = run(capsys, "vote", *arguments)
        assert (refused.code, said in refused.err) == (code, True), refused.err
    described = run(capsys, "checkpoint", "info", seed)
    assert described.code == 0, described.err
    assert "kind        classifier" in described.out
    slim = run(capsys, "checkpoint", "slim", seed, "--out", tmp_path / "slim")
    assert slim.code == 0, slim.err


def test_an_imported_classifier_does_not_say_what_it_was_tested_on(tuned, capsys):
    refused = run(capsys, "vote", tuned)
    assert (refused.code, "does not record its test corpus; give --test" in refused.err) == (2, True), refused.err


def test_fewshot_refuses_options_that_would_do_nothing(capsys):
    for arguments, said in (
        (("--train", "npz:x", "--points", 64, "--stored-points", 40), "--stored-points 40 is less than --points 64"),
        (("--stored", "folds", "--queries", 5), "--test and --queries go with --train"),
    ):
        refused = run(capsys, "fewshot", "coordinates", *arguments)
        assert (refused.code, said in refused.err) == (2, True), refused.err


def test_embed_writes_nothing_where_a_picture_cannot_be_drawn(capsys, tmp_path):
    np.savez(tmp_path / "one.npz", points=np.random.default_rng(0).normal(size=(1, 64, 3)).astype("f4"))
    arguments = ("coordinates", f"npz:{tmp_path}/one.npz", "--points", 64, "--neighbours", tmp_path / "near.png")
    refused = run(capsys, "embed", *arguments, "--out", tmp_path / "x.npz")
    assert (refused.code, "a corpus of one shape has no neighbours" in refused.err) == (2, True), refused.err
    assert not (tmp_path / "x.npz").exists()
