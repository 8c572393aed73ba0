"""Which files belong to a glTF: found from as few of its bytes as say so."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora import ShapeError, faults, open_corpus
from pipeline.corpora.files import files_of
from pipeline.corpora.formats.geometry import Malformed
from tests.support.corpora import CUBE_VERTICES

TRIANGLES = [(0, 1, 3), (0, 3, 2), (4, 7, 5), (4, 6, 7), (0, 5, 1), (0, 4, 5), (2, 3, 7), (2, 7, 6)]


def write_glb(path: Path, *, beside: str | None, padding: int = 0) -> None:
    """Eight triangles of the cube as a GLB, its vertices in a file beside it or in its own second chunk."""
    faces = np.array(TRIANGLES, "<u2").tobytes()
    vertices = CUBE_VERTICES.astype("<f4").tobytes()
    own = faces + (b"" if beside else vertices) + bytes(padding)
    buffers: list[dict] = [{"byteLength": len(own)}]
    if beside:
        (path.parent / beside).write_bytes(vertices)
        buffers.append({"byteLength": len(vertices), "uri": beside})
    views = [
        {"buffer": 0, "byteLength": len(faces)},
        {"buffer": 1, "byteLength": len(vertices)}
        if beside
        else {"buffer": 0, "byteOffset": len(faces), "byteLength": len(vertices)},
    ]
    document = {
        "asset": {"version": "2.0"},
        "buffers": buffers,
        "bufferViews": views,
        "accessors": [
            {"bufferView": 0, "componentType": 5123, "count": 3 * len(TRIANGLES), "type": "SCALAR"},
            {"bufferView": 1, "componentType": 5126, "count": 8, "type": "VEC3"},
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 1}, "indices": 0}]}],
        "nodes": [{"mesh": 0}],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    own += bytes(-len(own) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(own), b"BIN\0") + own
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)


@pytest.mark.parametrize("beside", [None, "there.bin"])
def test_a_glb_is_asked_by_its_first_chunk_alone(tmp_path, monkeypatch, beside):
    path = tmp_path / "a.glb"
    write_glb(path, beside=beside, padding=1_000_003)
    asked = []
    real = faults._bytes

    def count(path: Path, first: int | None) -> bytes:
        data = real(path, first)
        asked.append(len(data))
        return data

    monkeypatch.setattr(faults, "_bytes", count)
    assert files_of(path) == [path, *([tmp_path.resolve() / beside] if beside else [])]
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    assert len(corpus.stamp(0).split()) == (2 if beside else 1)
    assert sum(asked) < 10_000
    assert len(corpus[0].points) == 64
    assert max(asked) > 1_000_003


def test_a_change_of_what_lies_beside_a_glb_shows(tmp_path):
    write_glb(tmp_path / "a.glb", beside="there.bin")
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    before = corpus.stamp(0), corpus.fingerprint(0)
    (tmp_path / "there.bin").write_bytes((2 * CUBE_VERTICES).astype("<f4").tobytes() + b"more")
    assert corpus.stamp(0) != before[0]
    assert corpus.fingerprint(0) != before[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:15], "truncated"),
        (lambda data: data[:40], "truncated"),
        (lambda data: data[:12] + b"\xff\xff\xff\xff" + data[16:], "truncated"),
        (lambda data: data[:16] + b"BIN\0" + data[20:], "not JSON"),
        (lambda data: b"GLTF" + data[4:], "does not start with glTF"),
        (lambda data: data[:20] + b"[" + data[21:], "JSON"),
    ],
)
def test_a_damaged_start_names_nothing_beside_it(tmp_path, change, reason):
    path = tmp_path / "a.glb"
    write_glb(path, beside="there.bin")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(Malformed, match=reason):
        files_of(path)
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    assert len(corpus.stamp(0).split()) == 1
    with pytest.raises(ShapeError):
        corpus[0]
