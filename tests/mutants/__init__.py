"""Hand-made faults, to see that the tests bite: python -m tests.mutants."""
