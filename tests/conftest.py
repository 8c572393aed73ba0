"""For all tests: quick rooms first, no test a race against the clock, and in CI no skip that is not expected.

In CI a skip for want of a GPU, of a browser or of the right to mount is expected; any other fails the run.
"""

import os
from pathlib import Path

import hypothesis
import pytest

EXPECTED_IN_CI = ("no CUDA device", "mounting a tmpfs is not permitted here", "no Chromium on this machine")
_unexpected: list[str] = []

QUICK_FIRST = (
    "test_layout.py", "model", "finetune", "kernels", "convert", "teacher", "trainer", "parity", "releases", "study",
    "remote", "commands", "build", "faults", "cache", "corpora",
)  # fmt: skip
"""Rooms of the suite by their time a test, as measured with two cores; one that is not named comes before them all.

Two rooms of many short files come last: a file is one process's, and the others would wait for a long one at the end.
"""

# A loaded machine draws examples slowly; that says nothing about the code.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is broken shows soon: quick rooms first; within a room, the order of files and of tests in them stays."""
    tests = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        room = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        return QUICK_FIRST.index(room) if room in QUICK_FIRST else -1

    items.sort(key=place)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not any(reason in str(report.longrepr) for reason in EXPECTED_IN_CI):
        _unexpected.append(f"{report.nodeid}: {report.longrepr}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") and _unexpected and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CI") and _unexpected:
        terminalreporter.section("skips that CI does not expect")
        for line in _unexpected:
            terminalreporter.line(line)
