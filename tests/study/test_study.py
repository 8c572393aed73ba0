"""A tiny study, end to end: every kind of arm, stopped and gone on with, failing and reported."""

import json
from pathlib import Path

import pytest

from cli.actions.build_cache import build_from
from cli.experiment.toml import ConfigError, load_experiment, to_toml
from cli.study.arms import ARMS, SCALING, TEACHERS
from cli.study.plan import cache_settings, plan_runs, result_of
from cli.study.report import markdown, summarise
from cli.study.worker import do
from tests.support.commands import run
from tests.support.in_process import PLACE, do_all_here
from tests.trainer.test_second_student import TwoLayer, TwoLayerConfig
from trainer.checkpoints.files import read_header
from trainer.models import build, config
from trainer.pretraining.loop import _Run

TINY = [
    "corpus.uri=synthetic:?count=8&seed=0", "corpus.points=64", "trainer.points=64", "trainer.batch_size=4",
    "trainer.epochs=4", "trainer.warmup_epochs=0", "model.groups=[16, 8, 4]", "model.neighbours=[4, 4, 4]",
    "model.encoder_dims=[12, 24, 48]", "model.decoder_dims=[48, 24]", "evaluation.points=64",
    "evaluation.stored_points=64", "evaluation.train=synthetic:?count=24&seed=1&categories=chair,table,mug",
    "evaluation.test=synthetic:?count=9&seed=1&split=test&categories=chair,table,mug", "cache.shapes_per_shard=8",
    "trainer.checkpoint_every=2",
]  # fmt: skip


@pytest.fixture
def here(monkeypatch):
    """Runs are done in this process; tests/study/test_workers.py is of the others."""
    monkeypatch.setattr(PLACE, do_all_here)


def settings(folder):
    return [*TINY, f"cache.root={folder / 'caches'}"]


def guidance(capsys, folder, *more):
    overrides = [text for setting in settings(folder) for text in ("--set", setting)]
    return run(capsys, "study", "guidance", "--out", folder / "study", "--seeds", 1, *overrides, *more)


