"""The terminal: no wait is silent, and every command that prints a result prints it as JSON too."""

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import click
import pytest

import cli.show.progress as progress_module
from cli.main import cli as root
from cli.show.progress import Progress, Watching
from cli.show.terminal import answer
from tests.support.commands import run
from trainer.engine.watching import Count, Watched


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    if not isinstance(command, click.Group):
        return {path: command}
    context = click.Context(command)
    found: dict[tuple[str, ...], click.Command] = {}
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        found |= leaves(inner, (*path, name))
    return found


def test_every_command_prints_json() -> None:
    commands = leaves(root)
    assert len(commands) > 25
    without = {path for path, command in commands.items() if not any("--json" in one.opts for one in command.params)}
    assert without == set()


def test_results_are_json_alone_on_standard_output(
    smoke: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[tuple[Any, ...], str]] = [
        (smoke.arguments, "evaluation"),
        (("cache", "build", "smoke", "--set", f"cache.root={smoke.cache.parent}"), "shards"),
        (("cache", "info", smoke.cache), "recipe_hash"),
        (("cache", "list", smoke.cache.parent), "caches"),
        (("cache", "verify", smoke.cache), "sound"),
        (("cache", "gc", smoke.cache), "abandoned"),
        (("cache", "compact", smoke.cache), "written"),
        (("cache", "repair", smoke.cache), "rebuilt"),
        (("cache", "render", smoke.cache, "--shape", "1", "--out", tmp_path / "a.png"), "picture"),
        (("corpus", "info", "synthetic:?count=3"), "shapes"),
        (("corpus", "render", "synthetic:?count=2", "--out", tmp_path / "b.png"), "picture"),
        (("checkpoint", "info", smoke.run_dir), "kind"),
        (("checkpoint", "slim", smoke.run_dir, "--out", tmp_path / "slim"), "path"),
        (("embed", "coordinates", "synthetic:?count=7", "--points", "64", "--out", tmp_path / "c.npz"), "agreement"),
        (("presets",), "smoke"),
        (("presets", "smoke"), "toml"),
    ]
    for arguments, key in calls:
        outcome = run(capsys, *arguments, "--json")
        assert outcome.code == 0, (arguments, outcome.err)
        assert key in json.loads(outcome.out), arguments
    rows = json.loads(run(capsys, "results", smoke.run_dir, "--json").out)
    assert isinstance(rows, list)
    assert rows
    text = run(capsys, "cache", "info", smoke.cache).out
    assert json.loads(run(capsys, "cache", "info", smoke.cache, "--json").out)["recipe_hash"] in text


def test_foreign_text_is_escaped_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    answer({"name": "\x1b[2J\u202e"}, "never", as_json=True)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert json.loads(said) == {"name": "\x1b[2J\u202e"}


def test_a_wait_without_a_unit_done_is_told_and_its_thread_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "LINE_EVERY_S", 0.02)
    monkeypatch.setattr(progress_module, "BEAT_S", 0.01)
    before = threading.active_count()
    with Progress("opening", 0, unit=""):
        _until(lambda: "opening: 0 s so far" in _said(capsys))
    with Progress("fitting", 5, unit="fits") as progress:
        _until(lambda: "fitting: 0/5 fits, 0.0/s, 0 s so far" in _said(capsys))
        progress.pause()
        time.sleep(0.05)
        _said(capsys)
        time.sleep(0.1)
        assert _said(capsys) == ""
        progress.update(2, loss="0.5")
        _until(lambda: "2/5 fits" in _said(capsys))
        progress.expect(4)
        progress.add(2)
    assert "fitting: 4/4 fits" in _said(capsys)
    progress.end()  # once more does nothing
    assert _said(capsys) == ""
    assert threading.active_count() == before


def test_a_terminal_shows_a_bar_also_while_no_unit_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress_module, "BEAT_S", 0.01)
    monkeypatch.setattr(progress_module, "SHOWN_AFTER_S", 0.02)
    with Progress("opening", 0, unit=""):
        _until(lambda: "opening: 00:00" in terminal.getvalue())
    with Progress("fitting", 7, unit="fits") as progress:
        _until(lambda: "0/7" in terminal.getvalue())
        progress.update(3)
        _until(lambda: "3/7" in terminal.getvalue())
        progress.write("a line\x1b[2J")
    assert "\\x1b[2J" in terminal.getvalue()


def test_work_that_is_watched_shows_each_piece(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "SHOWN_AFTER_S", 0.0)
    told: list[Watched] = []
    with Watching() as watch:
        for work, total in (("reading", 3), ("evaluating", 4)):
            count = Count(watch, work, "steps", total)
            for _ in range(total):
                count.add(1)
    said = _said(capsys)
    assert "reading: 3/3 steps" in said
    assert "evaluating: 4/4 steps" in said
    count = Count(told.append, "evaluating", "steps", 9)
    count.at(4, encoder="trained")
    count.add(2)
    assert [(state.done, dict(state.notes)) for state in told] == [
        (4, {"encoder": "trained"}),
        (6, {"encoder": "trained"}),
    ]
    monkeypatch.setattr(progress_module, "SHOWN_AFTER_S", 60.0)
    with Watching() as watch:  # over at once: not worth a line
        Count(watch, "reading", "steps", 1).add(1)
    assert _said(capsys) == ""


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def _until(true: Any) -> None:
    for _ in range(1500):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it was never said")
