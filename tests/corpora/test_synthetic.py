"""The synthetic corpus: what its promises say, category by category."""

import numpy as np
import pytest

from pipeline.corpora import Corpus, CorpusError, open_corpus
from pipeline.corpora.objects import CATEGORIES

NAMES = [category.name for category in CATEGORIES]


def test_there_are_enough_categories_and_their_names_are_distinct():
    assert len(NAMES) == len(set(NAMES)) >= 24
    assert isinstance(open_corpus("synthetic:?count=3", points=64), Corpus)


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_a_shape_never_depends_on_the_count(split):
    short = open_corpus(f"synthetic:?count=50&seed=3&split={split}", points=256)
    long = open_corpus(f"synthetic:?count=120&seed=3&split={split}", points=256)
    assert short.identity == long.identity
    for i in (0, 7, 49):
        assert short.id(i) == long.id(i)
        assert short.fingerprint(i) == long.fingerprint(i)
        assert short[i].points.tobytes() == long[i].points.tobytes()


def test_fewer_points_are_a_prefix_of_more():
    few, many = open_corpus("synthetic:?count=40", points=512), open_corpus("synthetic:?count=40", points=2048)
    for i in (0, 11, 39):
        assert few[i].points.tobytes() == many[i].points[:512].tobytes()


def test_train_and_test_are_disjoint_and_all_interleaves_them():
    train, test = (open_corpus(f"synthetic:?count=200&split={split}", points=64) for split in ("train", "test"))
    everything = open_corpus("synthetic:?count=200&split=all", points=64)
    of_train, of_test = ({corpus[i].points.tobytes() for i in range(200)} for corpus in (train, test))
    assert not of_train & of_test
    assert len(of_train) == len(of_test) == 200
    assert [everything[i].split for i in range(5)] == ["train"] * 4 + ["test"]
    assert everything.id(5) == train.id(4)
    assert everything.id(9) == test.id(1)
    assert len({everything.id(i) for i in range(200)}) == 200


def test_every_prefix_is_balanced():
    corpus = open_corpus("synthetic:?count=500&seed=2", points=64)
    for stop in (1, 37, 100, 500):
        counts = np.bincount([corpus.label(i) for i in range(stop)], minlength=len(NAMES))
        assert counts.max() - counts.min() <= 1


def test_seeds_differ_and_a_seed_repeats():
    a, b, again = (open_corpus(f"synthetic:?count=30&seed={seed}", points=128) for seed in (0, 1, 0))
    assert a[3].points.tobytes() == again[3].points.tobytes()
    assert a[3].points.tobytes() != b[3].points.tobytes()
    assert a.id(3) != b.id(3)


@pytest.mark.parametrize("name", NAMES)
def test_every_object_of_a_category_is_whole_and_says_what_it_is(name):
    """Shapes pass their checks; parts are those declared, each of them occurs; describe() agrees with the parts."""
    corpus = open_corpus(f"synthetic:?count=80&seed=5&categories={name}", points=1024)
    declared = set(corpus.part_names)
    seen: set[str] = set()
    for i in range(len(corpus)):
        attributes = corpus.describe(i)
        used = {f"{name}/{part}" for part in attributes.parts}
        assert used <= declared
        seen |= used
        if i < 12:
            shape = corpus[i]
            assert shape.points.shape == (1024, 3)
            assert shape.points.dtype == np.float32
            assert {corpus.part_names[k] for k in np.unique(shape.part_labels)} <= used
            assert attributes.category == name == corpus.label_names[shape.label]
            assert sum(attributes.areas.values()) == pytest.approx(1)
            assert max(attributes.size) == 1
            assert sum(attributes.parts.values()) == len(corpus.parts(i))
            assert all(isinstance(value, str | int | float | bool) for value in attributes.facts.values())
    assert seen == declared, "a part that is never drawn"


def test_objects_of_a_category_differ():
    for name in NAMES:
        corpus = open_corpus(f"synthetic:?count=12&categories={name}", points=64)
        sizes = {tuple(np.round(corpus.describe(i).size, 3)) for i in range(12)}
        assert len(sizes) >= 8, name


