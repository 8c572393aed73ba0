"""Runs that another folder or machine has done, from a study's runs.json: which of a plan they are."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cli.experiment.toml import ConfigError
from cli.study.plan import Run, differences
from cli.study.report import run_key

__all__ = ["recorded_results"]


def recorded_results(
    runs: Sequence[Run], recorded: Sequence[Mapping[str, Any]], source: str
) -> tuple[dict[Run, Mapping[str, Any]], int]:
    """Find the recorded results of a plan's runs; -> those found, and how many records are of no planned run.

    recorded  results as `cli.study.report.read_measurements` returns them.
    source    where they come from, for messages.

    Paths and URIs in settings are compared as they were given. Raises ConfigError for a result of other settings, of
    other sets than its settings say, or that does not name the caches it was obtained on.
    """
    planned = {(run.arm, run.teacher, run.corpus, run.seed): run for run in runs}
    found: dict[Run, Mapping[str, Any]] = {}
    for result in recorded:
        run = planned.get(run_key(result))
        if run is None:
            continue
        faults = list(differences(result["settings"], json.loads(run.settings)))
        if faults:
            faults.append("repeat the settings, or leave the file out")
            raise ConfigError(f"{source}: {run.title}, which is a result of other settings", faults)
        names = [name for name, *_ in run.sets]
        if sorted(result["sets"]) != sorted(names):
            faults.append(f"is scored on {', '.join(result['sets'])}, but its settings name {', '.join(names)}")
        if "cache" not in result or len(result.get("further", ())) != len(run.further):
            faults.append("does not name the cache of each of its teachers")
        if faults:
            raise ConfigError(f"{source}: {run.title}", faults)
        found[run] = result
    return found, len(recorded) - len(found)
