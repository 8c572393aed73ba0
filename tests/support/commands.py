"""Running the command line inside the test's process."""

from dataclasses import dataclass

import pytest

from cli.main import main


@dataclass
class Outcome:
    """What a command answered."""

    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """``i2p ARGUMENTS``; everything is turned to text first."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return Outcome(stop.value.code, said.out, said.err)
