"""What sets the runs of a study apart, and what must not."""

import json
from pathlib import Path

import pytest

from cli.experiment.toml import load_experiment
from cli.study.arms import ARMS, TEACHERS
from cli.study.plan import Run, plan_runs

SEEDS = 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return plan_runs(
        "study",
        (),
        teachers=TEACHERS,
        main="embedded",
        seeds=SEEDS,
        real=(),
        only=(),
        folder=tmp_path_factory.mktemp("s"),
    )


def test_every_run_trains_under_the_seed_it_is_filed_under(runs: list[Run]) -> None:
    for run in runs:
        assert load_experiment(run.config, run.overrides).trainer.seed == run.seed
        assert json.loads(run.settings)["trainer"]["seed"] == run.seed
    assert {run.seed for run in runs} == set(range(SEEDS))


def test_no_two_runs_share_a_folder(runs: list[Run]) -> None:
    folders = [Path(run.folder) for run in runs]
    assert len(set(folders)) == len(runs)
    assert not any(one in other.parents for one in folders for other in folders)


def test_runs_of_one_arm_differ_in_their_seed_alone(runs: list[Run]) -> None:
    for arm in ARMS:
        for teacher in {run.teacher for run in runs if run.arm == arm.name}:
            same = [json.loads(run.settings) for run in runs if (run.arm, run.teacher) == (arm.name, teacher)]
            for settings in same:
                del settings["trainer"]["seed"]
            assert all(settings == same[0] for settings in same)


def test_every_run_is_scored_on_the_same_shapes(runs: list[Run]) -> None:
    assert len({run.sets for run in runs}) == 1
    for run in runs:
        for _, train, test in run.sets:
            assert train != test
