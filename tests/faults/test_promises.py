"""docs/promises.md names tests; a test that is renamed or removed must not leave a promise without one."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def defined() -> set[str]:
    sources = [*(ROOT / "tests").rglob("test_*.py"), ROOT / "teacher_cache" / "testing" / "contract.py"]
    return {name for path in sources for name in re.findall(r"^ *def (test_\w+)\(", path.read_text(), re.MULTILINE)}


def test_every_promise_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) > 30
    known = defined()
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, f"a promise without a test: {row}"
        assert set(named) <= known, f"no such test: {sorted(set(named) - known)}"
