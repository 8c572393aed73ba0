"""``i2p cache convert | merge | gc``, and what list and repair say of other caches than the quickstart's."""

import errno
import io
import multiprocessing
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import cli.commands.cache_tools
import teacher_cache
from cli.experiment.own_recipe import experiment_by_recipe
from pipeline.build.driver import build_cache
from pipeline.corpora import open_corpus
from teacher_cache import config as settings
from teacher_cache.testing import build
from tests.support.builds import small_build, tree
from tests.support.commands import run

DEAD = "host-12-0123456789abcdef"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small cache of the synthetic corpus, five shards."""
    return Path(small_build(tmp_path / "small").path)


def leave_workspace(cache: Path) -> None:
    (cache / "tmp" / DEAD).mkdir(parents=True)
    (cache / "tmp" / DEAD / "half").write_bytes(bytes(2_000_000))
    (cache / "tmp" / f"{DEAD}.lock").touch()


def test_convert_writes_what_a_build_with_that_storage_writes(tmp_path: Path, small: Path, capsys) -> None:
    outcome = run(capsys, "cache", "convert", small, "--format", "webdataset", "--root", tmp_path / "tar")
    assert outcome.code == 0, outcome.err
    found = Path(outcome.out.strip())
    expected = Path(small_build(tmp_path / "small", format="webdataset").path)
    assert (found.parent, found.name) == (tmp_path / "tar", expected.name)
    assert tree(found) == tree(expected)
    assert "converting: 5/5 shards" in outcome.err
    assert "5 of 5 shards written: 23 records" in outcome.err
    again = run(capsys, "cache", "convert", small, "--format", "webdataset", "--root", tmp_path / "tar")
    assert again.code == 0
    assert "already complete: 23 records" in again.err
    beside = run(capsys, "cache", "convert", small, "--compression", "none")
    assert Path(beside.out.strip()).parent == small.parent


@pytest.mark.parametrize("poses", [1, 2])
def test_convert_zeroes_what_a_build_would_have_zeroed(tmp_path: Path, capsys, poses: int) -> None:
    """From exact features, int8 and zeroed untouched tokens are the build's own, to the byte."""
    source = small_build(tmp_path, poses=poses, cache={"features": "float32", "shapes_per_shard": 20}).path
    storage = {"features": "int8", "steps": 24, "untouched": "zero", "shapes_per_shard": 20}
    expected = Path(small_build(tmp_path, poses=poses, cache=storage).path)
    outcome = run(
        capsys, "cache", "convert", source, "--root", tmp_path / "found",
        "--features", "int8", "--steps", 24, "--untouched", "zero",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert tree(Path(outcome.out.strip())) == tree(expected)
    cache = teacher_cache.open(expected)
    zeros = cache.read(range(len(cache))).features == 0
    assert zeros.all(axis=-1).any(), "some token is untouched, or nothing was compared"


def test_a_converted_cache_is_repaired_by_the_experiment_it_carries(smoke, tmp_path: Path, capsys) -> None:
    outcome = run(capsys, "cache", "convert", smoke.cache, "--root", tmp_path, "--format", "webdataset", "--level", 5)
    assert outcome.code == 0, outcome.err
    made = Path(outcome.out.strip())
    carried = experiment_by_recipe(made).cache
    assert (carried.format, carried.level, carried.root) == ("webdataset", 5, str(tmp_path))
    before = tree(made)
    victim = sorted(made.glob("shards/*.tar"))[1]
    victim.write_bytes(victim.read_bytes()[:-1])
    assert run(capsys, "cache", "repair", made).code == 0
    assert tree(made) == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "say what to change"),
        (("--format", "hdf5"), 2, "'hdf5' is not one of"),
        (("--steps", "24"), 2, "--steps applies to --features int8"),
        (("--level", "0"), 2, "0 is not in the range"),
        (("--format", "zarr"), 1, "it already has these settings"),
        (("--features", "float32"), 1, 'features = "float16" cannot become "float32"'),
    ],
)
def test_convert_says_what_is_wrong(small: Path, capsys, arguments, code: int, said: str) -> None:
    outcome = run(capsys, "cache", "convert", small, *arguments)
    assert outcome.code == code
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_choices_are_those_of_the_storage() -> None:
    for name in ("FORMATS", "FEATURES", "DEPTHS", "COMPRESSIONS"):
        assert getattr(cli.commands.cache_tools, name) == getattr(settings, name)