def test_parts_have_as_many_points_as_their_share_of_the_surface():
    corpus = open_corpus("synthetic:?count=40", points=8192)
    for i in range(0, 40, 3):
        shape, attributes = corpus[i], corpus.describe(i)
        for part, share in attributes.areas.items():
            number = corpus.part_names.index(f"{attributes.category}/{part}")
            found = (shape.part_labels == number).mean()
            # Five standard deviations of a binomial share: one in a million by chance, and the seed is fixed.
            assert abs(found - share) <= 5 * np.sqrt(share * (1 - share) / 8192) + 1e-9, (attributes.category, part)


def test_a_prefix_of_a_shape_is_spread_like_the_whole():
    shape = open_corpus("synthetic:?count=1&categories=chair", points=8192)[0]
    whole, prefix = (
        np.bincount(part, minlength=8) / len(part) for part in (shape.part_labels, shape.part_labels[:1024])
    )
    assert np.abs(whole - prefix).max() < 0.08  # binomial: five deviations at 1024 points


def test_rotation_turns_the_same_object():
    plain, yaw, free = (
        open_corpus(f"synthetic:?count=20&rotate={kind}", points=256) for kind in ("none", "yaw", "so3")
    )
    a, b, c = plain[4].points.astype(float), yaw[4].points.astype(float), free[4].points.astype(float)
    assert np.allclose(a[:, 2], b[:, 2], atol=1e-6)
    assert not np.allclose(a, b, atol=1e-2)
    for turned in (b, c):
        assert np.allclose(np.linalg.norm(a, axis=1), np.linalg.norm(turned, axis=1), atol=1e-5)
        rotation = np.linalg.lstsq(a, turned, rcond=None)[0]
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-4)
    assert not np.allclose(a[:, 2], c[:, 2], atol=1e-2)


def test_categories_narrow_the_labels_and_enter_the_identity():
    corpus = open_corpus("synthetic:?count=6&categories=table,chair", points=64)
    assert corpus.label_names == ("chair", "table")  # in the generator's order, whatever the URI's
    assert [corpus.label(i) for i in range(6)] == [0, 1, 0, 1, 0, 1]
    assert corpus.identity != open_corpus("synthetic:?count=6", points=64).identity
    assert all(name.startswith(("chair/", "table/")) for name in corpus.part_names)


def test_it_stays_in_range():
    corpus = open_corpus("synthetic:?count=4", points=64)
    assert corpus[2].id == corpus.id(2)
    with pytest.raises(IndexError, match=r"outside 0\.\.3"):
        corpus[4]
    with pytest.raises(IndexError, match=r"outside 0\.\.3"):
        corpus.id(-1)


def test_the_generator_draws_what_it_always_drew():
    """Literal shapes: if this fails on purpose, raise GENERATOR_VERSION and replace the numbers."""
    corpus = open_corpus("synthetic:?count=76&seed=0", points=64)
    for i, expected in GOLDEN.items():
        # 1e-6: the float64 sines of two machines may differ in the last bit; the shapes are of size 0.1 to 10.
        assert np.allclose(corpus[i].points[0], expected, rtol=1e-6, atol=1e-6), corpus.id(i)


GOLDEN: dict[int, tuple[float, float, float]] = {
    0: (0.1634197235107422, 0.16687272489070892, 0.34640172123908997),  # a chair
    9: (0.5579480528831482, 0.07845804840326309, 1.1825021505355835),  # a piano
    17: (-0.19132113456726074, 0.399690181016922, 0.538158655166626),  # a toilet
    29: (0.7744109034538269, -0.32934004068374634, -0.4035811126232147),  # an airplane
    38: (-0.6718454957008362, 0.12485840171575546, 0.42027708888053894),  # a bench
}


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("synthetic:?count=0", r"count = 0 is outside 1\.\."),
        ("synthetic:?split=val", r"split = 'val' is not one of train, test, all"),
        ("synthetic:?categories=chair,dragon", r"categories: 'dragon' not known; there are chair, stool"),
        (
            "synthetic:?cuont=5&seed=x",
            r"2 problem\(s\)\n  seed = 'x' is not a whole number\n  cuont is not an option; did you mean count\?",
        ),
        ("synthetic:somewhere", r"has no location, found 'somewhere'"),
    ],
)
def test_wrong_options_are_named(uri, message):
    with pytest.raises(CorpusError, match=message):
        open_corpus(uri, points=64)