def test_a_study_runs_once_and_is_then_only_reported(capsys, tmp_path, here):
    only = [text for arm in ("3d-random", "full", "poses4") for text in ("--only", arm)]
    first = guidance(capsys, tmp_path, *only)
    assert first.code == 0, first.err
    for row in ("untrained | none", "3d-random | none", "full | embedded", "full | random", "poses4 | embedded"):
        assert row in first.out
    found = json.loads((tmp_path / "study" / "embedded" / "full" / "seed-0" / "result.json").read_text())
    assert found["steps"] == 8
    assert 0 <= found["visible"]["others"] <= 1
    posed = json.loads((tmp_path / "study" / "embedded" / "poses4" / "seed-0" / "result.json").read_text())
    assert posed["steps"] == 8  # one pose of each shape an epoch
    assert (tmp_path / "study" / "study.png").stat().st_size > 1000
    again = guidance(capsys, tmp_path, *only)
    assert again.code == 0
    assert again.out == first.out
    assert "runs in" not in again.err
    elsewhere = guidance(
        capsys, tmp_path, *only, "--from", tmp_path / "study" / "runs.json", "--out", tmp_path / "other"
    )
    assert (elsewhere.code, elsewhere.out) == (0, first.out)
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [
        "runs.json",
        "study.json",
        "study.md",
        "study.png",
    ]
    changed = guidance(capsys, tmp_path, *only, "--set", "trainer.learning_rate=0.5")
    assert changed.code == 2
    assert "has a result of other settings" in changed.err
    assert "trainer.learning_rate was 0.001, is now 0.5" in changed.err
    summary = json.loads((tmp_path / "study" / "study.json").read_text())
    assert summary["seconds"] > 0
    # A teacher that has become another one under the same settings is noticed by the cache it makes.
    old = tmp_path / "study" / "embedded" / "full" / "seed-0" / "result.json"
    old.write_text(old.read_text().replace(found["cache"], "synthetic-of-another-teacher"))
    (tmp_path / "study" / "embedded" / "3d-saliency").mkdir()
    mixed = guidance(capsys, tmp_path, *only, "--only", "3d-saliency")
    assert mixed.code == 2
    assert "its result belongs to the cache synthetic-of-another-teacher" in mixed.err


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path):
    whole, stopped = (next(run for run in plan(tmp_path / name, only=["full"]) if run.arm == "full")
                      for name in ("whole", "stopped"))  # fmt: skip
    cache = build_from(cache_settings(whole)).path
    expected = do(whole, cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.pretraining.loop._Run._checkpoint", _checkpoint_then_stop)
        with pytest.raises(KeyboardInterrupt):
            do(stopped, cache)
    assert result_of(stopped) is None
    found = do(stopped, cache)
    assert result_of(stopped) == found
    log = [json.loads(line) for line in (stopped.folder / "train.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log if line["event"] == "start"] == [0, 2]
    for key in ("losses", "steps", "visible", "sets", "settings"):
        assert found[key] == expected[key]


def test_a_study_and_a_pretraining_share_a_cache_in_either_order(tmp_path):
    """The study trains on its own 8 shapes, to the byte as on a cache of its own, whatever else its cache holds."""

    def prepared(name):
        run = next(run for run in plan(tmp_path / name, only=["full"]) if run.arm == "full")
        larger = load_experiment("study", [*run.overrides, "corpus.uri=synthetic:?count=12&seed=0"])
        return run, larger

    alone, _ = prepared("alone")
    expected = do(alone, build_from(cache_settings(alone)).path)
    assert expected["records"] == 8

    after, larger = prepared("after")
    cache = build_from(larger).path
    found = build_from(cache_settings(after))
    assert (found.path, found.shapes, found.others, found.already_complete) == (cache, 8, 4, True)
    assert weights(after, do(after, cache)) == weights(alone, expected)

    before, larger = prepared("before")
    cache = build_from(cache_settings(before)).path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.pretraining.loop._Run._checkpoint", _checkpoint_then_stop)
        with pytest.raises(KeyboardInterrupt):
            do(before, cache)
    assert build_from(larger).shapes == 12
    assert weights(before, do(before, cache)) == weights(alone, expected)


def test_a_scaling_study_trains_on_parts_of_one_cache(capsys, tmp_path, here):
    overrides = [text for setting in settings(tmp_path) for text in ("--set", setting)]
    overrides += ["--set", "trainer.batch_size=2", "--set", "trainer.epochs=1", "--set", "trainer.checkpoint_every=9"]
    answer = run(capsys, "study", "scaling", "--out", tmp_path / "study", "--seeds", 1, *overrides)
    assert answer.code == 1  # a tenth of 8 shapes is one, and no batch
    assert "fewer than trainer.batch_size" in answer.err
    for arm, records, steps in (("share-0.3", 2, 3), ("share-1.0", 8, 4)):
        assert f"{arm} | embedded" in answer.out
        found = json.loads((tmp_path / "study" / "embedded" / arm / "seed-0" / "result.json").read_text())
        assert (found["records"], found["steps"]) == (records, steps)
        assert ("shapes" in found) == (records < 8)
    assert len(list((tmp_path / "caches").iterdir())) == 1
    assert "gain" not in answer.out  # over a tenth, of which there is nothing
    assert "arms are share-0.1" in run(capsys, "study", "scaling", "--only", "full").err


def test_shares_take_as_many_steps_and_warm_up_as_long():
    given = {"teachers": TEACHERS, "main": "embedded", "seeds": 1, "real": [], "only": []}
    runs = plan_runs("study", [], folder=Path("x"), arms=SCALING, **given)
    trainers = {run.arm: cache_settings(run).trainer for run in runs}
    assert {arm: (trainer.epochs, trainer.warmup_epochs) for arm, trainer in trainers.items()} == {
        "untrained": (12, 1), "share-0.1": (120, 10), "share-0.3": (40, 3), "share-1.0": (12, 1),
    }  # fmt: skip
    assert [cache_settings(run).corpus.share for run in runs] == [1.0, 0.1, 0.3, 1.0]


def test_masks_take_as_many_steps_of_as_many_samples():
    given = {"teachers": TEACHERS, "main": "embedded", "seeds": 1, "real": [], "only": ["masks4", "full-cold"]}
    _, masks, cold = map(cache_settings, plan_runs("study", [], folder=Path("x"), **given))
    assert masks.masking.per_shape == 4
    assert (masks.trainer.batch_size, masks.trainer.epochs) == (32 // 4, 12 // 4)
    assert (masks.trainer.warmup_epochs, cold.trainer.warmup_epochs) == (0, 0)
    assert (cold.trainer.batch_size, cold.trainer.epochs, cold.masking.per_shape) == (32, 12, 1)


def weights(run, result):
    """The end of a run: its numbers and every byte of its weights."""
    [last] = sorted((run.folder / "checkpoints").iterdir())[-1:]
    numbers = {key: result[key] for key in ("losses", "steps", "visible", "sets", "records")}
    return numbers, (last / "model.safetensors").read_bytes(), (last / "checkpoint.json").read_bytes()


def test_a_selection_has_results_of_its_own(tmp_path):
    def of(*overrides):
        given = {"teachers": TEACHERS, "main": "embedded", "seeds": 1, "real": [], "only": ["full"]}
        runs = plan_runs("study", [*settings(tmp_path), *overrides], folder=tmp_path / "study", **given)
        return next(run for run in runs if run.arm == "full")

    (tmp_path / "few.txt").write_text("a\nb\n")
    whole, share = of(), of("corpus.share=0.5")
    listed = of(f"corpus.only={tmp_path / 'few.txt'}")
    assert "share" not in whole.settings  # as in results of before
    assert len({whole.cache, share.cache, listed.cache}) == 3
    assert len({whole.settings, share.settings, listed.settings}) == 3
    (tmp_path / "few.txt").write_text("b\r\na")
    assert of(f"corpus.only={tmp_path / 'few.txt'}").settings == listed.settings
    (tmp_path / "few.txt").write_text("a\nc\n")
    assert of(f"corpus.only={tmp_path / 'few.txt'}").settings != listed.settings


def test_a_live_teacher_speaks_in_the_channels_of_the_cache(tmp_path):
    given = {"teachers": TEACHERS, "main": "embedded", "seeds": 1, "real": [], "only": ["live"]}
    overrides = [*settings(tmp_path), "cache.channels=16", "trainer.epochs=1"]
    run = plan_runs("study", overrides, folder=tmp_path / "study", **given)[-1]
    assert run.arm == "live"
    do(run, build_from(cache_settings(run)).path)
    [last] = sorted((run.folder / "checkpoints").iterdir())
    assert read_header(last).teacher == {"channels": 16, "views": 3}


def test_another_student_is_studied_too_without_what_it_has_not(tmp_path, monkeypatch):
    monkeypatch.setitem(config.ARCHITECTURES, "two-layer", TwoLayerConfig)
    monkeypatch.setitem(build.STUDENTS, "two-layer", TwoLayer)
    tables = to_toml(load_experiment("study", settings(tmp_path)))
    before, rest = tables.split("[model]\n")
    after = rest[rest.index("\n[") :]
    (tmp_path / "other.toml").write_text(f'{before}[model]\narchitecture = "two-layer"\n{after}')
    given = {"teachers": TEACHERS, "main": "embedded", "seeds": 1, "real": [], "only": ["full"]}
    overrides = ["evaluation.feature=top", "trainer.epochs=1"]
    runs = plan_runs(str(tmp_path / "other.toml"), overrides, folder=tmp_path / "study", **given)
    cache = build_from(cache_settings(runs[0])).path
    results = [do(run, cache) for run in runs if run.teacher != "random"]
    assert [result["arm"] for result in results] == ["untrained", "full"]
    assert all("visible" not in result for result in results)
    assert "full | embedded" in markdown(summarise(results))


_checkpoint = _Run._checkpoint


def _checkpoint_then_stop(run, emit):
    _checkpoint(run, emit)
    if run.progress.epoch == 2:
        raise KeyboardInterrupt


def test_a_failing_run_is_reported_and_the_others_go_on(capsys, tmp_path, monkeypatch):
    blocked = tmp_path / "study" / "random" / "full"
    blocked.mkdir(parents=True)
    (blocked / "seed-0").write_text("a file where the run's folder should be")
    answer = guidance(capsys, tmp_path, "--only", "full", "--workers", 1)  # in a process of its own
    assert answer.code == 1
    assert "FAILED full, random, seed 0" in answer.err
    assert "full | embedded" in answer.out
    (blocked / "seed-0").unlink()
    monkeypatch.setattr(PLACE, do_all_here)
    assert guidance(capsys, tmp_path, "--only", "full").code == 0


def plan(folder, **options):
    given = {"teachers": TEACHERS, "main": "embedded", "seeds": 2, "real": [], "only": []} | options
    return plan_runs("study", settings(folder), folder=folder, **given)


def test_every_arm_is_planned_seed_by_seed(tmp_path):
    runs = plan(tmp_path)
    each = sum(arm.teachers == "each" for arm in ARMS)
    alone = len(ARMS) - each
    assert len(runs) == 2 * (1 + alone + each * len(TEACHERS))
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len({run.folder for run in runs}) == len(runs)
    assert len({run.settings for run in runs}) >= len(runs) - 4  # "untrained" and "full-cold" have those of "full"
    assert len(plan(tmp_path, only=["full:random", "live"])) == 2 * (1 + 2)
    assert {run.cache for run in runs} == {"embedded-1", "embedded-4", "random-1"}
    assert all(result_of(run) is None for run in runs)


def test_the_full_preset_is_sound_for_every_arm():
    assert plan_runs("study", [], teachers=TEACHERS, main="embedded", seeds=1, real=[], only=[], folder=Path("x"))


BOTH = {"both": ("embedded+random", "teachers.weights_2d=[1, 0.5]")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["ful"]}, "arms are"),
        ({"main": "x"}, "teachers are"),
        ({"only": ["full:x"]}, "full runs with random, embedded"),
        ({"only": ["live:random"]}, "live runs with embedded"),
        ({"teachers": TEACHERS | {"more": ("embedded+none",)}}, "'none' is no teacher of its own"),
        ({"teachers": TEACHERS | BOTH | {"more": ("both+random",)}}, "'both' is no teacher of its own"),
        ({"teachers": TEACHERS | {"more": ("random+random",)}}, "expected two teachers or more, each once"),
        ({"teachers": TEACHERS | BOTH, "main": "both", "only": ["live"]}, r"live with the teacher both.*\n.*several"),
    ],
)
def test_unknown_arms_and_teachers_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, **options)