def test_merge_makes_the_cache_that_the_whole_corpus_has(tmp_path: Path, capsys) -> None:
    """Two parts of a corpus, built apart and merged: a build of the whole finds nothing left to do."""
    shutil.copytree(small_build(tmp_path / "a", corpus="synthetic:?count=10&seed=1").path, tmp_path / "part" / "a")
    whole = Path(small_build(tmp_path / "a").path)
    (whole / "manifest.json").unlink()
    for shard in (0, 1):  # the second part: what the first one has not
        (whole / "receipts" / f"{shard:06d}.json").unlink()
    config = settings.CacheConfig(format="zarr", shapes_per_shard=5)
    corpus = open_corpus("synthetic:?count=23&seed=1", points=64)
    made_of = {corpus.id(index): corpus.fingerprint(index) for index in range(23)}
    cache = teacher_cache.open(whole, allow_incomplete=True)
    writer = teacher_cache.create_cache(
        tmp_path / "part" / "b", cache.recipe, cache.schema, config, label_names=cache.label_names
    )
    for shard, start in enumerate(range(0, 13, 5)):
        records = [cache.read([row], depth=True).record(0) for row in range(start, min(start + 5, 13))]
        shapes = [(record.id, made_of[record.id]) for record in records]
        teacher_cache.write_shard(writer.handle, shard, records, shapes=shapes)
    writer.finish(planned=13)
    sources = (tmp_path / "part" / "a", tmp_path / "part" / "b")
    outcome = run(capsys, "cache", "merge", *sources, "--root", tmp_path / "found" / "caches")
    assert outcome.code == 0, outcome.err
    assert "5 of 5 shards written: 23 records" in outcome.err
    assert "merging: 5/5 shards" in outcome.err
    found = Path(outcome.out.strip())
    expected = small_build(tmp_path / "b")
    assert tree(found) == tree(Path(expected.path))
    report = small_build(tmp_path / "found")
    assert (Path(report.path), report.already_complete) == (found, True)


def test_merge_says_what_is_wrong(tmp_path: Path, small: Path, capsys) -> None:
    other = small_build(tmp_path / "other", corpus="synthetic:?count=5&seed=2").path
    outcome = run(capsys, "cache", "merge", small, other, "--root", tmp_path)
    assert outcome.code == 1
    assert "corpus.seed: 1 here, 2 there" in outcome.err
    assert run(capsys, "cache", "merge", small, "--root", tmp_path).code == 2
    copy = tmp_path / "copy"
    shutil.copytree(small, copy)
    refused = run(capsys, "cache", "merge", small, copy, "--root", tmp_path / "m")
    assert refused.code == 1
    assert "found 23 in several" in refused.err
    assert "... and 18 more" in refused.err
    skipped = run(capsys, "cache", "merge", small, copy, "--root", tmp_path / "m", "--duplicates", "skip", "--refill")
    assert skipped.code == 0, skipped.err
    assert tree(Path(skipped.out.strip())) == tree(small)
    assert "Traceback" not in outcome.err + refused.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_gc_asks_first(small: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(small)
    assert "nothing is abandoned in 1 caches" in run(capsys, "cache", "gc", small).err
    leave_workspace(small)
    for said, code, left in (("n\n", 0, True), ("y\n", 0, False)):
        monkeypatch.setattr(sys, "stdin", Terminal(said))
        outcome = run(capsys, "cache", "gc", small.parent)
        assert outcome.code == code
        assert f"2.000 MB  {small}/tmp/{DEAD}  (unfinished work of a dead process)" in outcome.out
        assert "Remove these 1 pieces, 2.0 MB?" in outcome.err
        assert (small / "tmp" / DEAD).exists() is left
        assert ("nothing was removed" if left else "removed 1 pieces, 2.0 MB") in outcome.err
    assert tree(small) == before


def test_gc_without_a_terminal_removes_only_when_told(small: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    leave_workspace(small)
    (small / "notes.txt").write_text("mine")
    outcome = run(capsys, "cache", "gc", small, "--unknown")
    assert outcome.code == 2
    assert "not a file of a cache" in outcome.out
    assert "give --yes to remove these" in outcome.err
    assert (small / "tmp" / DEAD / "half").exists()
    assert run(capsys, "cache", "gc", small, "--yes").code == 0
    assert not (small / "tmp").exists()
    assert (small / "notes.txt").read_text() == "mine"
    assert run(capsys, "cache", "gc", small, "--unknown", "--yes").code == 0
    assert not (small / "notes.txt").exists()
    assert teacher_cache.verify(small) == []


def test_gc_reports_what_it_cannot_read_and_refuses_urls(tmp_path: Path, capsys) -> None:
    build(tmp_path / "c", settings.CacheConfig(), count=2)
    (tmp_path / "c" / "manifest.json").write_text("{")
    leave_workspace(tmp_path / "c")
    outcome = run(capsys, "cache", "gc", tmp_path, "--yes")
    assert outcome.code == 1
    assert "cannot be read:" in outcome.err
    assert "removed 1 pieces" in outcome.err
    assert "no caches in" in run(capsys, "cache", "gc", tmp_path / "c" / "receipts").err
    assert run(capsys, "cache", "gc", tmp_path / "nowhere").code == 2
    remote = run(capsys, "cache", "gc", "s3://bucket/caches")
    assert remote.code == 1
    assert "an object store has no locks" in remote.err


def hold(cache: str, ready, leave) -> None:
    from teacher_cache.storage import atomic

    with atomic.workspace(Path(cache)) as folder:
        (folder / "half").write_bytes(b"half a shard")
        ready.set()
        leave.wait(60)


def test_gc_leaves_a_running_build_alone(small: Path, capsys) -> None:
    context = multiprocessing.get_context("forkserver")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(str(small), ready, leave))
    process.start()
    assert ready.wait(60)
    outcome = run(capsys, "cache", "gc", small, "--unknown", "--yes")
    assert outcome.code == 0
    assert "1 locks of running builds were left alone" in outcome.err
    assert outcome.out == ""
    assert len(list((small / "tmp").rglob("half"))) == 1
    leave.set()
    process.join(30)
    assert process.exitcode == 0


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "cache-tools.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    build(tmp_path / "caches" / "shapenet55-0f3a9c21d7be", settings.CacheConfig(), count=3)
    leave_workspace(tmp_path / "caches" / "shapenet55-0f3a9c21d7be")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)  # noqa: S102 - our own page
    assert (len(names["cache"]), names["cache"].format) == (3, "webdataset")
    assert ([piece.kind for piece in names["removed"]], names["kept"]) == (["workspace"], [])


