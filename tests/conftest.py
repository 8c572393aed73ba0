"""For all tests: in CI a skip for want of a GPU, or of the right to mount, is expected; any other fails the run."""

import os

import pytest

EXPECTED_IN_CI = ("no CUDA device", "mounting a tmpfs is not permitted here")
_unexpected: list[str] = []


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