def test_the_options_are_checked(capsys):
    assert "NAME=TRAIN,TEST" in run(capsys, "study", "guidance", "--real", "x").err
    assert "NAME=key=value" in run(capsys, "study", "guidance", "--teacher", "x").err
    assert "NAME=A+B" in run(capsys, "study", "guidance", "--teacher", "x=seed=1,y").err
    assert "NAME=URI" in run(capsys, "study", "guidance", "--pretrain-on", "a/b=folder:x").err
    assert "is no JSON" in run(capsys, "study", "guidance", "--from", __file__).err
    assert "is no JSON" in run(capsys, "study", "guidance", "--report", "--from", __file__).err
    assert "i2p study guidance" in run(capsys, "study", "guidance", "--help").out


def test_teachers_together_and_corpora_in_turn(capsys, tmp_path, here):
    """Two teachers in one run, on two corpora; measured, exported, and reported again from the export."""
    overrides = [text for setting in settings(tmp_path) for text in ("--set", setting)]
    overrides += ["--set", "trainer.epochs=1", "--set", "trainer.checkpoint_every=9"]
    options = ["--out", tmp_path / "study", "--seeds", 1, *overrides]
    options += ["--teacher", "both=embedded+random,teachers.weights_2d=[1, 0.5]"]
    options += ["--pretrain-on", "eight=synthetic:?count=8&seed=0", "--pretrain-on", "five=synthetic:?count=5&seed=7"]
    arms = ["--only", "3d-random", "--only", "full:both", "--only", "global-random:both"]
    first = run(capsys, "study", "guidance", *options, *arms)
    assert first.code == 0, first.err
    assert "| arm | teacher | trained on | seeds |" in first.out
    found = {}
    for corpus, shapes in (("eight", 8), ("five", 5)):
        folder = tmp_path / "study" / f"both@{corpus}" / "full" / "seed-0"
        found[corpus] = json.loads((folder / "result.json").read_text())
        assert (found[corpus]["records"], found[corpus]["corpus"]) == (shapes, corpus)
        assert {"loss_2d_2", "loss_global_2"} <= set(found[corpus]["losses"])
        [last] = sorted((folder / "checkpoints").iterdir())
        assert read_header(last).config["teachers"] == {"weights_2d": [1, 0.5], "weights_global": [1, 1]}
        other = json.loads((folder.parents[1] / "global-random" / "seed-0" / "result.json").read_text())
        assert "loss_2d_2" not in other["losses"]
        assert other["losses"]["loss_global_2"] > 0
    assert len({*found["eight"]["further"], *found["five"]["further"], found["eight"]["cache"]}) == 3
    assert json.loads(json.dumps(found["eight"]["settings"]["further"]))["2"]["teacher"]["pretrained"] == "random"
    again = run(capsys, "study", "guidance", *options, *arms, "--report")
    assert (again.code, again.out) == (0, first.out)
    measured = tmp_path / "study" / "runs.json"
    told = run(capsys, "study", "guidance", "--report", "--from", measured, "--from", measured)
    assert (told.code, told.out) == (0, first.out)
    content = json.loads(measured.read_text())
    assert [one["arm"] for one in content["runs"]].count("full") == 2
    assert content["runs"][0]["settings"]["trainer"]["seed"] == 0
    content["runs"][0]["sets"]["synthetic"]["features"]["levels"]["accuracy"] = 0.125
    (tmp_path / "other.json").write_text(json.dumps(content))
    refused = run(capsys, "study", "guidance", "--report", "--from", measured, "--from", tmp_path / "other.json")
    assert refused.code == 2
    assert "differently" in refused.err
    del content["runs"][0]["seed"]
    (tmp_path / "other.json").write_text(json.dumps(content))
    refused = run(capsys, "study", "guidance", "--report", "--from", tmp_path / "other.json")
    assert "runs.0.seed: Field required" in refused.err


def test_names_that_are_taken_and_caches_that_a_study_does_not_read_are_refused(tmp_path):
    common = {"teachers": TEACHERS, "main": "embedded", "seeds": 1, "only": ["full"], "folder": tmp_path}
    sets = [("synthetic", "synthetic:?count=4", "synthetic:?count=4"), ("a", "npz:x", "npz:y"), ("a", "npz:z", "npz:w")]
    with pytest.raises(ConfigError, match=r"--real a: that name is taken[^$]*--real synthetic: that name is taken"):
        plan_runs("study", [], real=sets, **common)
    with pytest.raises(ConfigError, match=r"teachers\.caches is not used by a study"):
        plan_runs("study", ['teachers.caches=["/nowhere"]'], real=[], **common)
