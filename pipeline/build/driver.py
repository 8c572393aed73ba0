"""The build driver: runs every missing shard of a cache on threads, processes or a cluster.

Progress and resume come from the committed shards alone, so they survive any crash.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import torch

from pipeline.build.basis import fit_basis
from pipeline.build.changes import Changes, Stamps, compare_corpus, made_of, settled, stamps_digest
from pipeline.build.job import Failure, Job, elsewhere
from pipeline.build.lanes import Lanes
from pipeline.build.plan import plan_shards
from pipeline.build.poses import check_ids, shapes_of
from pipeline.build.provenance import software
from pipeline.build.recipe import is_of, recipe_for
from pipeline.build.schedulers import cores, crew_for, on_cluster, on_threads
from pipeline.build.selection import OwnShapes
from pipeline.build.tally import BuildProgress, BuildReport, Result, Tally
from pipeline.build.upkeep import bring_up_to_date
from pipeline.build.worker import Worker, ids_digest
from pipeline.config import BuildConfig, CorpusConfig, ProjectionConfig, TeacherConfig, conflicts
from pipeline.corpora import Corpus, MachineFault, open_corpus
from pipeline.errors import BuildError
from pipeline.teacher.tower import Teacher, load_teacher, resolve_device, size_conflicts, teacher_conflicts
from pipeline.views import VIEWS
from teacher_cache import (
    Basis,
    CacheConfig,
    CacheSchema,
    CacheWriter,
    Recipe,
    cache_directory,
    create_cache,
    stored_basis,
)
from teacher_cache.format.receipts import noted_receipts
from teacher_cache.location import Location, resolve
from teacher_cache.maintenance.repair import sound_description
from teacher_cache.storage.opening import storage_at

__all__ = ["BuildProgress", "BuildReport", "build_cache", "cache_of", "changes_at", "changes_of"]

logger = logging.getLogger(__name__)


def build_cache(
    corpus: CorpusConfig,
    projection: ProjectionConfig,
    teacher: TeacherConfig,
    cache: CacheConfig,
    build: BuildConfig,
    *,
    restore: Mapping[int, Sequence[str]] | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
    on_fit: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Build what is missing of an experiment's shapes in the cache of a recipe; nothing, when all are there.

    restore      shapes, by shard, of withdrawn shards, to be restored; they may belong to other experiments too.
    on_progress  called once before the first shard, then after each one, in the calling thread.
    on_fit       called with (shapes done, shapes wanted) while a new cache's basis is fitted, before all that.

    The cache's bytes follow from the recipe, the corpus and the selections in their order: not from scheduler, workers,
    threads or interruptions. Any end of the process leaves a cache that the next call completes. Shapes that another
    experiment left in the cache stay there.

    Raises BuildError for settings that do not fit together, a selection that the corpus does not have, shapes of the
    experiment that changed or vanished, a shard that failed (its traceback is in logs/build.jsonl) and an experiment
    without one usable shape; TooManyRefused, when all is built, where `build.max_refused` is passed; CorpusError,
    TeacherError and CacheError as opening, loading and creating do.
    """
    begun = time.perf_counter()
    _check_settings(corpus, projection, teacher, cache, build)
    source = open_corpus(corpus.uri, points=corpus.points)
    local = build.scheduler == "threads"
    # If others run the tasks, the driver needs the teacher's identity only, and leaves the GPU to them.
    loaded = load_teacher(teacher, None if local else torch.device("cpu"))
    faults = list(
        size_conflicts(teacher.architecture, loaded.image_side, loaded.patch_side, projection, loaded.normalisations)
    )
    if faults:
        raise BuildError("\n".join(faults))
    ids = [source.id(index) for index in range(len(source))]
    check_ids(ids, corpus.poses)
    own = OwnShapes.of(source, corpus)
    if cache.channels > loaded.channels:
        raise BuildError(
            f"cache.channels = {cache.channels} is more than the {loaded.channels} channels of teacher.architecture = "
            f"{teacher.architecture}; 0 stores them unchanged"
        )
    if cache.class_token != "none" and loaded.class_problem is not None:
        raise BuildError(
            f'cache.class_token = "{cache.class_token}", and teacher.architecture = {teacher.architecture} has no '
            f'class token to store: {loaded.class_problem}.\n  Set cache.class_token = "none".'
        )
    fit = partial(
        fit_basis,
        source,
        ids,
        projection,
        loaded,
        channels=cache.channels,
        sample=cache.sample,
        poses=corpus.poses,
        threads=cores(),
        on_progress=on_fit,
    )
    writer = _open_cache(source, corpus, projection, loaded, cache, fit)
    stamps = Stamps(writer.storage)
    standing = bring_up_to_date(writer, source, own, build, stamps, restore or {}, poses=corpus.poses, threads=cores())
    tasks = plan_shards(
        ids,
        shapes_of(standing.committed, corpus.poses),
        shapes_per_shard=cache.shapes_per_shard // corpus.poses,
        wanted=own.places if standing.shared else None,
        restore=standing.restore,
    )
    tally = Tally(writer, standing.committed, len(tasks), own.places, corpus.poses, begun, on_progress)
    if tasks:
        crew = crew_for(
            build, resolve_device(teacher.device) if not build.remote else None, len(tasks), _groups(loaded, cache)
        )
        tally.teachers = crew.teachers
        job = Job(
            token=uuid4().hex,
            corpus=corpus,
            projection=projection,
            teacher=teacher,
            handle=writer.handle,
            ids=ids_digest(ids),
            lanes=crew.lanes,
            software=dict(software()),
            basis="" if writer.basis is None else writer.basis.sha256,
        )
        logger.info(
            "%s: %d of %d shards missing; %s%s",
            writer.directory,
            len(tasks),
            tally.total,
            build.scheduler,
            "" if build.remote else f", {crew.processes} x {crew.lanes} lanes, {crew.in_work} shards in flight",
        )
        try:
            writer.log({"event": "build", "missing": len(tasks), "software": job.software})
        except OSError as error:  # on a full disk the shards fail with a remedy, which a failed note must not hide
            logger.warning("the build could not be recorded in the cache's log: %s", error)
        taken = partial(_take, tally, stamps, source, own.corpus, None if local else writer)
        try:
            if local:
                on_threads(job, Worker(source, loaded, Lanes(crew.lanes), writer.basis), tasks, crew, taken)
            else:
                del loaded, fit  # the workers load their own teacher, and may need this memory
                # Workers look for this file: one that sees another folder at the same path is refused.
                writer.storage.write_documents({job.mark: b""})
                try:
                    on_cluster(elsewhere(job) if build.remote else job, tasks, build, crew, taken)
                finally:
                    writer.storage.remove([job.mark])
        finally:
            stamps.save()
    tally.check_usable()
    writer.finish(planned=tally.planned)
    stamps.save()
    tally.check_share(build.max_refused)
    return tally.report(already_complete=not tasks)


