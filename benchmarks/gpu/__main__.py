"""What a GPU has to show: ``make gpu`` (``python -m benchmarks.gpu``), at most eight minutes, without a network.

Each part runs in a process of its own with a time limit, so one that hangs or crashes costs only itself:

kernels    every kernel against its twin, at all sizes of the tests; under compute-sanitizer where it is installed
operators  their times beside plain torch's, torch-fps' and torch-quickfps', and what the card can do
build      a cache with ViT-B/16 in bfloat16: shapes a second, and the share of the card's rate
step       the full-size step: cached, live, eager, compiled, as a CUDA graph; time and memory
training   a short training on the GPU and on the CPU: the same losses within float32 rounding
nccl       the collectives of training over NCCL, with one rank

``--dry-run`` runs every part on the CPU at small sizes, the kernels through their host build, so that the first run
on a GPU cannot fail for a silly reason; it measures nothing. Results: benchmarks/results/gpu.json and gpu.md. The exit
code is 1 if a part failed or disagreed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks._table import environment
from benchmarks.gpu.parts import PARTS, ROOT, Disagreement, Numbers, Where, touch

__all__ = ["main"]

RESULTS = Path(__file__).resolve().parents[1] / "results"
SECONDS = 480  # of everything
GOALS = {
    "operators": "FPS + kNN of three levels at B = 64 within 0.2 ms (H200)",
    "build": "ShapeNet-55 (52,470 shapes) within 3 minutes: 292 shapes/s",
    "step": "300 epochs of ShapeNet-55 (41,952 shapes) within an hour: 3,496 shapes/s",
}


def main(arguments: list[str] | None = None) -> int:
    """Run all parts, or some; -> exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="every part on the CPU at small sizes; measures nothing")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts instead of all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of gpu.json and gpu.md")
    parser.add_argument("--part", choices=[*PARTS, "touch"], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    where = Where("cpu" if given.dry_run else "cuda:0")
    if not where.dry and not torch.cuda.is_available():
        print("no CUDA device here; --dry-run runs every part on the CPU", file=sys.stderr)
        return 2
    if given.part:
        call = touch if given.part == "touch" else PARTS[given.part][0]
        try:
            print(json.dumps(call(where)))
        except Disagreement as error:
            print(f"disagreement: {error}", file=sys.stderr)
            return 3
        return 0
    begun = time.monotonic()
    report: Numbers = {"environment": environment(), "dry run": where.dry, "parts": {}}
    if not where.dry:
        report["environment"]["driver"] = _driver()
    for name in given.only or PARTS:
        left = SECONDS - (time.monotonic() - begun)
        print(f"{name} ...", end=" ", flush=True)
        allowed = 600.0 if where.dry else min(PARTS[name][1], left)
        report["parts"][name] = part = run_part(name, where, allowed)
        print(f"{'failed' if 'failed' in part else 'ok'}, {part['seconds']:.0f} s", flush=True)
        if "failed" in part:
            print(part["failed"], file=sys.stderr)
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (given.out / "gpu.md").write_text(markdown(report), encoding="utf-8")
    print(f"written: {given.out / 'gpu.json'}, gpu.md")
    return int(any("failed" in part for part in report["parts"].values()))


def run_part(name: str, where: Where, seconds: float) -> Numbers:
    """Run one part in a process of its own -> its numbers, or {"failed": the reason}; and how long it took."""
    begun = time.monotonic()
    if seconds < 5:
        return {"failed": f"not started: the {SECONDS} seconds of all parts are used up", "seconds": 0.0}
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, *(["--dry-run"] if where.dry else [])]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # with the processes that it started
        process.communicate()
        return {"failed": f"not done after {seconds:.0f} s", "seconds": time.monotonic() - begun}
    taken = {"seconds": time.monotonic() - begun}
    if process.returncode:
        return {"failed": err.strip()[-3000:] or f"exit code {process.returncode}", **taken}
    return {**json.loads(out.strip().splitlines()[-1]), **taken}


def markdown(report: Numbers) -> str:
    """The report as a section of a document."""
    lines = ["## On a GPU", "", ", ".join(f"{key} {value}" for key, value in report["environment"].items()), ""]
    if report["dry run"]:
        lines += ["**A dry run on the CPU: nothing here is a measurement.**", ""]
    for name, part in report["parts"].items():
        lines += [f"### {name}", ""]
        if name in GOALS:
            lines += [f"Goal: {GOALS[name]}.", ""]
        if "failed" in part:
            lines += ["**Failed:**", "", "```", part["failed"], "```", ""]
            continue
        for key, value in part.items():
            if key != "rows":
                lines.append(f"- {key}: {_shown(value)}")
        lines.append("")
        rows: Mapping[str, Numbers] = part.get("rows", {})
        if rows:
            columns = list(dict.fromkeys(column for row in rows.values() for column in row))
            lines += [f"| case | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
            for case, row in rows.items():
                lines.append(f"| {case} | " + " | ".join(_shown(row.get(column, "")) for column in columns) + " |")
            lines.append("")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"p50", "p20", "p80"}:
        return f"{value['p50']:.4g} ms ({value['p20']:.3g}-{value['p80']:.3g})"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _driver() -> str:
    found = shutil.which("nvidia-smi")
    if found is None:
        return "unknown"
    command = [found, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
