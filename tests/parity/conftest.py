"""The recorded folder, and each section's result on it, computed once."""

from collections.abc import Callable
from functools import cache

import pytest

from benchmarks.parity.models import reference_settings
from benchmarks.parity.recorded import Recorded
from benchmarks.parity.runner import Result, run_section
from cli.experiment.sections import Experiment
from tests.support.reference import shared_dir


@pytest.fixture(scope="session")
def settings() -> Experiment:
    return reference_settings()


@pytest.fixture(scope="session")
def result_of(settings: Experiment) -> Callable[[str], Result]:
    """A section's result, by name."""
    recorded = Recorded(shared_dir("reference"))
    return cache(lambda name: run_section(name, recorded, settings))
