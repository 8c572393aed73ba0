"""Few-shot episodes over labelled corpora, and the field's folds through a reader that calls nothing."""

import os
import pickle
from collections import Counter

import numpy as np
import pytest

from pipeline.corpora import CorpusError, open_corpus
from pipeline.corpora.episodes import Pool, draw_episode
from pipeline.corpora.kinds.fold_pickles import read_fold
from tests.support.corpora import ball


def pool(classes=12, each=30, prefix="a"):
    return Pool(
        [f"{prefix}{k}" for k in range(classes * each)], [f"class {k % classes}" for k in range(classes * each)]
    )


def test_an_episode_is_balanced_and_disjoint():
    train, test = pool(), pool(each=25, prefix="t")
    episode = draw_episode(train, test, way=5, shot=10, fold=3)
    assert len(set(episode.classes)) == 5
    assert len(set(episode.support)) == 50
    assert len(set(episode.queries)) == 100
    assert [train.classes[i] for i in episode.support] == [name for name in episode.classes for _ in range(10)]
    assert [test.classes[i] for i in episode.queries] == [name for name in episode.classes for _ in range(20)]
    alone = draw_episode(train, None, way=5, shot=10, fold=3)
    assert not set(alone.support) & set(alone.queries)
    assert (len(alone.queries), alone.support) == (100, episode.support)


def test_folds_and_seeds_differ_and_order_does_not_matter():
    train, test = pool(), pool(each=25, prefix="t")
    drawn = [draw_episode(train, test, way=5, shot=10, fold=fold) for fold in range(10)]
    assert len({episode.classes for episode in drawn}) > 5
    assert draw_episode(train, test, way=5, shot=10, fold=0, seed=1) != drawn[0]
    turned = Pool(train.ids[::-1], train.classes[::-1])
    again = draw_episode(turned, test, way=5, shot=10, fold=0)
    assert [turned.ids[i] for i in again.support] == [train.ids[i] for i in drawn[0].support]


def test_larger_settings_contain_smaller_ones():
    train, test = pool(), pool(each=25, prefix="t")
    small, more, wide = (
        draw_episode(train, test, way=way, shot=shot, fold=2) for way, shot in ((5, 10), (5, 20), (10, 10))
    )
    assert set(small.support) < set(more.support)
    assert small.queries == more.queries
    assert wide.classes[:5] == small.classes
    assert wide.support[:50] == small.support
    # the draw itself, which no release may change
    assert small.classes == ("class 5", "class 10", "class 7", "class 3", "class 6")
    assert small.support[:4] == (5, 293, 269, 41)


def test_too_few_shapes_are_named():
    with pytest.raises(CorpusError, match="13 classes were requested; 12 of 12 have 10 to train and 20 to test on"):
        draw_episode(pool(), pool(), way=13, shot=10, fold=0)
    with pytest.raises(CorpusError, match="5 classes were requested; 0 of 12 have 31 shapes"):
        draw_episode(pool(), None, way=5, shot=11, fold=0)
    with pytest.raises(ValueError, match="way 1"):
        draw_episode(pool(), None, way=1, shot=11, fold=0)


@pytest.fixture
def labelled(tmp_path):
    n = 80
    np.savez(
        tmp_path / "set.npz",
        points=np.stack([ball(64, k) for k in range(n)]),
        label=np.arange(n) % 4,
        label_names=np.array(["cup", "hat", "key", "pen"]),
        split=np.array(["train"] * 40 + ["test"] * 40),
        part=np.tile(np.arange(64) % 3, (n, 1)),
        part_names=np.array(["a", "b", "c"]),
    )
    return tmp_path / "set.npz"