@pytest.mark.parametrize("command", ["convert", "merge", "gc"])
def test_help_gives_an_example(capsys, command: str) -> None:
    outcome = run(capsys, "cache", command, "--help")
    assert outcome.code == 0
    assert f"i2p cache {command} " in outcome.out
    assert "xample" in outcome.out
    assert command in run(capsys, "cache", "--help").out


def test_list_counts_shapes_not_poses(tmp_path: Path, capsys) -> None:
    path = small_build(tmp_path, poses=2, corpus="synthetic:?count=4&seed=1").path
    outcome = run(capsys, "cache", "list", tmp_path / "caches")
    assert outcome.code == 0
    assert outcome.out.split()[:4] == [Path(path).name, "complete", "4", "shapes"]
    assert "8 records" in run(capsys, "cache", "info", path).out


def test_list_says_which_cache_has_impossible_poses(tmp_path: Path, capsys) -> None:
    config = settings.CacheConfig()
    build(tmp_path / "sound", config, count=2)
    recipe = teacher_cache.Recipe(corpus={"kind": "x", "poses": 0}, projection={}, teacher={}, storage=config.storage())
    schema = teacher_cache.open(tmp_path / "sound").schema
    teacher_cache.create_cache(tmp_path / "odd", recipe, schema, config).finish()
    outcome = run(capsys, "cache", "list", tmp_path)
    assert outcome.code == 1
    assert "recipe.corpus.poses = 0 is not an integer in 1..64" in outcome.err
    assert "sound" in outcome.out


def test_repair_takes_nothing_from_a_cache_of_another_experiment(smoke, tmp_path: Path, capsys) -> None:
    """Before a shard is withdrawn, the config's recipe is known to be this cache's."""
    damaged = tmp_path / smoke.cache.name
    shutil.copytree(smoke.cache, damaged)
    victim = next(iter(sorted((damaged / "features").glob("c.*"))))
    victim.write_bytes(victim.read_bytes()[:-1])
    config = tmp_path / "mine.toml"
    config.write_text('preset = "smoke"\n[projection]\nsplat = 3\n[cache]\ndepth = "none"\n')
    before = tree(damaged)
    outcome = run(capsys, "cache", "repair", damaged, "--config", config)
    assert outcome.code == 2
    assert f"not {damaged}; name its own experiment" in outcome.err
    assert "projection.splat: 5 here, 3 there" in outcome.err
    assert tree(damaged) == before, "manifest and receipts are all there"
    assert {path.name for path in tmp_path.iterdir()} == {damaged.name, "mine.toml"}, "and nothing was built"
    renamed = tmp_path / "renamed"
    damaged.rename(renamed)
    outcome = run(capsys, "cache", "repair", renamed)
    assert outcome.code == 2
    assert f"or call the folder {damaged}" in outcome.err
    assert tree(renamed) == before


