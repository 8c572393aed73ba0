"""The catalogue of faults stays one that can be run. What it finds, `python -m tests.mutants` says."""

import ast

import pytest

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import ROOT, Mutant, Stale, mutated

BY_FAULT = {mutant.fault: mutant for mutant in MUTANTS}


def test_each_fault_is_listed_once() -> None:
    assert len(BY_FAULT) == len(MUTANTS) >= 60
    assert {mutant.file.split("/")[0] for mutant in MUTANTS} >= {"cuda", "teacher_cache", "pipeline", "trainer", "cli"}


@pytest.mark.parametrize("fault", BY_FAULT)
def test_a_fault_is_a_change_of_code_that_is_there(fault: str) -> None:
    mutant = BY_FAULT[fault]
    text = mutated(mutant)
    if mutant.file.endswith(".py"):
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse((ROOT / mutant.file).read_text()))
    for word in mutant.tests.partition(" -k ")[0].split():
        file, _, name = word.partition("::")
        assert (ROOT / file).is_file(), word
        assert not name or f"def {name}(" in (ROOT / file).read_text(), word


def test_text_that_is_not_there_once_is_told() -> None:
    for old in ("nothing of the kind", "import"):
        with pytest.raises(Stale, match=r"randomness\.py has .* times, not once; mend tests/mutants"):
            mutated(Mutant("x", "trainer/randomness.py", old, "y", "tests/test_layout.py"))