def test_an_episode_of_a_corpus_is_a_corpus(labelled):
    uri = f"fewshot:?train=npz:{labelled}?split=train&test=npz:{labelled}?split=test&way=3&shot=4&queries=5"
    train, test = open_corpus(uri, points=32), open_corpus(f"{uri}&split=test", points=32)
    assert (len(train), len(test)) == (12, 15)
    assert (train.label_names, train.part_names) == (test.label_names, ("a", "b", "c"))
    assert [train.label(i) for i in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    whole = open_corpus(f"npz:{labelled}", points=32)
    where = {whole.id(i): i for i in range(len(whole))}
    shape = test[6]
    stored = whole[where[shape.id]]
    assert shape.points.tobytes() == stored.points.tobytes()
    assert (shape.part_labels == stored.part_labels).all()
    assert test.label_names[shape.label] == whole.label_names[stored.label]
    assert (shape.split, train.split_of(0), whole.split_of(where[shape.id])) == ("test", "train", "test")
    other = open_corpus(f"{uri}&fold=1", points=32)
    assert other.identity != train.identity == open_corpus(uri, points=32).identity
    assert train.fingerprint(0) != whole.fingerprint(where[train.id(0)])


def test_corpora_that_share_shapes_are_no_two_splits(labelled):
    with pytest.raises(CorpusError, match=r"40 shapes are in train= and in test=.*leave test= out"):
        open_corpus(f"fewshot:?train=npz:{labelled}&test=npz:{labelled}?split=test", points=32)
    one = f"fewshot:?train=npz:{labelled}%3Fsplit=train&way=2&shot=5&queries=5"
    ids = [
        {corpus.id(i) for i in range(len(corpus))}
        for corpus in (open_corpus(f"{one}&split={split}", points=32) for split in ("train", "test"))
    ]
    assert [len(found) for found in ids] == [10, 10]
    assert not ids[0] & ids[1]
    with pytest.raises(CorpusError, match="no corpus to draw from"):
        open_corpus("fewshot:", points=32)
    with pytest.raises(CorpusError, match="ways is not an option; did you mean way"):
        open_corpus(f"{one}&ways=3", points=32)


# -- the field's files -------------------------------------------------------------------------------------------------


def fold_items(way, each, points=64, seed=0):
    return [
        (np.concatenate([ball(points, seed + k), ball(points, k)], axis=1), k % way, np.int32(30 - k % way))
        for k in range(way * each)
    ]


def write_fold(root, *, way=5, shot=10, fold=0, train=None, test=None, protocol=4, name="{}way_{}shot"):
    path = root / name.format(way, shot) / f"{fold}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"train": train or fold_items(way, shot), "test": test or fold_items(way, 20, seed=1000)}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("name", ["{}way_{}shot", "{}way{}shot"])
def test_a_fold_is_read_as_it_was_pickled(tmp_path, protocol, name):
    path = write_fold(tmp_path, protocol=protocol, name=name)
    corpus = open_corpus(f"fewshot:{tmp_path}?split=test&order=stored", points=48)
    assert (len(corpus), corpus.label_names) == (100, tuple(f"class {30 - k}" for k in range(5)))
    assert Counter(corpus.label(i) for i in range(100)) == dict.fromkeys(range(5), 20)
    assert corpus[7].points.tobytes() == ball(64, 1007)[:48].tobytes()
    assert len(open_corpus(f"fewshot:{tmp_path}?seed=1", points=48)) == 50
    other = read_fold(path)["train"][3]
    assert (other.points.shape, other.label, other.original) == ((64, 6), 3, 27)


def test_numpys_old_names_and_other_whole_numbers_are_read(tmp_path):
    train = [(ball(64, k).astype(">f8"), np.int64(k % 5), [np.array([k % 5]), k % 5][k % 2]) for k in range(50)]
    path = write_fold(tmp_path, train=train, protocol=3)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    corpus = open_corpus(f"fewshot:{tmp_path}?order=stored", points=64)
    assert corpus[9].points.tobytes() == ball(64, 9).tobytes()
    assert (corpus.label(9), corpus.label_names[4]) == (4, "class 4")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), r"names (posix|os|nt)\.mkdir, but only four names of NumPy are allowed"),
        ({"train": [Evil()], "test": []}, "only four names of NumPy"),
        ({"train": [(np.array([print]), 0, 0)], "test": [1]}, "only four names of NumPy"),
        ({"train": [(np.array([None] * 99).reshape(33, 3), 0, 0)], "test": [1]}, "'train' 0 has no points"),
        ({"train": [(np.zeros((9, 2), "f4"), 0, 0)], "test": [1]}, "'train' 0 has no points"),
        ({"train": [(np.zeros((9, 3), "f4"), 0, 0)], "test": [1]}, r"x\.pkl: 'train' 0: holds 1 clouds of 9 points"),
        ({"train": [(ball(64), 0.5, 0)], "test": [1]}, "label or class that is not a whole number"),
        ({"train": [(ball(64), 0)], "test": [1]}, r"'train' 0 is not \(points, label, class\)"),
        ({"train": []}, "does not contain a dict of 'train' and 'test'"),
        ({"train": {}, "test": []}, "'train' is not a list of items"),
        (bytearray(64), "it uses BYTEARRAY8|names builtins.bytearray"),
        ({1, 2}, "it uses EMPTY_SET|names"),
    ],
)
def test_what_is_more_than_a_fold_is_refused_and_nothing_runs(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=5 if isinstance(content, bytearray) else 4))
    with pytest.raises(CorpusError, match=message):
        read_fold(tmp_path / "x.pkl")
    assert sorted(os.listdir(tmp_path)) == ["x.pkl"]


