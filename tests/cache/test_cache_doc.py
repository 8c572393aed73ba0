"""docs/cache.md says what is so: its Python is run from the page, its errors are all, its tests exist."""

import re
from pathlib import Path
from typing import Any

import pytest

import teacher_cache

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cache.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks() -> list[tuple[int, str]]:
    """Each block of Python with the line it begins at."""
    return [
        (TEXT[: found.start(1)].count("\n"), found[1])
        for found in re.finditer(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    ]


def test_the_python_of_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert len(blocks()) >= 10
    for line, code in blocks():
        exec(compile("\n" * line + code, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    assert len(list((tmp_path / "caches").iterdir())) == 2  # the example, and its copy as tar files


def test_every_error_of_the_package_is_in_the_table() -> None:
    errors = {
        name
        for name in teacher_cache.__all__
        if isinstance(getattr(teacher_cache, name), type) and issubclass(getattr(teacher_cache, name), Exception)
    }
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == errors


@pytest.mark.parametrize("page", ["cache.md", "scaling.md"])
def test_the_tests_it_names_exist(page: str) -> None:
    sources = [*(ROOT / "tests").rglob("*.py"), ROOT / "teacher_cache" / "testing" / "contract.py"]
    written = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    named = set(re.findall(r"`(test_\w+)`", (PAGE.parent / page).read_text(encoding="utf-8")))
    assert len(named) > 4
    assert {name for name in named if f"def {name}(" not in written} == set()
