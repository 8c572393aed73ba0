"""The benchmarks' own parts: all are found, one that fails does not end the others, a row's arithmetic, the JSON."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as benchmarks_main
from benchmarks._table import Row, Timing, environment, measure, print_table, write_json
from tests.support.limits import HANG

ROOT = Path(__file__).resolve().parents[2]


def test_every_benchmark_is_found_and_explains_itself():
    files = sorted(path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py"))
    assert files == benchmarks_main.NAMES
    assert {"kernels", "step"} <= set(files)


def test_a_benchmark_that_fails_does_not_end_the_others(monkeypatch, capsys):
    monkeypatch.setattr(benchmarks_main, "NAMES", ["first", "second", "third"])
    ran: list[str] = []

    def run(command: list[str], *, check: bool) -> SimpleNamespace:
        ran.append(command[-1])
        return SimpleNamespace(returncode=3 if command[-1].endswith("second") else 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert benchmarks_main.main([]) == 1
    assert ran == ["benchmarks.bench_first", "benchmarks.bench_second", "benchmarks.bench_third"]
    out, err = capsys.readouterr()
    assert "## third (3 of 3)" in out
    assert "failed: second (exit code 3); the others are complete" in err
    assert benchmarks_main.main(["third"]) == 0


def test_an_unknown_name_is_refused_before_anything_runs(capsys):
    assert benchmarks_main.main(["kernels", "speed"]) == 2
    assert "no benchmark is called speed; there are " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["kernels", "step"])
def test_options_are_explained(name):
    command = [sys.executable, "-m", f"benchmarks.bench_{name}", "--help"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=HANG)
    assert "options:" in run.stdout


def test_rows_are_printed_and_appended_as_json(tmp_path, capsys):
    rows = [
        Row(case="a", floor=1.0, ours=Timing(2.0, 1.5, 2.5), baseline_name="usual", baseline=Timing(6.0, 5.0, 7.0)),
        Row(case="b", floor=None, ours=Timing(2.0, 1.5, 2.5), baseline_name="usual", baseline=None, note="not here"),
    ]
    assert [row.ratio for row in rows] == [3.0, None]
    print_table("Table", rows)
    out = capsys.readouterr().out
    assert "| a | 1.00 | 2.00 (1.50-2.50) | usual | 6.00 | 3.0x | 50% |" in out
    assert "| b | - | 2.00 (1.50-2.50) | usual | not here | - | - |" in out
    path = tmp_path / "results" / "table.jsonl"
    for _ in range(2):
        write_json(path, "table", rows)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == second
    assert first["rows"][0]["baseline"]["p50"] == 6.0
    assert first["environment"] == environment()


def test_measure_repeats_after_warming_up():
    calls: list[int] = []
    timing = measure(lambda: calls.append(1), seconds=0, least=5, warmup=2)
    assert len(calls) == 7
    assert 0 <= timing.p20 <= timing.p50 <= timing.p80


def test_the_gpu_report_in_a_dry_run(tmp_path, capsys):
    """The parts that are cheap on a CPU, whole; the others run by hand: `make gpu ARGS=--dry-run`."""
    from benchmarks.gpu import __main__ as gpu
    from benchmarks.gpu import parts

    assert gpu.main(["--dry-run", "--only", "nccl", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["parts"]["nccl"]["backend"] == "gloo"
    assert "nothing here is a measurement" in (tmp_path / "gpu.md").read_text()
    rows = parts.operators(parts.Where("cpu"))["rows"]
    assert len(rows) == 7
    assert all("p50" in row["ours"] for row in rows.values())


def test_the_gpu_report_tells_what_fails_and_what_hangs(tmp_path, monkeypatch, capsys):
    from benchmarks.gpu import __main__ as gpu

    monkeypatch.setattr(gpu, "run_part", lambda name, where, seconds: {"failed": "fps.cu differs", "seconds": 1.0})
    assert gpu.main(["--dry-run", "--only", "kernels", "--out", str(tmp_path)]) == 1
    assert "fps.cu differs" in capsys.readouterr().err
    assert "**Failed:**" in (tmp_path / "gpu.md").read_text()
    monkeypatch.undo()
    assert "not started" in gpu.run_part("nccl", gpu.Where("cpu"), 3)["failed"]
    assert "not done after" in gpu.run_part("training", gpu.Where("cpu"), 5)["failed"]
