"""An experiment is about its own shapes: what it selects, builds, compares, and leaves alone."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import teacher_cache
from pipeline.build.driver import BuildReport, build_cache, changes_at
from pipeline.build.own_records import own_records
from pipeline.build.selection import OwnShapes, select_shapes
from pipeline.config import BuildConfig, CorpusConfig
from pipeline.corpora import open_corpus
from pipeline.errors import BuildError, TooManyRefused
from teacher_cache import CacheConfig
from teacher_cache.maintenance.repair import sound_description
from teacher_cache.storage.opening import storage_at
from tests.build.test_changes import cloud
from tests.support.builds import POINTS, tree
from tests.support.teachers import TINY_PROJECTION, tiny_teacher

COUNT = 13


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "shapes"
    folder.mkdir()
    for k in range(COUNT):
        np.save(folder / f"{k:02d}.npy", cloud(k))
    return folder


def of(uri: Path | str, **settings: Any) -> CorpusConfig:
    return CorpusConfig(uri=f"folder:{uri}" if isinstance(uri, Path) else uri, points=POINTS, **settings)


def build(tmp_path: Path, corpus: CorpusConfig, **settings: Any) -> BuildReport:
    return build_cache(
        corpus,
        TINY_PROJECTION,
        tiny_teacher(tmp_path),
        CacheConfig(root=str(tmp_path / settings.pop("root", "caches")), shapes_per_shard=4),
        BuildConfig(workers=1, **{"max_refused": 1.0, **settings}),
    )


def trained_on(report: BuildReport, corpus: CorpusConfig, **settings: Any) -> list[str]:
    return own_records(teacher_cache.open(report.path), corpus, **settings)[0].ids


def names(*numbers: int) -> list[str]:
    return [f"{k:02d}.npy" for k in numbers]


# -- what is selected --------------------------------------------------------------------------------------------------

ids_of_any_kind = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=40, unique=True)


@given(ids_of_any_kind, st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 5), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_shares_are_nested_of_their_size_and_of_no_order(
    ids: list[str], one: float, other: float, seed: int, random: Any
) -> None:
    small, large = sorted([one, other])
    lots = [
        {ids[k] for k in select_shapes(ids, CorpusConfig(share=share, share_seed=seed))} for share in (small, large)
    ]
    assert lots[0] <= lots[1]
    assert [len(lot) for lot in lots] == [max(1, round(share * len(ids))) for share in (small, large)]
    mixed = ids[:]
    random.shuffle(mixed)
    assert {mixed[k] for k in select_shapes(mixed, CorpusConfig(share=small, share_seed=seed))} == lots[0]


@given(ids_of_any_kind, st.integers(1, 50), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_take_applies_before_share(ids: list[str], take: int, share: float) -> None:
    if take > len(ids):
        with pytest.raises(
            BuildError, match=rf"corpus.take = {take} is more than the {len(ids)} shapes? of the corpus"
        ):
            select_shapes(ids, CorpusConfig(take=take, share=share))
        return
    chosen = select_shapes(ids, CorpusConfig(take=take, share=share)).tolist()
    assert chosen == select_shapes(ids[:take], CorpusConfig(share=share)).tolist()
    assert select_shapes(ids, CorpusConfig(take=take)).tolist() == list(range(take))


def test_a_literal_share_and_another_seed() -> None:
    """These shapes hold on every machine: a share is part of what a run is."""
    ids = [f"s{k}" for k in range(20)]
    chosen = select_shapes(ids, CorpusConfig(share=0.2)).tolist()
    assert chosen == [0, 1, 12, 14]
    assert select_shapes(ids, CorpusConfig(share=0.2, share_seed=1)).tolist() != chosen
    assert select_shapes(ids, CorpusConfig()).tolist() == list(range(20))


def test_a_list_in_any_order_and_encoding(tmp_path: Path) -> None:
    ids = ["a", "b ", "ü/c", "d"]
    for data in ("d\nü/c\n\nd\n".encode(), "﻿d\r\nü/c".encode(), "d\rü/c\r".encode("utf-16")):
        (tmp_path / "list.txt").write_bytes(data)
        for name in (str(tmp_path / "list.txt"), (tmp_path / "list.txt").as_uri()):
            assert select_shapes(ids, CorpusConfig(only=name)).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a\nx\ny\n", r"names 2 shapes that the corpus does not have: 'x', 'y'"),
        (b"", "is empty"),
        (b"\n \n", "contains no ids"),
        (b"a\n\xff\n", "line 2 is not valid UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (None, "No such file or directory"),
    ],
)
def test_a_list_that_cannot_be_followed_is_refused(tmp_path: Path, data: bytes | None, said: str) -> None:
    if data is not None:
        (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(BuildError, match=rf"corpus.only = .*list.txt.*{said}"):
        select_shapes(["a", "b"], CorpusConfig(only=str(tmp_path / "list.txt")))


def test_settings_that_select_nothing_or_do_nothing_are_refused() -> None:
    wrong: list[dict[str, Any]] = [{"share": 0.0}, {"share": 1.5}, {"take": -1}]
    assert [next(iter(CorpusConfig(**each).problems())) for each in wrong] == [
        "share = 0.0 is outside 0..1 (0 excluded)",
        "share = 1.5 is outside 0..1 (0 excluded)",
        "take = -1 is negative",
    ]  # fmt: skip
    assert "share = 1.0 takes all" in next(iter(CorpusConfig(share_seed=3).problems()))
    assert not CorpusConfig().selects


# -- builds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["folder", "synthetic:?count=13&seed=1"])
def test_a_cache_grows_by_what_is_missing_and_each_experiment_has_its_own(
    tmp_path: Path, corpus: Path, uri: str
) -> None:
    place: Path | str = corpus if uri == "folder" else uri
    selections = [of(place, share=0.4), of(place, take=3), of(place, share=0.4, share_seed=5), of(place)]
    reports = [build(tmp_path, selection) for selection in selections]
    assert len({report.path for report in reports}) == 1
    cache = teacher_cache.open(reports[0].path)
    assert sorted(cache.ids) == sorted(OwnShapes.of(open_corpus(selections[3].uri, points=POINTS), of(place)).places)
    assert cache.complete
    assert teacher_cache.verify(reports[0].path) == []
    assert sum(report.built for report in reports) == len(cache.counts)
    assert [report.shapes for report in reports] == [5, 3, 5, 13]
    source = open_corpus(selections[0].uri, points=POINTS)
    for selection in selections:
        own = OwnShapes.of(source, selection)
        again = build(tmp_path, selection)
        assert again.already_complete
        assert (again.shapes, again.others) == (len(own.places), COUNT - len(own.places))
        assert set(trained_on(again, selection)) == set(own.places)
    alone = build(tmp_path, selections[0], root="alone")
    assert alone.others == 0
    theirs, ours = teacher_cache.open(alone.path), own_records(cache, selections[0])[0]
    assert theirs.ids == ours.ids
    for record in range(5):
        np.testing.assert_array_equal(theirs[record].features, ours[record].features)


def test_the_records_of_a_plain_corpus_are_the_cache_itself(tmp_path: Path, corpus: Path) -> None:
    """Nothing is another for an experiment that selects nothing: no digest, no view, the same numbers."""
    report = build(tmp_path, of(corpus))
    cache = teacher_cache.open(report.path)
    assert own_records(cache, of(corpus)) == (cache, [])
    numbered = of("synthetic:?count=7&seed=1")
    made_up = teacher_cache.open(build(tmp_path, numbered).path)
    assert own_records(made_up, numbered) == (made_up, [])
    build(tmp_path, of("synthetic:?count=9&seed=1"))
    grown = teacher_cache.open(made_up.path)
    first, notes = own_records(grown, numbered)
    assert isinstance(first, teacher_cache.Selection)
    assert (first.ids, first.digest) == (made_up.ids, None)
    assert notes == ["note: the experiment uses 7 of the 9 shapes in the cache"]


def test_a_selection_says_which_shapes_also_where_it_is_all_there_is(tmp_path: Path, corpus: Path) -> None:
    part = of(corpus, share=0.4)
    alone = own_records(teacher_cache.open(build(tmp_path, part).path), part)[0]
    assert isinstance(alone, teacher_cache.Selection)
    build(tmp_path, of(corpus))
    within = own_records(teacher_cache.open(alone.path), part)[0]
    assert isinstance(within, teacher_cache.Selection)
    assert alone.digest == within.digest is not None


# -- changes -----------------------------------------------------------------------------------------------------------


def test_a_file_that_vanished_is_noticed_by_the_experiments_that_had_it(tmp_path: Path, corpus: Path) -> None:
    build(tmp_path, of(corpus))
    (tmp_path / "has.txt").write_text("\n".join(names(2, 5)))
    (tmp_path / "not.txt").write_text("\n".join(names(2, 6)))
    shares = {
        0.2 * k: set(trained_on(build(tmp_path, of(corpus, share=0.2 * k)), of(corpus, share=0.2 * k)))
        for k in (1, 2, 3, 4)
    }
    (corpus / "05.npy").unlink()
    without = [of(corpus, take=5), of(corpus, only=str(tmp_path / "not.txt"))]
    having = [of(corpus), of(corpus, take=6), of(corpus, take=12)]
    for share, had in shares.items():
        (having if "05.npy" in had else without).append(of(corpus, share=share))
    for selection in without:
        assert build(tmp_path, selection).already_complete
    for selection in having:
        with pytest.raises(BuildError, match=r"1 shape is no longer in the corpus: '05.npy'"):
            build(tmp_path, selection)
    with pytest.raises(BuildError, match=r"has.txt names 1 shape that the corpus does not have: '05.npy'"):
        build(tmp_path, of(corpus, only=str(tmp_path / "has.txt")))


@pytest.mark.parametrize("selection", [{"take": 4}, {"share": 0.3}])
def test_a_file_that_changed_matters_to_the_experiments_that_have_it(
    tmp_path: Path, corpus: Path, selection: dict[str, Any]
) -> None:
    report = build(tmp_path, of(corpus))
    own = trained_on(report, of(corpus, **selection))
    other = next(name for name in names(*range(COUNT)) if name not in own)
    np.save(corpus / other, cloud(98))
    assert build(tmp_path, of(corpus, **selection)).already_complete
    np.save(corpus / own[-1], cloud(99))
    with pytest.raises(BuildError, match=rf"1 shape changed since the cache was built: '{own[-1]}'"):
        build(tmp_path, of(corpus, **selection))
    changes = changes_at(report.path, of(corpus, **selection), content=True)
    assert changes is not None
    assert (changes.changed, changes.others) == ((own[-1],), COUNT - len(own))
    rebuilt = build(tmp_path, of(corpus, **selection), changed="rebuild")
    assert rebuilt.built == 1
    cache = teacher_cache.open(rebuilt.path)
    assert cache.ids == names(*range(COUNT))  # other experiments' shapes of that shard are there again, in their places
    assert teacher_cache.verify(rebuilt.path) == []
    everything = changes_at(report.path, of(corpus), content=True)
    assert everything is not None
    assert set(everything.changed) <= {other}  # it may have stood in the shard that was built again


def test_an_unselected_file_is_not_read(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = set(trained_on(build(tmp_path, of(corpus)), of(corpus, share=0.3)))
    read: list[str] = []
    monkeypatch.setattr(
        "pipeline.build.changes.made_of",
        lambda source, index: read.append(source.id(index)) or source.fingerprint(index),
    )
    monkeypatch.setattr("pipeline.build.changes._SETTLED", -(10**15))
    assert build(tmp_path, of(corpus, share=0.3), check="content").already_complete
    assert set(read) == own
    read.clear()
    assert build(tmp_path, of(corpus, share=0.3)).already_complete  # by the stamps of these very shapes
    assert build(tmp_path, of(corpus)).already_complete
    assert set(read) == set(names(*range(COUNT)))  # the whole has stamps of its own
    read.clear()
    for selection in ({"share": 0.3}, {}, {"share": 0.3}):
        assert build(tmp_path, of(corpus, **selection)).already_complete
    assert read == []


def test_the_share_of_refused_shapes_is_that_of_the_experiment(tmp_path: Path, corpus: Path) -> None:
    (corpus / "00.npy").write_bytes(b"no cloud")
    assert build(tmp_path, of(corpus), max_refused=0.1).quarantined
    with pytest.raises(TooManyRefused, match="1 of 2 shapes"):
        build(tmp_path, of(corpus, take=2), max_refused=0.1)
    (tmp_path / "some.txt").write_text("\n".join(names(1, 2)))
    report = build(tmp_path, of(corpus, only=str(tmp_path / "some.txt")), max_refused=0.1)
    assert (report.quarantined, report.shapes, report.others) == ((), 2, COUNT - 2)
    np.save(corpus / "00.npy", cloud(0))
    assert build(tmp_path, of(corpus, only=str(tmp_path / "some.txt"))).already_complete  # not its business
    assert build(tmp_path, of(corpus, take=2)).quarantined == ()
    assert sorted(teacher_cache.open(report.path).ids) == names(*range(COUNT))


def test_an_interrupted_larger_build_is_no_hindrance(tmp_path: Path, corpus: Path) -> None:
    report = build(tmp_path, of(corpus))
    whole = tree(Path(report.path))
    storage = storage_at(report.path)
    teacher_cache.CacheWriter(storage, sound_description(report.path)).withdraw([1, 2])
    part = of(corpus, take=3)
    assert build(tmp_path, part).shapes == 3
    assert teacher_cache.verify(report.path) == []
    assert trained_on(report, part) == names(0, 1, 2)
    assert build(tmp_path, of(corpus)).built == 2
    assert tree(Path(report.path)) == whole


def test_a_shard_whose_files_are_gone_is_made_whole_again(tmp_path: Path, corpus: Path) -> None:
    report = build(tmp_path, of(corpus))
    whole = tree(Path(report.path))
    shutil.rmtree(Path(report.path) / "features")
    assert build(tmp_path, of(corpus, take=2)).built == 1  # of four: its own shard, with the others' shapes
    assert len(teacher_cache.open(report.path)) == 4
    build(tmp_path, of(corpus))
    assert tree(Path(report.path)) == whole


def test_a_shard_that_lost_all_of_an_experiments_shapes_keeps_those_of_others(tmp_path: Path, corpus: Path) -> None:
    """Of 00, 03 and 08 the last vanishes: its shard, 08..11, is built again, and has none of the experiment's left."""
    part = of(corpus, share=0.2)
    assert trained_on(build(tmp_path, of(corpus)), part) == names(0, 3, 8)
    (corpus / "08.npy").unlink()
    report = build(tmp_path, part, changed="rebuild")
    assert (report.shapes, report.others, report.built) == (2, COUNT - 3, 1)
    assert teacher_cache.open(report.path).ids == names(*(k for k in range(COUNT) if k != 8))
    assert teacher_cache.verify(report.path) == []