def changes_of(
    corpus: CorpusConfig, projection: ProjectionConfig, teacher: TeacherConfig, cache: CacheConfig, *, content: bool
) -> Changes:
    """Compare the experiment's shapes with what the cache of these settings was built from; nothing is written.

    Damaged shards count too, as long as their receipts are intact.
    """
    source = open_corpus(corpus.uri, points=corpus.points)
    _, place = _place(source, corpus, projection, load_teacher(teacher, torch.device("cpu")), cache)
    return _compared(place, source, corpus, content=content)


def changes_at(place: Location, corpus: CorpusConfig, *, content: bool) -> Changes | None:
    """Compare an experiment's shapes with what a cache was built from, whatever its teacher.

    Return None for a cache of another corpus.

    Only the cache's file stamps are written, where possible. Raises CorpusError where the corpus cannot be
    opened, MachineFault, and CacheError where the cache cannot be read.
    """
    source = open_corpus(corpus.uri, points=corpus.points)
    if not is_of(source, corpus, sound_description(place).recipe):
        return None
    return _compared(place, source, corpus, content=content)


def _compared(place: Location, source: Corpus, corpus: CorpusConfig, *, content: bool) -> Changes:
    storage = storage_at(place)
    receipts = {receipt.shard: receipt for receipt, _ in noted_receipts(storage, sound_description(place))}
    own, stamps = OwnShapes.of(source, corpus), Stamps(storage)
    changes = compare_corpus(source, own, receipts, stamps, poses=corpus.poses, content=content, threads=cores())
    stamps.save()
    return changes