def test_damaged_folds_are_refused_everywhere(tmp_path):
    path = write_fold(tmp_path, train=fold_items(5, 10, points=33), test=fold_items(5, 1, points=33), protocol=3)
    data = path.read_bytes()
    for cut in (0, 1, 2, 50, 200, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(CorpusError):
            read_fold(path)
    rng, read = np.random.default_rng(0), 0
    for at in rng.integers(0, 1200, 300).tolist():
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :])
        try:
            read += len(read_fold(path)["train"]) == 50
        except CorpusError:
            continue
    assert read  # a bit of a coordinate is a coordinate
    path.write_bytes(b"\x80\x04r\xff\xff\xff\x7f.")  # a memo of two thousand million entries
    with pytest.raises(CorpusError, match=r"numbers object|not a complete pickle"):
        read_fold(path)
    path.write_bytes(b"\x80\x04" + b"]" * 10 + b"(" * 100_000 + b"t" * 100_000 + b".")
    with pytest.raises(CorpusError):
        read_fold(path)


def test_a_fold_is_counted_and_its_labels_checked(tmp_path):
    write_fold(tmp_path, train=fold_items(5, 9))
    with pytest.raises(CorpusError, match=r"train: 45 shapes, 50 in the release\n.*Point-BERT"):
        open_corpus(f"fewshot:{tmp_path}", points=64)
    assert len(open_corpus(f"fewshot:{tmp_path}?counts=any", points=64)) == 45
    write_fold(tmp_path, fold=1, test=fold_items(5, 19))
    with pytest.raises(CorpusError, match="test: 95 shapes, 100 in the release"):
        open_corpus(f"fewshot:{tmp_path}?fold=1&split=test", points=64)
    write_fold(tmp_path, fold=2, train=fold_items(6, 10))
    with pytest.raises(CorpusError, match=r"label 5 of train 5; expected 0\.\.4 for 5 ways"):
        open_corpus(f"fewshot:{tmp_path}?fold=2", points=64)
    mixed = fold_items(5, 10)
    mixed[7] = (mixed[7][0], mixed[7][1], np.int32(3))
    write_fold(tmp_path, fold=3, train=mixed)
    with pytest.raises(CorpusError, match="label 2 has the classes 28 and 3"):
        open_corpus(f"fewshot:{tmp_path}?fold=3", points=64)
    for uri, message in (
        ("fold=9", r"no .*5way_10shot/9\.pkl and no .*5way10shot/9\.pkl"),
        ("fold=10", "fold = 10 is outside 0..9"),
    ):
        with pytest.raises(CorpusError, match=message):
            open_corpus(f"fewshot:{tmp_path}?{uri}", points=64)
