"""The fault harness with few kills: SIGKILL at any moment costs at most the shards in work, and a rerun mends it.

`python -m tests.faults` makes fifty kills and more, over local clusters and new interpreters too (docs/promises.md).
"""

import pytest

from tests.support.faults import Scenario
from tests.support.kills import Campaign, table

SCENARIOS = (
    Scenario(workers=1),
    Scenario(workers=2, format="webdataset", features="int8"),
    Scenario(workers=4, features="int8"),
    Scenario(workers=4, format="webdataset"),
    Scenario(workers=2, poses=2),
)
KILLS = 8
MOST_ROUNDS = 40


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("kills"), seed=20)


def test_builders_in_threads_killed_at_random_moments(campaign: Campaign) -> None:
    rounds = 0
    while len(campaign.kills) < KILLS or rounds < len(SCENARIOS):
        campaign.round(SCENARIOS[rounds % len(SCENARIOS)])
        rounds += 1
        assert rounds < MOST_ROUNDS, f"most builders ended before their kill:\n{table(campaign)}"
    met = {stage for kill in campaign.kills for stage in kill.stages}
    assert len(met) >= 3, f"the kills met builders at work, and in several stages:\n{table(campaign)}"


def test_a_driver_killed_while_its_processes_work(campaign: Campaign) -> None:
    """Its Dask workers end with it, or go on for a moment beside the next builder: neither changes a byte."""
    before = len(campaign.kills)
    for _ in range(MOST_ROUNDS):
        if campaign.round(Scenario(scheduler="processes", workers=2), kills=1):
            break
    assert len(campaign.kills) == before + 1