def cache_of(
    corpus: CorpusConfig, projection: ProjectionConfig, teacher: TeacherConfig, cache: CacheConfig
) -> tuple[Recipe, Location]:
    """Return the recipe and location of the cache that `build_cache` would build; nothing is written.

    Raises CorpusError and TeacherError as opening and loading do: the teacher's weights are part of the recipe.
    """
    source = open_corpus(corpus.uri, points=corpus.points)
    return _place(source, corpus, projection, load_teacher(teacher, torch.device("cpu")), cache)


def _check_settings(
    corpus: CorpusConfig, projection: ProjectionConfig, teacher: TeacherConfig, cache: CacheConfig, build: BuildConfig
) -> None:
    sections: dict[str, Any] = {
        "corpus": corpus, "projection": projection, "teacher": teacher, "cache": cache, "build": build
    }  # fmt: skip
    faults = [f"{name}.{fault}" for name, section in sections.items() for fault in section.problems()]
    if not faults:
        faults = [*conflicts(corpus, projection), *teacher_conflicts(teacher, projection)]
        if corpus.poses > cache.shapes_per_shard:  # the poses of a shape stand in one shard
            faults.append(
                f"corpus.poses = {corpus.poses} is more than the cache.shapes_per_shard = {cache.shapes_per_shard} "
                "records of a shard"
            )
    if faults:
        raise BuildError(f"{len(faults)} problems in the settings of the build\n  " + "\n  ".join(faults))


def _open_cache(
    source: Corpus,
    corpus: CorpusConfig,
    projection: ProjectionConfig,
    teacher: Teacher,
    cache: CacheConfig,
    fit: Callable[[], Basis],
) -> CacheWriter:
    """Create the cache, or reopen it; fit a basis if one is wanted and none is stored."""
    recipe, directory = _place(source, corpus, projection, teacher, cache)
    schema = CacheSchema(
        points=corpus.points,
        views=VIEWS,
        image_side=projection.image_side,
        patch_side=projection.patch_side,
        channels=cache.channels or teacher.channels,
    )
    basis = stored_basis(directory) if cache.channels else None
    if cache.channels and basis is None:
        logger.info("%s: fitting its %d channels on a sample of the corpus", directory, cache.channels)
        basis = fit()
    return create_cache(directory, recipe, schema, cache, label_names=source.label_names, basis=basis)


def _take(
    tally: Tally,
    stamps: Stamps,
    source: Corpus,
    places: Mapping[str, int],
    elsewhere: CacheWriter | None,
    result: Result,
) -> None:
    """Count a finished shard and record its files' stamps.

    elsewhere  given where another process read the shapes: they are then compared with the driver's own files, by size
               and times, and by content where these differ, as they do on another machine's copy. Raises BuildError.
    """
    if isinstance(result, Failure):
        tally.add(result)
        return
    looks = result.stamps
    if elsewhere is not None:
        shapes = result.receipt.shapes
        looks = stamps_digest((id, settled(source.stamp(places[id]))) for id, _ in shapes)
        if not looks or looks != result.stamps:
            try:
                odd = [id for id, read in shapes if made_of(source, places[id]) != read]
            except MachineFault as error:
                raise BuildError(
                    f"shard {result.receipt.shard} cannot be compared with the driver's files: {error}\n"
                    f"  The {len(tally.receipts)} committed shards are kept; run the build again to resume."
                ) from error
            if odd:
                elsewhere.withdraw([result.receipt.shard])
                raise BuildError(
                    f"shard {result.receipt.shard}: a worker read other files than the driver, {len(odd)} of "
                    f"{len(shapes)}, first {odd[0]!r} ({source.source(places[odd[0]])}); the shard was withdrawn.\n"
                    "  Give driver and workers the same files, and run the build again."
                )
    stamps.note(result.receipt, looks)
    stamps.save(now=False)
    tally.add(result)


def _place(
    source: Corpus, corpus: CorpusConfig, projection: ProjectionConfig, teacher: Teacher, cache: CacheConfig
) -> tuple[Recipe, Location]:
    recipe = recipe_for(source, projection, teacher.identity(), cache, points=corpus.points, poses=corpus.poses)
    return recipe, resolve(cache_directory(cache, recipe, corpus.uri.partition(":")[0]))


def _groups(teacher: Teacher, cache: CacheConfig) -> int:
    """Return the forward passes of a full shard."""
    return -(-cache.shapes_per_shard // max(1, teacher.batch_size // VIEWS))
