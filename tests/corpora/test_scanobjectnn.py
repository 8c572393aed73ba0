"""ScanObjectNN: three variants under two names, counts of the release, labels in range."""

import h5py
import numpy as np
import pytest

from pipeline.corpora import CorpusError, open_corpus
from pipeline.corpora.kinds.scanobjectnn import CLASSES, VARIANTS
from tests.support.commands import run
from tests.support.corpora import ball

POINTS = 2048


def write_variant(root, variant, *, train=30, test=15, points=POINTS, **changes):
    """Files of a variant in the folder and under the names of the release: classes in turn, a tenth background."""
    _, folder, stem, _ = VARIANTS[variant]
    (root / folder).mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate((("training", train), ("test", test))):
        mask = np.zeros((count, points), np.int32)
        if folder == "main_split":
            mask[:, ::10] = -1
        arrays = {
            "data": np.stack([ball(points, 1000 * seed + k) for k in range(count)]),
            "label": (np.arange(count) % len(CLASSES)).astype(np.int32),
            "mask": mask,
            **changes,
        }
        with h5py.File(root / folder / f"{name}_{stem}.h5", "w") as file:
            for key, array in arrays.items():
                if array is not None:
                    file.create_dataset(key, data=array)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("above", ["", "h5_files"])
def test_each_variant_is_read_as_it_is_stored(tmp_path, variant, above):
    write_variant(tmp_path / above, variant)
    corpus = open_corpus(f"scanobjectnn:{tmp_path}?variant={variant}&split=all&counts=any", points=POINTS)
    assert (len(corpus), corpus.label_names, corpus.format_of(0)) == (45, CLASSES, "hdf5")
    assert (corpus.id(0), corpus.id(44)) == (f"{variant}/train/00000", f"{variant}/test/00014")
    assert (corpus.label(16), corpus.split_of(29), corpus.split_of(30)) == (1, "train", "test")
    assert {p.tobytes() for p in corpus[31].points} == {p.tobytes() for p in ball(POINTS, 1001)}  # a permutation, raw
    stored = open_corpus(f"scanobjectnn:{tmp_path}?variant={variant}&counts=any&order=stored", points=100)
    assert stored[7].points.tobytes() == ball(POINTS, 7)[:100].tobytes()


def test_the_other_variant_in_the_folder_is_found_out(tmp_path):
    """The names are the same, so that only the mask tells OBJ-BG from OBJ-ONLY."""
    write_variant(tmp_path, "obj_bg")
    with pytest.raises(
        CorpusError, match=r"mask holds background points, but OBJ-ONLY has none.*lies in main_split_nobg"
    ):
        open_corpus(f"scanobjectnn:{tmp_path}/main_split?variant=obj_only&counts=any", points=64)
    with pytest.raises(CorpusError, match=r"OBJ-ONLY lacks training_objectdataset\.h5; looked in .*main_split_nobg"):
        open_corpus(f"scanobjectnn:{tmp_path}?variant=obj_only&counts=any", points=64)
    write_variant(tmp_path, "obj_only")
    (tmp_path / "main_split_nobg").rename(tmp_path / "copied")
    with pytest.raises(CorpusError, match=r"mask holds no background points, but OBJ-BG has them.*lies in main_split$"):
        open_corpus(f"scanobjectnn:{tmp_path}/copied?variant=obj_bg&counts=any", points=64)
    assert len(open_corpus(f"scanobjectnn:{tmp_path}/copied?variant=obj_only&counts=any", points=64)) == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.full(30, 15, np.int32)}, r"label 15 of shape 0; expected 0\.\.14, the 15 classes"),
        ({"label": np.full(30, -1, np.int32)}, "label -1 of shape 0"),
        ({"mask": None}, "no dataset 'mask', which distinguishes OBJ-BG from OBJ-ONLY"),
        (
            {"mask": np.zeros((30, 3), np.int32)},
            r"'mask' has shape \(30, 3\) and type int32; expected whole numbers \(30,",
        ),
        ({"data": np.zeros((30, POINTS, 6), np.float32)}, r"dataset 'data' has shape \(30, 2048, 6\)"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, changes, message):
    write_variant(tmp_path, "obj_bg", test=30, **changes)
    with pytest.raises(CorpusError, match=message):
        open_corpus(f"scanobjectnn:{tmp_path}?variant=obj_bg&counts=any", points=64)


def test_a_set_that_is_not_whole_is_refused_with_how_to_get_it(tmp_path):
    write_variant(tmp_path, "obj_bg", train=14)
    with pytest.raises(CorpusError) as refused:
        open_corpus(f"scanobjectnn:{tmp_path}?variant=obj_bg&split=all", points=64)
    said = str(refused.value)
    assert f"the ScanObjectNN OBJ-BG in {tmp_path}" in said
    assert "differs from the release" in said
    assert "train: 14 shapes, 2,309 in the release" in said
    assert "test: 15 shapes, 581 in the release" in said
    assert "train: no shape of toilet" in said
    assert "is available through a form on https://hkust-vgd.github.io/scanobjectnn" in said
    with pytest.raises(CorpusError, match="no variant; add variant=obj_bg"):
        open_corpus(f"scanobjectnn:{tmp_path}", points=64)


def test_a_whole_release_opens_and_is_found_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(VARIANTS, "obj_bg", (*VARIANTS["obj_bg"][:3], (30, 15)))
    write_variant(tmp_path, "obj_bg")
    uri = f"scanobjectnn:{tmp_path}?variant=obj_bg&split=all"
    assert len(open_corpus(uri, points=64)) == 45
    found = run(capsys, "corpus", "check", uri, "--points", 64)
    assert (found.code, "nothing is missing" in found.out) == (0, True)
    assert "train       30 of 30 shapes" in found.out
    assert "h5_files.zip: not here, so no checksum was compared" in found.out
    (tmp_path / "h5_files.zip").write_bytes(b"cut")
    found = run(capsys, "corpus", "check", uri, "--points", 64)
    assert (found.code, "h5_files.zip: 3 bytes; the release has 13099259542" in found.out) == (1, True)


def test_counts_do_not_enter_the_identity_and_variants_do(tmp_path, monkeypatch):
    for variant in VARIANTS:
        write_variant(tmp_path, variant)
        monkeypatch.setitem(VARIANTS, variant, (*VARIANTS[variant][:3], (30, 15)))
    base = f"scanobjectnn:{tmp_path}?variant="
    any_count, official = (open_corpus(f"{base}obj_bg{rest}", points=64) for rest in ("&counts=any", ""))
    assert any_count.identity == official.identity
    others = [
        open_corpus(f"{base}{rest}", points=64).identity for rest in ("obj_only", "pb_t50_rs", "obj_bg&order=stored")
    ]
    assert all(other != official.identity for other in others)
