"""The fault harness: `python -m tests.faults` kills the builder of a cache at random moments and reruns it.

python -m tests.faults                        # 50 kills or more over all scenarios, about ten minutes of one core
python -m tests.faults --kills 12 --seed 7 --only webdataset
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.support.faults import Scenario
from tests.support.kills import Campaign, table

# In-process builds cost a second each, local clusters and new interpreters ten: they have fewer turns.
CYCLE = (
    Scenario(workers=1),
    Scenario(workers=2, format="webdataset"),
    Scenario(workers=4, features="int8"),
    Scenario(scheduler="processes", workers=2),
    Scenario(workers=4, format="webdataset", features="int8"),
    Scenario(workers=2, poses=2),
    Scenario(workers=1, format="webdataset", features="int8"),
    Scenario(workers=2, format="webdataset", start="cold"),
    Scenario(workers=2, features="int8"),
    Scenario(workers=4),
    Scenario(workers=4, format="webdataset"),
    Scenario(scheduler="processes", workers=4, format="webdataset", features="int8"),
    Scenario(workers=1, features="int8"),
    Scenario(workers=1, format="webdataset"),
    Scenario(scheduler="processes", workers=1, format="webdataset"),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description="Kill (SIGKILL) the builder of a teacher cache at random moments, rerun it, and check that the "
        "cache is sound, holds each shape once and is byte for byte the one of an undisturbed build. A kill counts "
        "only if the builder was still at work. Exit code 0: the cache always was; 1: it was not, and is kept.",
        epilog="Example: nice python -m tests.faults --kills 50 --seed 3",
    )
    parser.add_argument("--kills", type=int, default=50, help="kills that must land, at least [50]")
    parser.add_argument("--seed", type=int, help="of scenarios, moments and aims [drawn, and printed]")
    parser.add_argument(
        "--only", default="", help="scenarios whose name holds this, such as processes, int8 or 'threads 4'"
    )
    parser.add_argument("--folder", type=Path, help="where to build [a temporary folder]")
    chosen = parser.parse_args()
    cycle = [scenario for scenario in CYCLE if chosen.only in str(scenario)]
    if not cycle or chosen.kills < 1:
        parser.error(f"no kills to make: --kills {chosen.kills}, --only matches {len(cycle)} of {len(CYCLE)} scenarios")
    os.environ["PYTHONWARNINGS"] = (
        "ignore:resource_tracker"  # what the killed could not give back is counted at the end
    )
    seed = chosen.seed if chosen.seed is not None else time.time_ns() % 10**6
    print(f"seed {seed}: {chosen.kills} kills over {len(cycle)} scenarios", flush=True)
    begun = time.perf_counter()
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    campaign, turn = Campaign(folder, seed), 0
    try:
        while len(campaign.kills) < chosen.kills:
            scenario = cycle[turn % len(cycle)]
            turn += 1
            kills = campaign.round(scenario)
            met = "; ".join(f"{'+'.join(sorted(kill.stages))} ({kill.shards} shards, {kill.whom})" for kill in kills)
            seconds = time.perf_counter() - begun
            print(f"{seconds:5.0f} s {len(campaign.kills):4}  {scenario}: {met or 'ended before'}", flush=True)
    except AssertionError as error:
        print(f"\nFAILED after {len(campaign.kills)} kills: {error}", *getattr(error, "__notes__", ()), sep="\n")
        return 1
    if chosen.folder is None:
        shutil.rmtree(folder)
    print(f"\n{table(campaign)}\n")
    print(
        f"{len(campaign.kills)} kills, {turn} reruns, {campaign.missed} builders had ended before their kill; "
        f"{time.perf_counter() - begun:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