@pytest.mark.parametrize("then", [{}, {"take": 1}])
def test_shapes_that_two_builds_at_once_put_into_two_shards_are_held_once_again(
    tmp_path: Path, corpus: Path, then: dict[str, Any]
) -> None:
    """Both began when shard 0 was there: one planned 8 and 12 for shard 1, the other 8 and 9 for shard 2."""
    lists = {"one": names(8, 12), "other": names(4, 5, 6, 7, 8, 9)}
    for name, ids in lists.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(ids))
    paths = {}
    for name in lists:
        build(tmp_path, of(corpus, take=4), root=name)
        paths[name] = Path(build(tmp_path, of(corpus, only=str(tmp_path / f"{name}.txt")), root=name).path)
    for file in paths["other"].rglob("*"):  # what "other" committed where "one" had not
        place = paths["one"] / file.relative_to(paths["other"])
        if file.is_file() and not place.exists():
            shutil.copy(file, place)
    (paths["one"] / "manifest.json").unlink()  # neither has finished
    report = build(tmp_path, of(corpus, **then), root="one")
    cache = teacher_cache.open(report.path)
    assert teacher_cache.verify(report.path) == []
    assert sorted(cache.ids) == (names(0, 1, 2, 3, 8, 9, 12) if then else names(*range(COUNT)))
    assert cache.ids[:6] == names(0, 1, 2, 3, 8, 12)  # the shard that was there first stands as it is
    assert build(tmp_path, of(corpus, **then), root="one").already_complete


