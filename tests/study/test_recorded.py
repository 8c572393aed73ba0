"""A study that goes on from the measurements of another: what counts as done, and what is refused."""

import json
from types import SimpleNamespace

import pytest

from cli.study.arms import TEACHERS
from cli.study.plan import plan_runs
from cli.study.report import write_measurements
from tests.support.commands import run

ONLY = ("3d-random", "full:embedded")


def planned(folder, seeds):
    given = {"teachers": TEACHERS, "main": "embedded", "real": [], "only": ONLY}
    return plan_runs("study", [], seeds=seeds, folder=folder, **given)


def result(one, accuracy=0.5):
    """A result as a run of these settings leaves it."""
    scores = {"accuracy": accuracy, "features": {"levels": {"accuracy": accuracy, "numbers": 9}}}
    told = {"arm": one.arm, "teacher": one.teacher, "seed": one.seed, "settings": json.loads(one.settings)}
    return told | {"cache": f"cache-of-{one.cache}", "sets": {"synthetic": scores}, "seconds": 1.0}


@pytest.fixture
def done(monkeypatch):
    """The titles of the runs that were done, which takes no time here; -> of a run a score of 3/4."""
    titles = []

    def do(one, cache):
        titles.append(one.title)
        one.folder.mkdir(parents=True)
        found = result(one, 0.75) | {"cache": cache.name}
        (one.folder / "result.json").write_text(json.dumps(found))
        return found

    def build(experiment):
        return SimpleNamespace(path=SimpleNamespace(name=NAMES[experiment.teacher.pretrained]))

    monkeypatch.setattr("cli.study.worker.do", do)
    monkeypatch.setattr("cli.study.workers.do_all", lambda do, jobs, _: ((job, do(*given)) for job, given in jobs))
    monkeypatch.setattr("cli.actions.build_cache.build_from", build)
    monkeypatch.setattr("cli.study.plan.cache_name", lambda cache: cache.name)
    return titles


NAMES = {"embedded": "cache-of-embedded-1", "random": "cache-of-random-1"}


def guidance(capsys, folder, *more, seeds=2):
    only = [text for arm in ONLY for text in ("--only", arm)]
    return run(capsys, "study", "guidance", "--out", folder, "--seeds", seeds, *only, *more)


def test_only_what_is_not_recorded_is_run_and_the_report_has_both(capsys, tmp_path, done):
    known = tmp_path / "known.json"
    write_measurements([result(one) for one in planned(tmp_path, 1)], known, "3d-random")
    first = guidance(capsys, tmp_path / "on", "--from", known)
    assert first.code == 0, first.err
    assert done == [f"{arm}, {teacher}, seed 1" for arm, teacher in (("untrained", "none"), ("3d-random", "none"),
                                                                     ("full", "embedded"))]  # fmt: skip
    assert "left out" not in first.err
    runs = json.loads((tmp_path / "on" / "runs.json").read_text())["runs"]
    scores = [(one["arm"], one["seed"], one["sets"]["synthetic"]["accuracy"]) for one in runs]
    assert scores == [(arm, seed, 0.5 + seed / 4) for arm in ("untrained", "3d-random", "full") for seed in (0, 1)]
    assert "| full | embedded | 2 | levels | 9 | 62.5 ± 17.7 |" in first.out
    # What was run here need not be run again, and may come from both places as long as they say the same.
    again = guidance(capsys, tmp_path / "on", "--from", known, "--from", tmp_path / "on" / "runs.json")
    assert (again.code, again.out, len(done)) == (0, first.out, 3)
    runs[-1]["sets"]["synthetic"]["accuracy"] = 0.25
    write_measurements(runs, known, "3d-random")
    refused = guidance(capsys, tmp_path / "on", "--from", known)
    assert refused.code == 2
    assert "tells the run full, embedded, seed 1 differently" in refused.err


def test_recorded_runs_that_the_study_does_not_have_are_left_out_and_counted(capsys, tmp_path, done):
    write_measurements([result(one) for one in planned(tmp_path, 3)], tmp_path / "known.json", "3d-random")
    answer = guidance(capsys, tmp_path / "on", "--from", tmp_path / "known.json", seeds=1)
    assert (answer.code, done) == (0, [])
    assert "6 of 9 recorded runs are not of this study and are left out" in answer.err
    assert len(json.loads((tmp_path / "on" / "runs.json").read_text())["runs"]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one["settings"]["trainer"].update(learning_rate=0.5), "learning_rate was 0.5, is now 0.001"),
        (lambda one: one.update(cache="cache-of-another"), "its result belongs to the cache cache-of-another, but"),
        (lambda one: one.pop("cache"), "does not name the cache of each of its teachers"),
        (lambda one: one.update(further=["b"]), "does not name the cache of each of its teachers"),
        (lambda one: one.update(settings={"trainer": 3}), "runs.0.settings.trainer: Input should be a valid"),
    ],
)  # fmt: skip
def test_a_recorded_run_of_something_else_is_refused_before_anything_is_run(capsys, tmp_path, done, change, message):
    results = [result(one) for one in planned(tmp_path, 1)]
    change(results[0])
    write_measurements(results, tmp_path / "known.json", "3d-random")
    answer = guidance(capsys, tmp_path / "on", "--from", tmp_path / "known.json")
    assert (answer.code, done) == (2, [])
    assert message in answer.err
    assert "known.json" in answer.err


def test_recorded_runs_scored_on_other_sets_than_they_say_are_refused(capsys, tmp_path, done):
    results = [result(one) for one in planned(tmp_path, 1)]
    for one in results:
        one["sets"] = {"other": one["sets"]["synthetic"]}
    write_measurements(results, tmp_path / "known.json", "3d-random")
    answer = guidance(capsys, tmp_path / "on", "--from", tmp_path / "known.json")
    assert (answer.code, done) == (2, [])
    assert "is scored on other, but its settings name synthetic" in answer.err
