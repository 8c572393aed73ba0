"""docs/format.md is what the code does: its example is run, and its documents are compared to the byte.

After a change of the format that is meant: ``python -m tests.cache.test_format_doc`` writes the documents anew.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.testing import build, make_record
from teacher_cache.testing.made_up import make_basis

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"
DOCUMENTS = ("recipe.json", "receipts/000000.json", "manifest.json", "000000-00000.json")


def block(kind: str, text: str) -> str:
    found = re.search(rf"^```{re.escape(kind)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found, f"no block ```{kind} in {PAGE}"
    return found[1]


def run(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    return names


def built_documents(directory: Path) -> dict[str, str]:
    run(block("python write", PAGE.read_text()), directory=directory)
    texts = {name: (directory / name).read_text() for name in DOCUMENTS[:3]}
    tar = (directory / "shards" / "000000.tar").read_bytes()
    size = int(tar[124:135], 8)
    texts[DOCUMENTS[3]] = tar[512 : 512 + size].decode() + "\n"
    return texts


def test_example_gives_the_documents_on_the_page(tmp_path: Path) -> None:
    built = built_documents(tmp_path / "c")
    for name, text in built.items():
        assert block(f"json {name}", PAGE.read_text()) == text, name
    assert teacher_cache.verify(tmp_path / "c") == []


def test_example_reads_without_the_package(tmp_path: Path) -> None:
    built_documents(tmp_path / "c")
    run(block("python read-webdataset", PAGE.read_text()), directory=tmp_path / "c")


def test_zarr_example_reads_without_a_zarr_library(tmp_path: Path) -> None:
    build(tmp_path / "c", CacheConfig(shapes_per_shard=4), count=7)
    names = run(block("python read-zarr", PAGE.read_text()), directory=tmp_path / "c", shard=1, position=2)
    np.testing.assert_array_equal(names["features"], make_record(6).features.astype(np.float16))


def test_basis_example_reads_features_in_the_teachers_channels(tmp_path: Path) -> None:
    config = CacheConfig(shapes_per_shard=4, channels=6, features="float32")
    build(tmp_path / "c", config, count=1)
    names = run(block("python read-basis", PAGE.read_text()), directory=tmp_path / "c")
    restored = make_basis(6).restore(make_record(0).features)
    assert restored.shape == (3, 4, 9)
    np.testing.assert_allclose(names["features"], restored, rtol=1e-6, atol=1e-6)


def main() -> None:
    """Write the documents of the example into the page."""
    page = PAGE.read_text()
    with tempfile.TemporaryDirectory() as folder:
        for name, text in built_documents(Path(folder) / "c").items():
            kind = re.escape(f"json {name}")
            page = re.sub(rf"^```{kind}\n.*?^```$", lambda _: f"```json {name}\n{text}```", page, flags=re.M | re.S)  # noqa: B023
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
