"""Every form of a file: URL names the folder it means, or is refused; never another one."""

import os
from pathlib import Path

import numpy as np
import pytest

import teacher_cache
from pipeline.corpora import CorpusError, open_corpus
from pipeline.corpora.uri import place_of
from teacher_cache.config import CacheConfig
from teacher_cache.errors import StorageError
from teacher_cache.location import localise
from teacher_cache.recipe import cache_directory
from teacher_cache.testing import build, make_recipe
from tests.support.commands import run
from tests.support.corpora import ball

NAMES = [
    "plain",
    "a b",
    "h#1",
    "q?x",
    "100%",
    "a%20b",
    "größe",
    "a+b=c&d",
    "semi;colon",
    "x::y",
    "file:",
    "%",
    "%zz",
    "~",
]


@pytest.mark.parametrize("name", NAMES)
def test_what_pathlib_writes_comes_back(name: str) -> None:
    path = Path("/root of/it") / name
    assert localise(path.as_uri()) == path
    assert localise(path.as_uri().replace("file://", "file:")) == path
    assert localise(path.as_uri().replace("file://", "file://localhost")) == path
    assert localise(path.as_uri().replace("file:", "FILE:")) == path
    assert place_of(f"folder:{path.as_uri()}") == path


@pytest.mark.parametrize("name", ["h#1", "q?x", "a b", "100%", "h#1?x#2"])
def test_letters_that_no_one_escaped_are_letters(name: str) -> None:
    for form in ("file:///w/", "file:/w/", "file://localhost/w/", "local:///w/"):
        assert localise(form + name) == Path("/w") / name


def test_forms_without_slashes_are_relative() -> None:
    assert localise("file:a/b") == Path("a/b")
    assert localise("file:b") == Path("b")
    assert localise("file:../b%20c") == Path("../b c")


def test_bytes_that_are_no_text_come_back() -> None:
    assert os.fsencode(localise("file:///w/%ff%fe")) == b"/w/\xff\xfe"
    assert os.fsencode(place_of("folder:/w/%ff") or "") == b"/w/\xff"


@pytest.mark.parametrize("url", ["file://host/x", "file://a/b", "file://~/x", "file:", "file://", "file://localhost"])
def test_another_machine_or_no_path_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match=r"expected a (file: URL of this machine|path after)"):
        localise(url)
    assert [problem for problem in CacheConfig(root=url).problems() if problem.startswith("root: ")]
    with pytest.raises(CorpusError, match="expected a"):
        open_corpus(f"folder:{url}", points=64)


def test_other_words_with_a_colon_are_paths_and_other_urls_stay() -> None:
    assert localise("files:x") == Path("files:x")
    assert localise("a/file:///x") == "a/file:///x"
    assert localise("s3://bucket/h#1?x/") == "s3://bucket/h#1?x"


def test_a_cache_and_a_corpus_lie_where_the_url_says(tmp_path: Path) -> None:
    folder = tmp_path / "h#1 ?" / "box"
    folder.mkdir(parents=True)
    for k in range(3):
        np.save(folder / f"{k}.npy", ball(80, k))
    plain = open_corpus(f"folder:{str(folder.parent).replace('?', '%3F')}", points=64)
    named = open_corpus(f"folder:{folder.parent.as_uri()}", points=64)
    assert [plain[i].points.tobytes() for i in range(3)] == [named[i].points.tobytes() for i in range(3)]
    assert plain.identity == named.identity
    config = CacheConfig(root=(tmp_path / "c#?").as_uri())
    place = cache_directory(config, make_recipe(config), "made")
    assert isinstance(place, Path)
    build(place, config, count=2)
    assert [path.parent for path in tmp_path.glob("*/*/manifest.json")] == [place]
    assert len(teacher_cache.open(place.as_uri())) == 2


def test_a_corpus_at_a_store_is_refused_by_name() -> None:
    with pytest.raises(CorpusError, match="expected a local path, found the URL s3://bucket/meshes"):
        open_corpus("folder:s3://bucket/meshes?split=all", points=64)


def test_an_output_may_be_a_file_url_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a #1.png"
    render = ["corpus", "render", "synthetic:?count=2", "--points", 64, "--out"]
    for given in (out.as_uri(), "file:b.png"):
        assert run(capsys, *render, given).code == 0
    refused = run(capsys, *render, "s3://bucket/x.png")
    assert refused.code == 2
    assert "found the URL s3://bucket/x.png" in refused.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a #1.png", "b.png"]
