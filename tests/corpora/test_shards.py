"""Corpora in tar shards: the shapes of the corpus that was packed, the same bytes every time, and no wrong ones."""

import json
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora import CorpusError, MachineFault, ShapeError, open_corpus
from pipeline.corpora.base import Corpus
from pipeline.corpora.packing import pack
from pipeline.corpora.shard_index import CONTENTS, read_contents
from pipeline.corpora.tar_index import index_tars
from teacher_cache.storage.opening import storage_at
from teacher_cache.testing import tree
from tests.support.commands import run

POINTS = 129


@pytest.fixture(scope="module")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven files of five kinds in two splits and three classes, one a glTF with a buffer in a folder below."""
    root = tmp_path_factory.mktemp("meshes")
    source = open_corpus("synthetic:?count=11&seed=4", points=257)
    for index in range(10):
        folder = root / ("train" if index % 3 else "test") / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        points = source[index].points
        if index % 4 == 0:
            np.save(folder / f"s{index}.npy", points)
        elif index % 4 == 1:
            np.savetxt(folder / f"s{index}.xyz", points)
        else:
            faces = np.arange(255).reshape(-1, 3)
            corners = "".join(f"v {x} {y} {z}\n" for x, y, z in points)
            (folder / f"s{index}.obj").write_text(
                corners + "".join(f"f {a + 1} {b + 1} {c + 1}\n" for a, b, c in faces)
            )
    folder = root / "train" / "class2"
    folder.mkdir()
    (folder / "buffers").mkdir()
    corners = source[10].points[:255].astype("<f4")
    (folder / "buffers" / "b.bin").write_bytes(corners.tobytes())
    low, high = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    document = {
        "asset": {"version": "2.0"},
        "buffers": [{"uri": "buffers/b.bin", "byteLength": corners.nbytes}],
        "bufferViews": [{"buffer": 0, "byteLength": corners.nbytes}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 255, "type": "VEC3", "min": low, "max": high}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    (folder / "s10.gltf").write_text(json.dumps(document))
    return root


def assert_same_shapes(found: Corpus, expected: Corpus) -> None:
    assert [found.id(i) for i in range(len(found))] == [expected.id(i) for i in range(len(expected))]
    assert found.label_names == expected.label_names
    assert found.part_names == expected.part_names
    for i in range(len(expected)):
        a, b = found[i], expected[i]
        np.testing.assert_array_equal(a.points, b.points)
        assert a.points.dtype == b.points.dtype
        assert (a.id, a.label, a.split) == (b.id, b.label, b.split)
        assert (found.label(i), found.split_of(i)) == (expected.label(i), expected.split_of(i))
        assert (a.part_labels is None) == (b.part_labels is None)
        if a.part_labels is not None:
            np.testing.assert_array_equal(a.part_labels, b.part_labels)


@pytest.mark.parametrize("options", ["", "?split=train", "?seed=3&label=top&split_level=0", "?up=y&pad=repeat"])
def test_files_come_back_as_the_shapes_that_they_were(meshes: Path, tmp_path: Path, options: str) -> None:
    source = open_corpus(f"folder:{meshes}{options}", points=POINTS)
    found = pack(source, tmp_path / "out", shapes_per_shard=4, processes=1)
    assert (found.shapes, found.shards, found.refused) == (len(source), -(-len(source) // 4), 0)
    for points in (POINTS, 47):  # files are sampled on reading, so any number may be asked for
        again = open_corpus(f"shards:{tmp_path / 'out'}", points=points)
        assert_same_shapes(again, open_corpus(f"folder:{meshes}{options}", points=points))
    assert [again.inspect(i).content for i in range(len(again))] == [
        source.inspect(i).content for i in range(len(source))
    ]


def test_clouds_come_back_and_fewer_points_are_their_first(tmp_path: Path) -> None:
    uri = "synthetic:?count=7&seed=2&rotate=yaw"
    pack(open_corpus(uri, points=POINTS), tmp_path / "out", shapes_per_shard=3)
    assert_same_shapes(open_corpus(f"shards:{tmp_path / 'out'}", points=POINTS), open_corpus(uri, points=POINTS))
    assert_same_shapes(open_corpus(f"shards:{tmp_path / 'out'}", points=50), open_corpus(uri, points=50))
    with pytest.raises(CorpusError, match=f"{POINTS} points, {POINTS + 1} were requested"):
        open_corpus(f"shards:{tmp_path / 'out'}", points=POINTS + 1)


def test_clouds_of_files_and_rows(meshes: Path, tmp_path: Path) -> None:
    pack(open_corpus(f"folder:{meshes}", points=POINTS), tmp_path / "clouds", stored="clouds", shapes_per_shard=5)
    assert_same_shapes(
        open_corpus(f"shards:{tmp_path / 'clouds'}", points=60), open_corpus(f"folder:{meshes}", points=60)
    )
    points = open_corpus("synthetic:?count=5&seed=0", points=90)
    np.savez(
        tmp_path / "rows.npz",
        points=np.stack([points[i].points for i in range(5)]),
        label=np.array([2, 0, -1, 1, 1]),
        part=np.stack([points[i].part_labels % 3 for i in range(5)]),  # type: ignore[operator]
        part_names=np.array(["a", "b", "c"]),
    )
    pack(open_corpus(f"npz:{tmp_path / 'rows.npz'}", points=90), tmp_path / "rows", shapes_per_shard=2)
    assert_same_shapes(
        open_corpus(f"shards:{tmp_path / 'rows'}", points=70), open_corpus(f"npz:{tmp_path / 'rows.npz'}", points=70)
    )


def test_a_split_is_one_of_the_packed_ones(meshes: Path, tmp_path: Path) -> None:
    pack(open_corpus(f"folder:{meshes}", points=POINTS), tmp_path / "out", shapes_per_shard=4, processes=1)
    for split in ("train", "test"):
        found = open_corpus(f"shards:{tmp_path / 'out'}?split={split}", points=POINTS)
        assert_same_shapes(found, open_corpus(f"folder:{meshes}?split={split}", points=POINTS))
    with pytest.raises(CorpusError, match="its splits are test, train"):
        open_corpus(f"shards:{tmp_path / 'out'}?split=val", points=POINTS)


def test_the_same_bytes_by_any_number_of_processes_and_after_a_stop(meshes: Path, tmp_path: Path) -> None:
    source = open_corpus(f"folder:{meshes}", points=POINTS)
    pack(source, tmp_path / "one", shapes_per_shard=3, processes=1)
    pack(source, tmp_path / "two", shapes_per_shard=3, processes=2)
    whole = tree(tmp_path / "one")
    assert tree(tmp_path / "two") == whole

    class Stop(Exception):
        pass

    def stop(done: int, refused: int) -> None:
        if done >= 6:
            raise Stop

    with pytest.raises(Stop):
        pack(source, tmp_path / "stopped", shapes_per_shard=3, processes=1, progress=stop)
    with pytest.raises(CorpusError, match="run the same `i2p corpus pack` again"):
        open_corpus(f"shards:{tmp_path / 'stopped'}", points=POINTS)
    first = {path: (tmp_path / "stopped" / path).stat().st_mtime_ns for path in tree(tmp_path / "stopped")}
    assert pack(source, tmp_path / "stopped", shapes_per_shard=3, processes=1).already is False
    assert tree(tmp_path / "stopped") == whole
    kept = {path for path, time in first.items() if (tmp_path / "stopped" / path).stat().st_mtime_ns == time}
    assert {"shards/000000.tar", "shards/000001.tar"} <= kept
    assert pack(source, tmp_path / "stopped", shapes_per_shard=3, processes=1).already is True
    with pytest.raises(CorpusError, match="shapes_per_shard was 3, is now 4"):
        pack(source, tmp_path / "stopped", shapes_per_shard=4)
    with pytest.raises(CorpusError, match=r"ids was .*, is now"):
        pack(open_corpus(f"folder:{meshes}?exclude=s3.obj", points=POINTS), tmp_path / "stopped", shapes_per_shard=3)


def test_refused_shapes_are_told_and_left_out(meshes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "meshes"
    shutil.copytree(meshes, folder)
    (folder / "train" / "class1" / "s1.xyz").write_text("1 2 3\n")
    (folder / "train" / "class0" / "link.obj").symlink_to("nowhere")
    out = tmp_path / "out"
    packed = run(capsys, "corpus", "pack", f"folder:{folder}", str(out), "--as", "clouds", "--points", "60", "--json")
    assert packed.code == 1, packed.err
    said = json.loads(packed.out)
    assert (said["shapes"], said["refused"], said["corpus"]) == (10, 2, f"shards:{out}")
    lines = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["train/class0/link.obj", "train/class1/s1.xyz"]
    assert "has 1 points" in lines[1]["reason"] or "distinct points" in lines[1]["reason"]
    assert len(open_corpus(f"shards:{out}", points=60)) == 10
    assert "10 shapes" in run(capsys, "corpus", "info", f"shards:{out}", "--points", "60").out


def test_damage_is_refused_by_name(meshes: Path, tmp_path: Path) -> None:
    source = open_corpus(f"folder:{meshes}", points=POINTS)
    out = tmp_path / "out"
    pack(source, out, shapes_per_shard=6, processes=1)
    corpus = open_corpus(f"shards:{out}", points=POINTS)
    prints = [corpus.fingerprint(i) for i in range(len(corpus))]
    assert len(set(prints)) == len(corpus)
    shard = out / "shards" / "000001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShapeError, match=r"shards/000001.tar: .*do not have the SHA-256 in the index"):
        corpus[6]
    shard.write_bytes(data[:1000])
    with pytest.raises(ShapeError, match="which ends before"):
        corpus[10]
    shard.unlink()
    with pytest.raises(MachineFault):
        corpus[8]
    corpus[5]
    index = out / "index" / "000.tar"
    held = index.read_bytes()
    index.write_bytes(held[:-2000] + bytes(2000))
    with pytest.raises(CorpusError, match="its SHA-256 is not the one in"):
        open_corpus(f"shards:{out}", points=POINTS)
    index.unlink()
    with pytest.raises(CorpusError, match="expected a file of the index, found none"):
        open_corpus(f"shards:{out}", points=POINTS)
    document = (out / CONTENTS).read_text()
    (out / CONTENTS).write_text(document.replace('"files"', '"Files"', 1))
    with pytest.raises(CorpusError, match="was changed or truncated"):
        open_corpus(f"shards:{out}", points=POINTS)
    with pytest.raises(CorpusError, match="i2p corpus pack URI OUT"):
        open_corpus(f"shards:{tmp_path}", points=POINTS)


def test_files_stay_below_their_folder(tmp_path: Path) -> None:
    """A forged shard may name any file: nothing is written outside the folder that is made for it."""
    from pipeline.corpora.formats.geometry import Malformed
    from pipeline.corpora.kinds.shards import _files

    for name in ("../../evil.obj", "/evil.obj", "a/../../evil.obj", "", "a//evil.obj", "\ud800.obj",
                 "\u00e4" * 200 + ".obj", "a\nb.obj"):  # fmt: skip
        members = [("k.json", json.dumps({"shape_files": [name]}).encode()), ("k.obj", b"v 0 0 0\n")]
        with pytest.raises(Malformed, match="expected a path below one folder"):
            _files(members, ".obj")
    with pytest.raises(Malformed, match="names other files than its 1 members"):
        _files([("k.json", b'{"shape_files": ["a.obj", "b.mtl"]}'), ("k.obj", b"")], ".obj")


def _reasons(corpus: Corpus) -> dict[str, str]:
    found = {}
    for index in range(len(corpus)):
        for read in (corpus.__getitem__, corpus.inspect):
            with pytest.raises(ShapeError) as error:
                read(index)
            assert found.setdefault(corpus.id(index), error.value.reason) == error.value.reason
    return found


def test_damaged_files_are_refused_for_the_reasons_that_they_have_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gltf = {"asset": {"version": "2.0"}, "scenes": [{"nodes": []}]}
    damaged = {
        "cut.off": b"OFF\n9 9 0\n0 0 0\n",
        "empty.obj": b"",
        "index.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 7\n",
        "cut.ply": b"ply\nformat ascii 1.0\nelement vertex 5\nproperty float x\nend_header\n",
        "cut.stl": bytes(83) + b"\1" + bytes(20),
        "objects.npy": b"\x93NUMPY\1\0",
        "zip.npz": b"PK\3\4",
        "word.xyz": b"1 2 three\n",
        "few.pts": b"1 2 3\n4 5 6\n",
        "cut.pcd": b"# .PCD v0.7\nFIELDS x y z\n",
        "cut.glb": b"glTF" + bytes(30),
        "none.gltf": json.dumps(gltf).encode(),
        "gone.gltf": json.dumps(gltf | {"buffers": [{"uri": "gone.bin", "byteLength": 4}]}).encode(),
        "cut.las": b"LASF" + bytes(40),
        "no.3mf": b"PK",
        "cut.e57": b"ASTM-E57",
    }
    (tmp_path / "meshes").mkdir()
    for name, data in damaged.items():
        (tmp_path / "meshes" / name).write_bytes(data)
    source = open_corpus(f"folder:{tmp_path / 'meshes'}", points=64)
    expected = _reasons(source)
    assert len(expected) == len(damaged)
    pack(source, tmp_path / "out", processes=1)
    (tmp_path / "gone.bin").write_bytes(bytes(4))
    monkeypatch.chdir(tmp_path)  # what lies here lies beside no shape
    monkeypatch.setattr("pipeline.corpora.kinds.shards.read_geometry", None)  # none of them is read from a disk
    packed = open_corpus(f"shards:{tmp_path / 'out'}", points=64)
    assert _reasons(packed) == expected


def test_files_beside_a_shape_are_found_through_links(meshes: Path, tmp_path: Path) -> None:
    """A root that is a link, and a buffer behind one; `..` after a link is refused, as it means another file there."""
    root = tmp_path / "real"
    shutil.copytree(meshes / "train" / "class2", root)
    (root / "buffers").rename(root / "elsewhere")
    (root / "buffers").symlink_to("elsewhere")
    (tmp_path / "link").symlink_to("real")
    source = open_corpus(f"folder:{tmp_path / 'link'}", points=POINTS)
    pack(source, tmp_path / "out")
    assert_same_shapes(open_corpus(f"shards:{tmp_path / 'out'}", points=POINTS), source)
    (root / "elsewhere" / "deep").mkdir()
    (root / "into").symlink_to("elsewhere/deep")
    text = (root / "s10.gltf").read_text()
    (root / "s10.gltf").write_text(text.replace("buffers/b.bin", "into/../b.bin"))
    assert len(source[0].points) == POINTS
    with pytest.raises(CorpusError, match=r"names the file .* through a link and `..`"):
        pack(source, tmp_path / "other")
    (root / "into").unlink()
    (root / "into").mkdir()
    (root / "s10.gltf").write_text(text.replace("buffers/b.bin", "into/.././/buffers/b.bin"))
    pack(source, tmp_path / "plain")
    assert_same_shapes(open_corpus(f"shards:{tmp_path / 'plain'}", points=POINTS), source)


def test_a_stage_of_layers_becomes_files_again(tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="usd-core of the extra 'formats' is not installed")
    corners = "point3f[] points = [(0, 0, 0), (3, 0, 0), (3, 5, 0)]"
    mesh = f'def Mesh "m"\n{{\nint[] faceVertexCounts = [3]\nint[] faceVertexIndices = [0, 1, 2]\n{corners}\n}}\n'
    (tmp_path / "real" / "layers").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "layers" / "b.usda").write_text(f"#usda 1.0\n{mesh}")
    (tmp_path / "real" / "a.usda").write_text('#usda 1.0\ndef "a" (references = @layers/b.usda@</m>)\n{\n}\n')
    source = open_corpus(f"folder:{tmp_path / 'link'}?exclude=b.usda", points=64)
    pack(source, tmp_path / "out")
    assert_same_shapes(open_corpus(f"shards:{tmp_path / 'out'}", points=64), source)


def test_names_of_files_that_other_systems_do_not_allow(tmp_path: Path) -> None:
    points = open_corpus("synthetic:?count=1&seed=4", points=64)[0].points
    for name in ("scan_12:30:05.xyz", "back\\slash.xyz", "\u00fcber.xyz"):
        (tmp_path / "meshes").mkdir(exist_ok=True)
        np.savetxt(tmp_path / "meshes" / name, points)
    source = open_corpus(f"folder:{tmp_path / 'meshes'}", points=POINTS // 4)
    pack(source, tmp_path / "out")
    assert_same_shapes(open_corpus(f"shards:{tmp_path / 'out'}", points=POINTS // 4), source)


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    import webdataset

    uri = "synthetic:?count=5&seed=2"
    source = open_corpus(uri, points=64)
    pack(source, tmp_path / "out", shapes_per_shard=3)
    urls = [str(tmp_path / "out" / "shards" / f"{shard:06d}.tar") for shard in range(2)]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    assert [item["json"]["id"] for item in found] == [source.id(i) for i in range(5)]
    for i, item in enumerate(found):
        np.testing.assert_array_equal(item["points.npy"], source[i].points)
        assert item["json"]["label_name"] == source.label_names[source.label(i) or 0]


def _tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, BytesIO(data))


def test_tar_files_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_corpus("synthetic:?count=6&seed=9", points=100)

    def npy(i: int) -> bytes:
        held = BytesIO()
        np.save(held, source[i].points)
        return held.getvalue()

    long = "x" * 150  # needs an extended header
    _tar(tmp_path / "t" / "train" / "a.tar", {
        "a/0.npy": npy(0), "a/0.cls": b"chair", "a/0.txt": b"a chair",
        "a/1.npy": npy(1), "a/1.json": b'{"label": "table"}',
        f"{long}.npy": npy(2), f"{long}.cls": b"chair",
    })  # fmt: skip
    _tar(tmp_path / "t" / "test" / "b.tar", {
        "3.npy": npy(3), "3.cls": b"table\n", "4.npy": npy(4), "4.obj": b"v 0 0 0", "5.jpg": b"", "6.npy": npy(5)
    })  # fmt: skip
    found = run(capsys, "corpus", "index", str(tmp_path / "t"))
    assert found.code == 1
    assert "5 shapes in 2 shards" in found.out
    refused = [json.loads(line) for line in (tmp_path / "t" / "refused.jsonl").read_text().splitlines()]
    assert [line["id"] for line in refused] == ["4", "5"]
    corpus = open_corpus(f"shards:{tmp_path / 't'}", points=80)
    ids = [corpus.id(i) for i in range(len(corpus))]
    assert sorted(ids) == sorted(["a/0", "a/1", long, "3", "6"])
    labels = {corpus.id(i): corpus.label(i) for i in range(5)}
    assert corpus.label_names == ("chair", "table")
    assert labels == {"a/0": 0, "a/1": 1, long: 0, "3": 1, "6": None}
    for id, number in {"a/0": 0, "a/1": 1, long: 2, "3": 3, "6": 5}.items():
        shape = corpus[ids.index(id)]
        stored = {tuple(row) for row in source[number].points.tolist()}
        assert {tuple(row) for row in shape.points.tolist()} <= stored
        assert shape.split == ("test" if id in "36" else "train")
    before = tree(tmp_path / "t")
    assert index_tars(tmp_path / "t").already
    assert tree(tmp_path / "t") == before


def test_keys_that_every_tar_counts_anew_and_labels_of_every_spelling(tmp_path: Path) -> None:
    held = BytesIO()
    np.save(held, open_corpus("synthetic:?count=1&seed=4", points=64)[0].points)
    cloud = held.getvalue()
    _tar(tmp_path / "train" / "0.tar", {"000000.npy": cloud, "000000.json": b'{"label": 2, "label_name": null}'})
    _tar(
        tmp_path / "test" / "0.tar", {"000000.npy": cloud, "000000.JSON": b'{"label": 1}', "1.npy": cloud, "1.obj": b""}
    )
    assert index_tars(tmp_path).refused == 1
    assert (tmp_path / "refused.jsonl").exists()
    corpus = open_corpus(f"shards:{tmp_path}", points=64)
    found = {corpus.id(i): (corpus.label(i), corpus[i].split) for i in range(len(corpus))}
    assert found == {"test/0/000000": (1, "test"), "train/0/000000": (2, "train")}
    _tar(tmp_path / "test" / "0.tar", {"000000.npy": cloud, "000000.JSON": b'{"label": 1}'})
    again = index_tars(tmp_path)
    assert (again.refused, again.already) == (0, False)
    assert not (tmp_path / "refused.jsonl").exists()


def test_tars_that_cannot_be_indexed(tmp_path: Path) -> None:
    _tar(tmp_path / "empty" / "a.tar", {})
    with pytest.raises(CorpusError, match="it holds no samples"):
        index_tars(tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty")
    with pytest.raises(CorpusError, match="holds no tar files"):
        index_tars(tmp_path)
    _tar(tmp_path / "a" / "a.tar", {"0.cls": b"1", "0.npy": b"", "1.cls": b"chair", "1.npy": b""})
    with pytest.raises(CorpusError, match=r"some labels are names .* and some numbers"):
        index_tars(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(CorpusError, match="is not a complete, uncompressed tar file"):
        index_tars(tmp_path / "b")


def test_an_index_of_another_corpus_is_refused(tmp_path: Path) -> None:
    """Rows that point beyond a shard, or to labels that are not there, are found when the corpus is opened."""
    from dataclasses import replace

    from pipeline.corpora.shard_index import decode_rows, encode_rows, read_rows

    pack(open_corpus("synthetic:?count=5&seed=2", points=64), tmp_path / "out", shapes_per_shard=3)
    storage = storage_at(tmp_path / "out")
    contents = read_contents(storage)
    rows = read_rows(storage, contents)
    assert encode_rows(rows) == (tmp_path / "out" / "index" / "000.tar").read_bytes()
    for key, value in (("shard", 2), ("offset", 10**7), ("label", 99), ("split", 5), ("suffix", 1), ("size", 1 << 40)):
        column = getattr(rows, key).copy()
        column[3] = value
        with pytest.raises(CorpusError, match=f"{key} runs from|beyond the end"):
            decode_rows(encode_rows(replace(rows, **{key: column})), 5, contents, "index")
    with pytest.raises(CorpusError, match="expected 6 rows"):
        decode_rows(encode_rows(rows), 6, contents, "index")
    with pytest.raises(CorpusError, match="is damaged"):
        decode_rows(b"no tar", 5, contents, "index")