# -- a named cache -----------------------------------------------------------------------------------------------------


def test_shapes_that_a_named_cache_lacks_are_refused_or_said(tmp_path: Path, corpus: Path) -> None:
    cache = teacher_cache.open(build(tmp_path, of(corpus, take=5)).path)
    with pytest.raises(
        BuildError, match=r"expected the shapes .*; 1 of its 6 shapes are not in the cache, first '05.npy'"
    ):
        own_records(cache, of(corpus, take=6))
    numbered = teacher_cache.open(build(tmp_path, of("synthetic:?count=5&seed=1")).path)
    records, notes = own_records(numbered, of("synthetic:?count=8&seed=1"))
    assert records is numbered
    assert notes == ["note: 3 of its 8 shapes are not in the cache; the experiment continues without them"]
    assert own_records(cache, of(corpus)) == (cache, [notes[0].replace("3 of its 8", "8 of its 13")])


def test_without_its_corpus_the_settings_select_among_the_shapes_of_the_cache(tmp_path: Path, corpus: Path) -> None:
    part = of(corpus, share=0.4)
    cache = teacher_cache.open(build(tmp_path, of(corpus)).path)
    here = own_records(cache, part)[0].ids
    shutil.rmtree(corpus)
    away, notes = own_records(cache, part)
    assert away.ids == here
    assert (
        notes[0] == "note: the shapes are selected among those of the cache, because its corpus is not available here"
    )
    assert own_records(cache, of(corpus)) == (cache, [])


def test_a_stale_cache_as_it_is_has_the_shapes_it_was_built_with(tmp_path: Path, corpus: Path) -> None:
    cache = teacher_cache.open(build(tmp_path, of(corpus)).path)
    (tmp_path / "some.txt").write_text("\n".join(names(4, 5)))
    selections = [of(corpus, take=6), of(corpus, only=str(tmp_path / "some.txt")), of(corpus, share=0.5)]
    before = [own_records(cache, selection)[0].ids for selection in selections]
    (corpus / "05.npy").unlink()
    assert [own_records(cache, selection, as_it_is=True)[0].ids for selection in selections] == before
