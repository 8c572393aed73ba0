"""All benchmarks, ``python -m benchmarks``, or some by name, ``python -m benchmarks kernels step``.

Tables on standard output; JSON lines in benchmarks/results/. Options belong to one benchmark: ``python -m
benchmarks.bench_kernels --help``.
"""

import importlib
import pkgutil
import sys

import benchmarks

NAMES = sorted(
    module.name.removeprefix("bench_")
    for module in pkgutil.iter_modules(benchmarks.__path__)
    if module.name.startswith("bench_")
)


def main(wanted: list[str]) -> None:
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        raise SystemExit(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    sys.argv[1:] = []  # each reads its own options, which are its defaults here
    for name in wanted or NAMES:
        importlib.import_module(f"benchmarks.bench_{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
