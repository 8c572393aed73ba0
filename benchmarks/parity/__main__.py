"""Compare with the reference implementation: ``python -m benchmarks.parity DIR``."""

from benchmarks.parity.command import main

if __name__ == "__main__":
    main()
