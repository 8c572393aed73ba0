"""For all tests: in CI a test may be skipped for want of a GPU only; any other skip fails the run."""

import os

import pytest

EXPECTED_IN_CI = "no CUDA device"
_unexpected: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and EXPECTED_IN_CI not in str(report.longrepr):
        _unexpected.append(f"{report.nodeid}: {report.longrepr}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") and _unexpected and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CI") and _unexpected:
        terminalreporter.section("skips that CI does not expect")
        for line in _unexpected:
            terminalreporter.line(line)
