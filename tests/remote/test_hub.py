"""Caches and corpora in a private dataset of the Hugging Face Hub, here a server on loopback."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import teacher_cache
from pipeline.corpora import CorpusError, MachineFault, open_corpus
from pipeline.corpora.packing import pack
from teacher_cache.config import CacheConfig
from teacher_cache.errors import ManifestError, StorageError
from teacher_cache.testing import build
from tests.support.commands import run
from tests.support.servers import Hub, hub_server

pytest.importorskip("huggingface_hub", reason="huggingface_hub, which speaks hf://, is not installed")
URI = "synthetic:?count=9&seed=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository's files: a corpus in shards, and a cache of each format."""
    root = tmp_path_factory.mktemp("repository")
    pack(open_corpus(URI, points=64), root / "corpus", shapes_per_shard=4)
    for format in ("zarr", "webdataset"):
        build(root / "caches" / format, CacheConfig(format=format, shapes_per_shard=2), count=5)  # type: ignore[arg-type]
    return root


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from fsspec.config import conf

    with hub_server(folder) as server:
        monkeypatch.setitem(conf, "hf", server.options)
        yield server


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_cache_is_opened_read_and_verified(hub: Hub, folder: Path, format: str) -> None:
    cache = teacher_cache.open(f"{hub.url}/caches/{format}")
    local = teacher_cache.open(folder / "caches" / format)
    assert (len(cache), cache.ids) == (5, local.ids)
    for index in (0, 3, 4):
        np.testing.assert_array_equal(cache[index].features, local[index].features)
    assert teacher_cache.verify(f"{hub.url}/caches/{format}") == []


def test_the_commands_take_its_url(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    listed = run(capsys, "cache", "list", f"{hub.url}/caches")
    assert listed.code == 0, listed.err
    assert "zarr" in listed.out
    assert "webdataset" in listed.out
    verified = run(capsys, "cache", "verify", f"{hub.url}/caches/webdataset")
    assert verified.code == 0, verified.err


def test_a_corpus_in_shards_is_read_by_one_range_a_shape(hub: Hub, folder: Path) -> None:
    source = open_corpus(URI, points=64)
    corpus = open_corpus(f"shards:{hub.url}/corpus", points=64)
    corpus[0]  # the repository is asked for once
    hub.asked.clear()
    hub.fetched.clear()
    for index in (1, 4, 8):
        np.testing.assert_array_equal(corpus[index].points, source[index].points)
    assert [asked.path for asked in hub.fetched] == [f"/corpus/shards/00000{shard}.tar" for shard in (0, 1, 2)]
    for asked in hub.fetched:
        begin, end = map(int, asked.range.removeprefix("bytes=").split("-"))
        assert end - begin < 4096  # a shape of 64 points with its JSON, and nothing ahead of it


def test_the_token_goes_to_the_hub_and_not_where_it_sends_its_readers(hub: Hub) -> None:
    open_corpus(f"shards:{hub.url}/corpus", points=64)[0]
    assert hub.fetched
    assert {asked.authorization for asked in hub.asked} == {f"Bearer {hub.options['token']}"}
    assert {asked.authorization for asked in hub.fetched} == {""}


def test_what_is_not_there_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.config import conf

    missing, reason = "hf://datasets/someone/nothing", "the repository does not exist, or the token in use may not"
    with pytest.raises(StorageError, match=f"someone/nothing/caches/zarr: {reason}"):
        teacher_cache.open(f"{missing}/caches/zarr")
    with pytest.raises(ManifestError, match="caches/none"):
        teacher_cache.open(f"{hub.url}/caches/none")
    with pytest.raises(MachineFault, match=f"someone/nothing/corpus: {reason}"):
        open_corpus(f"shards:{missing}/corpus", points=64)
    with pytest.raises(CorpusError, match=r"shapes/none: holds no shards\.json"):
        open_corpus(f"shards:{hub.url}/none", points=64)
    monkeypatch.setitem(conf, "hf", {**hub.options, "token": "hf_of_another"})
    with pytest.raises(StorageError, match=f"someone/shapes/caches/zarr: {reason}"):
        teacher_cache.open(f"{hub.url}/caches/zarr")


def test_a_repository_that_grew_is_read_as_it_is_now(hub: Hub, folder: Path) -> None:
    config = CacheConfig(format="webdataset", shapes_per_shard=2)
    build(folder / "caches" / "grows", config, count=2)
    assert len(teacher_cache.open(f"{hub.url}/caches/grows")) == 2
    build(folder / "caches" / "grows", config, count=6)
    cache = teacher_cache.open(f"{hub.url}/caches/grows")
    assert (len(cache), cache[5].id) == (6, cache.ids[5])
