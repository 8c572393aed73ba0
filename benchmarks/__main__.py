"""All benchmarks, ``python -m benchmarks``: tables on standard output, JSON lines in benchmarks/results/."""

from benchmarks.bench_kernels import main

if __name__ == "__main__":
    main()