def test_a_problem_says_whether_the_file_is_the_caches(tmp_path: Path) -> None:
    build(tmp_path / "c", settings.CacheConfig(), count=2)
    (tmp_path / "c" / "notes.txt").write_text("mine")
    (tmp_path / "c" / "recipe.json").write_text("{}")
    problems = teacher_cache.verify(tmp_path / "c")
    assert {problem.file: problem.foreign for problem in problems} == {"notes.txt": True, "recipe.json": False}


def test_cache_of_is_where_a_build_puts_it(tmp_path: Path) -> None:
    from pipeline.build.driver import cache_of
    from pipeline.config import BuildConfig, CorpusConfig
    from tests.support.teachers import TINY_PROJECTION, tiny_teacher

    corpus = CorpusConfig(uri="synthetic:?count=2&seed=1", points=64)
    cache, teacher = settings.CacheConfig(root=str(tmp_path)), tiny_teacher(tmp_path)
    recipe, place = cache_of(corpus, TINY_PROJECTION, teacher, cache)
    assert not Path(place).exists()
    report = build_cache(corpus, TINY_PROJECTION, teacher, cache, BuildConfig())
    assert report.path == place
    assert teacher_cache.open(report.path).recipe == recipe


def test_repair_follows_no_setting_of_the_cache_but_places(smoke, tmp_path: Path, capsys) -> None:
    """Notes that name a scheduler, another projection and another root: none of it is used."""
    made = tmp_path / smoke.cache.name
    shutil.copytree(smoke.cache, made)
    notes = made / "logs" / "config.toml"
    text = re.sub(r"(?m)^scheduler = .*$", 'scheduler = "tcp://127.0.0.1:9"', notes.read_text())
    text = re.sub(r"(?m)^splat = .*$", "splat = 7", text)
    notes.write_text(re.sub(r"(?m)^root = .*$", f'root = "{tmp_path / "elsewhere"}"', text))
    before = tree(made)
    (made / "label" / "c.0").unlink()
    outcome = run(capsys, "cache", "repair", made)
    assert outcome.code == 0, outcome.err
    assert tree(made) == before
    assert "build     threads" in outcome.err
    assert "corpus    synthetic:" in outcome.err
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no corpus.uri; give the experiment it was built from with --config"),
        ("\0", "cannot be read"),
        ('[corpus]\nuri = 7\n', "has no corpus.uri"),
        ('[corpus]\nuri = "synthetic:?count=5&seed=9"\n[teacher]\narchitecture = "i2p-vit-tiny-16"\n'
         'pretrained = "embedded"', "describes the cache"),
    ],
)  # fmt: skip
def test_notes_that_lead_to_another_cache_are_refused(smoke, tmp_path: Path, capsys, text: str, said: str) -> None:
    made = tmp_path / smoke.cache.name
    shutil.copytree(smoke.cache, made)
    (made / "logs" / "config.toml").write_text(text)
    (made / "label" / "c.0").unlink()
    before = tree(made)
    outcome = run(capsys, "cache", "repair", made)
    assert outcome.code == 2
    assert said in outcome.err
    assert tree(made) == before


def test_a_cache_that_cannot_be_written_says_that_too_much_was_refused(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that its notes could not be written there, on a file system that is read only."""
    from pipeline.errors import TooManyRefused
    from teacher_cache.storage.local import LocalStorage

    def refuses(*arguments: Any, **options: Any) -> Any:
        raise TooManyRefused("9 of 10 shapes were refused", str(tmp_path))

    def fails(*arguments: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pipeline.build.driver.build_cache", refuses)
    monkeypatch.setattr(LocalStorage, "write_documents", fails)
    outcome = run(capsys, "cache", "build", "smoke")
    assert (outcome.code, outcome.out.strip()) == (1, str(tmp_path))
    assert "9 of 10 shapes were refused" in outcome.err
    assert "Read-only" not in outcome.err
