"""Corpora in shards behind a URL: packed into a bucket, read by one request a shape, built from by two processes."""

import os
import re
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora import CorpusError, MachineFault, open_corpus
from pipeline.corpora.packing import pack
from teacher_cache.testing import tree
from tests.support.builds import COUNT, POINTS, small_build
from tests.support.servers import S3, http_server

URI = f"synthetic:?count={COUNT}&seed=1"


def test_a_bucket_holds_what_a_folder_holds_and_two_processes_build_from_it(tmp_path: Path, s3: S3) -> None:
    source = open_corpus(URI, points=POINTS)
    pack(source, tmp_path / "packed", shapes_per_shard=7)
    url = s3.folder()
    assert pack(source, url, shapes_per_shard=7).shapes == COUNT
    assert s3.tree(url) == tree(tmp_path / "packed")
    assert pack(source, url, shapes_per_shard=7).already
    corpus = open_corpus(f"shards:{url}", points=POINTS)
    for index in (0, 6, 7, COUNT - 1):
        np.testing.assert_array_equal(corpus[index].points, source[index].points)
    kept = open_corpus(f"shards:simplecache::{url}", points=POINTS)
    np.testing.assert_array_equal(kept[8].points, source[8].points)
    local = small_build(tmp_path / "local", corpus=f"shards:{tmp_path / 'packed'}")
    remote = small_build(tmp_path / "remote", corpus=f"shards:{url}", scheduler="processes", workers=2)
    # The recipe is of what was packed, and not of the place: both caches have one name, and the same bytes.
    assert Path(str(local.path)).name == Path(str(remote.path)).name
    assert tree(str(remote.path)) == tree(str(local.path))


def test_a_shard_that_is_gone_is_the_stores_fault(s3: S3) -> None:
    url = s3.folder()
    pack(open_corpus(URI, points=POINTS), url, shapes_per_shard=7)
    corpus = open_corpus(f"shards:{url}", points=POINTS)
    s3.delete(f"{url}/shards/000001.tar")
    with pytest.raises(MachineFault):
        corpus[8]
    corpus[3]
    with pytest.raises(CorpusError, match=r"holds no shards\.json"):
        open_corpus(f"shards:{s3.folder()}", points=POINTS)


def test_a_web_server_of_ranges_and_one_without(tmp_path: Path) -> None:
    source = open_corpus(URI, points=POINTS)
    pack(source, tmp_path / "packed", shapes_per_shard=7)
    sent: list[int] = []

    def ranged(handler: SimpleHTTPRequestHandler) -> bool:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        if asked is None:
            return False
        data = Path(handler.translate_path(handler.path)).read_bytes()[int(asked[1]) : int(asked[2]) + 1]
        sent.append(len(data))
        handler.send_response(206)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        return True

    with http_server(tmp_path, ranged) as address:
        corpus = open_corpus(f"shards:{address}/packed", points=POINTS)
        for index in (0, 6, 7, COUNT - 1):
            np.testing.assert_array_equal(corpus[index].points, source[index].points)
    whole = os.path.getsize(tmp_path / "packed" / "shards" / "000000.tar")
    assert len(sent) == 4
    assert all(size * 5 < whole for size in sent)
    with http_server(tmp_path) as address:
        corpus = open_corpus(f"shards:{address}/packed", points=POINTS)
        with pytest.raises(MachineFault, match="ignores ranges"):
            corpus[0]


def test_other_kinds_are_read_from_folders() -> None:
    with pytest.raises(CorpusError, match="pack it as `shards:`"):
        open_corpus("folder:s3://bucket/meshes", points=POINTS)
    with pytest.raises(MachineFault, match=r"nothing|protocol|speaks"):
        open_corpus("shards:nosuch://bucket/meshes", points=POINTS)
