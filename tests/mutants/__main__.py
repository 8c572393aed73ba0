"""Try the faults of the catalogue, one after the other, each in a copy of the tree.

    nice python -m tests.mutants                    # all that were not tried since their code or tests changed
    python -m tests.mutants --only svm --list       # which there are
    python -m tests.mutants --again                 # all of them

A fault that no test notices survives. Exit 0 where every survivor is explained in the catalogue, else 1. Results are
kept in FOLDER/results.json; a run that was stopped goes on.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import ROOT, Mutant, Stale, mutated

COPIED = ("cli", "cuda", "docs", "pipeline", "teacher_cache", "tests", "trainer", "benchmarks")
FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")
HANG = 1800  # seconds; a fault that makes its tests hang is noticed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Try hand-made faults on the tests.")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "i2p-mutants", help="scratch")
    parser.add_argument("--only", default="", help="faults whose words or file contain this")
    parser.add_argument("--again", action="store_true", help="also those whose result is known")
    parser.add_argument("--list", action="store_true", help="print them, try none")
    options = parser.parse_args()
    wanted = [m for m in MUTANTS if options.only in m.fault or options.only in m.file]
    if options.list:
        for mutant in wanted:
            print(f"{mutant.file}: {mutant.fault}")
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    results = options.folder / "results.json"
    known = json.loads(results.read_text()) if results.is_file() else {}
    tree = _copy(options.folder / "tree")
    sound: dict[str, bool] = {}
    for number, mutant in enumerate(wanted, 1):
        key = mutant.key(tree)
        if options.again or key not in known:
            began = time.perf_counter()
            known[key] = _attempt(mutant, tree, sound)
            results.write_text(json.dumps(known, indent=1))
            seconds = f"{time.perf_counter() - began:.0f} s"
            print(f"{number}/{len(wanted)} {known[key]}: {mutant.fault} ({mutant.file}), {seconds}", flush=True)
    return _report({mutant: known[mutant.key(tree)] for mutant in wanted})


def _copy(tree: Path) -> Path:
    """The tree as it is now; compiled code that is still of it stays."""
    for name in COPIED:
        target = tree / name
        wanted = {p.relative_to(ROOT / name) for p in (ROOT / name).rglob("*") if p.is_file() and _wanted(p)}
        for path in [*target.rglob("*")] if target.is_dir() else []:
            if path.is_file() and _wanted(path) and path.relative_to(target) not in wanted:
                path.unlink()
        for relative in wanted:
            _same(ROOT / name / relative, target / relative)
    for name in FILES:
        _same(ROOT / name, tree / name)
    return tree


def _wanted(path: Path) -> bool:
    return "__pycache__" not in path.parts


def _same(source: Path, target: Path) -> None:
    if not target.is_file() or target.read_bytes() != source.read_bytes():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _attempt(mutant: Mutant, tree: Path, sound: dict[str, bool]) -> str:
    """noticed, survived, hung or broken: the tests fail without the fault as well, or there are none.

    sound  tests -> whether they pass on the tree as it is; filled in.
    """
    if mutant.tests not in sound:
        sound[mutant.tests] = _run(mutant, tree) == 0
    if not sound[mutant.tests]:
        return "broken"
    path = tree / mutant.file
    whole, status = path.read_bytes(), path.stat()
    stamp = (status.st_atime_ns, status.st_mtime_ns)  # compiled code of the file stays good
    try:
        path.write_text(mutated(mutant, tree), encoding="utf-8")
        code = _run(mutant, tree)
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=stamp)
    if code is None:
        return "hung"
    return {0: "survived", 1: "noticed"}.get(code, "broken")


def _run(mutant: Mutant, tree: Path) -> int | None:
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *_words(mutant.tests)]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    shared = ROOT.parent / "shared"
    environment |= {"I2P_REFERENCE": str(shared / "reference"), "I2P_REAL_DATA": str(shared / "data")}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, timeout=HANG, check=False, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode not in (0, 1):
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return done.returncode


def _words(tests: str) -> list[str]:
    words, _, expression = tests.partition(" -k ")
    return [*words.split(), *(["-k", expression] if expression else [])]


def _report(found: dict[Mutant, str]) -> int:
    survived = [mutant for mutant, result in found.items() if result == "survived"]
    broken = [mutant for mutant, result in found.items() if result == "broken"]
    noticed = sum(result in ("noticed", "hung") for result in found.values())
    print(f"{noticed} of {len(found)} faults are noticed")
    for mutant in broken:
        print(f"BROKEN    {mutant.fault} ({mutant.file}): its tests do not pass without the fault, or are not there")
    for mutant in survived:
        print(f"SURVIVES  {mutant.fault} ({mutant.file}): {mutant.survives or 'NOT EXPLAINED'}")
    for mutant, result in found.items():
        if mutant.survives and result in ("noticed", "hung"):
            print(f"NOTICED   {mutant.fault} ({mutant.file}), though the catalogue explains why it survives: mend that")
    return int(bool(broken) or any(not mutant.survives for mutant in survived))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Stale as stale:
        sys.exit(str(stale))
