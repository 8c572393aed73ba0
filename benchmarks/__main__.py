"""All benchmarks, ``python -m benchmarks``, or some by name, ``python -m benchmarks kernels step``.

Tables on standard output; each run is appended as a JSON line to benchmarks/results/<name>.jsonl. Each benchmark is a
process of its own, so one that fails does not end the others; the exit code says whether one did. Options belong to one
benchmark: ``python -m benchmarks.bench_kernels --help``. ``bench_official`` needs a path and is not among "all".
"""

import pkgutil
import subprocess
import sys
import time

import benchmarks

NAMES = sorted(
    module.name.removeprefix("bench_")
    for module in pkgutil.iter_modules(benchmarks.__path__)
    if module.name.startswith("bench_")
)
NEED_A_PATH = {"official": "CHECKOUT"}
"""Run by themselves only, on something that the repository does not hold."""


def main(wanted: list[str]) -> int:
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        print(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in wanted:
        if path := NEED_A_PATH.get(name):
            print(f"{name} needs a path: python -m benchmarks.bench_{name} {path}", file=sys.stderr)
            return 2
    chosen = wanted or [name for name in NAMES if name not in NEED_A_PATH]
    failed: list[str] = []
    for place, name in enumerate(chosen, start=1):
        print(f"\n## {name} ({place} of {len(chosen)})\n", flush=True)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, "-m", f"benchmarks.bench_{name}"], check=False).returncode
        if code:
            failed.append(f"{name} (exit code {code})")
        print(f"\n{name}: {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)
    print("\nresults: benchmarks/results/*.jsonl, a line a run, with the environment")
    if failed:
        print(f"failed: {', '.join(failed)}; the others are complete", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
