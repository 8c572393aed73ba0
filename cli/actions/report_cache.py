"""The report of a cache: one page and its pictures."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.report.caches import duplicates, of_corpus, read_index, reasons, refused_cloud, sizes
from cli.report.charts import bar_chart, class_counts
from cli.report.page import write_page
from cli.report.panels import Panel, cloud_panel, image_panel
from cli.show.pictures import depth_image, heights, saliency_image
from trainer.downstream.inspection import choose_shapes
from trainer.engine.watching import Count

if TYPE_CHECKING:
    from cli.experiment.sections import Experiment
    from teacher_cache.location import Location

__all__ = ["report_cache"]

LISTED = 200  # refused shapes, and groups of duplicates
REFUSED_DRAWN = 8
NO_CLASS = "(no class)"


def report_cache(
    path: "Location", out: Path, *, shapes: int = 12, experiment: "Experiment | None" = None, watch: Any = None
) -> Path:
    """Write the report of a cache, finished or not: OUT/index.html and OUT/pictures. -> the page

    shapes      of which pictures are drawn; counts are of all, from the receipts.
    experiment  whose corpus is compared with the cache; None: it is not.

    Raises CacheError where the cache cannot be read.
    """
    import teacher_cache

    cache = teacher_cache.open(path, allow_incomplete=True)
    info, poses = cache.info(), cache.poses
    index = read_index(cache, Count(watch, "reading receipts", "shapes", info.records // poses))
    Count(watch, "comparing with the corpus", "", 0).at(0)
    corpus, rebuild = (None, ["not examined (--no-corpus)"]) if experiment is None else of_corpus(experiment, cache)
    if not info.complete:
        rebuild.insert(0, "the build is not finished: run it again, and it resumes where it stopped")
    pictures: list[tuple[str, Panel]] = []
    told = Count(watch, "drawing", "pictures", 0)
    told.at(0)

    def keep(panel: Panel) -> Panel:
        pictures.append((panel.key, panel))
        told.add(1)
        return panel

    names = list(info.label_names)
    counted = np.bincount(index.labels[index.labels >= 0], minlength=len(names)).tolist()
    counts = list(zip([*names, *(f"class {k}" for k in range(len(names), len(counted)))], counted, strict=True))
    if unlabelled := int((index.labels < 0).sum()):
        counts.append((NO_CLASS, unlabelled))
    labelled = [count for _, count in counts]
    groups = duplicates(index)
    parts = sizes(index, info.records)
    refused, said = _refused(corpus, info.quarantined, keep)
    context = {
        "title": f"i2p: {str(path).rstrip('/').rpartition('/')[2]}",
        "summary": f"{info.records // poses} shapes, {len(info.quarantined)} refused, "
        f"{'complete' if info.complete else 'NOT complete'}",
        "facts": _facts(cache, info, poses),
        "shapes": _views(cache, index, shapes, keep),
        "views_said": ""
        if cache.stores_depth
        else "The cache stores no depth images (cache.depth), so only its saliency is shown.",
        "classes": keep(Panel(key="classes", title="shapes of each class", png=class_counts(counts)))
        if any(name != NO_CLASS for name, _ in counts)
        else None,
        "classes_caption": f"{len(labelled)} classes of {min(labelled)} to {max(labelled)} shapes." if labelled else "",
        "counts": counts,
        "refused": info.quarantined[:LISTED],
        "refused_caption": f"{len(info.quarantined)} shapes were refused"
        + (f"; the first {LISTED} are listed." if len(info.quarantined) > LISTED else "."),
        "reasons": reasons(info.quarantined),
        "refused_pictures": refused,
        "refused_said": said,
        "duplicates": [
            " = ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "") for ids in groups[:LISTED]
        ],
        "duplicates_caption": _duplicates(groups, index),
        "sizes": [(name, f"{whole / 1e6:.2f}", f"{each / 1e3:.2f}") for name, whole, each in parts],
        "size_chart": keep(
            Panel(
                key="size",
                title="size by array",
                png=bar_chart(
                    [(name, whole / 1e6, None) for name, whole, _ in parts] or [("nothing", 0, None)], unit="MB"
                ),
            )
        ),
        "rebuild": rebuild,
        "recipe": json.dumps(
            {part: dict(getattr(info.recipe, part)) for part in ("corpus", "projection", "teacher", "storage")},
            indent=1,
        ),
        "footer": "Written by i2p cache report. Everything is in this file; the pictures are in pictures/ as PNG too.",
    }
    return write_page(out, "cache.html.j2", context, pictures)


def _facts(cache: Any, info: Any, poses: int) -> list[tuple[str, str]]:
    schema = info.schema
    planned = f" of {info.planned} planned" if info.planned >= 0 else ""
    rows = [
        ("path", info.path),
        ("state", "complete" if info.complete else "NOT complete: run its build again to finish it"),
        ("recipe", info.recipe.hash),
        ("format", f"{info.format}, version {info.recipe.format_version}"),
        ("records", f"{info.records}{planned}, in {poses} poses of each shape, {info.shards} shards"),
        ("classes", str(len(info.label_names))),
        ("each", f"{schema.points} points, {schema.views} views of {schema.image_side} x {schema.image_side} pixels, "
         f"{schema.tokens} tokens of {schema.channels} channels, {'a' if cache.stores_class else 'no'} class token"),
        ("size", f"{info.bytes / 1e6:.1f} MB, {info.bytes_per_record * poses / 1e3:.1f} kB a shape"),
    ]  # fmt: skip
    if (basis := cache.basis) is not None:
        rows.append(
            (
                "basis",
                f"{basis.channels} of the teacher's {basis.teacher_channels} channels, "
                f"{100 * basis.kept:.2f} % of the variance of {basis.shapes} shapes",
            )
        )
    return rows


def _views(cache: Any, index: Any, count: int, keep: Any) -> list[dict[str, Any]]:
    if not index.ids:
        return []
    rows = choose_shapes(index.ids, index.labels, count)
    names, found = cache.label_names, []
    for place, row in enumerate(rows.tolist()):
        record = cache[row * cache.poses]
        title = names[record.label] if 0 <= record.label < len(names) else ""
        key = f"shape-{place:02}"
        panels = [cloud_panel(f"{key}-cloud", "the cloud", record.points, heights(record.points))]
        for view, saliency in enumerate(record.saliency):
            depth = None if record.depth is None else np.asarray(record.depth[view], np.float32)
            if depth is not None:
                panels.append(image_panel(f"{key}-depth-{view}", f"depth, view {view}", depth_image(depth)))
            panels.append(
                image_panel(f"{key}-saliency-{view}", f"saliency, view {view}", saliency_image(saliency, depth))
            )
        found.append(
            {"title": title or record.id, "id": record.id if title else "", "row": [keep(one) for one in panels]}
        )
    return found


def _refused(corpus: Any, quarantined: Any, keep: Any) -> tuple[list[Panel], str]:
    """Draw what the files of refused shapes give, a shape of each reason first; -> pictures, and why there are none."""
    if not quarantined:
        return [], ""
    if corpus is None:
        return [], "No pictures of refused shapes: their corpus was not examined, or cannot be opened here."
    places = {corpus.id(index): index for index in range(len(corpus))}
    order: dict[str, list[Any]] = {}
    for item in quarantined:
        order.setdefault(item.reason, []).append(item)
    turns = [queue[k] for k in range(REFUSED_DRAWN) for queue in order.values() if k < len(queue)]
    panels: list[Panel] = []
    for item in turns[: 5 * REFUSED_DRAWN]:
        if len(panels) == REFUSED_DRAWN:
            break
        cloud = refused_cloud(corpus, places[item.id]) if item.id in places else None
        if cloud is not None:
            title = f"{item.id}: {item.reason}"
            panels.append(keep(cloud_panel(f"refused-{len(panels)}", title, cloud, (196.0, 84.0, 60.0))))
    return panels, "" if panels else "No pictures of refused shapes: the readable parts of their files have no points."


def _duplicates(groups: Any, index: Any) -> str:
    unknown = len(set(index.ids) - set(index.made_of))
    without = f" Of {unknown} shapes that is not known." if unknown else ""
    if not groups:
        return f"No two shapes were made from the same content with the same label.{without}"
    surplus = sum(len(ids) - 1 for ids in groups)
    return (
        f"{len(groups)} groups of shapes were made from the same content with the same label, {surplus} shapes more "
        f"than once.{without}"
    )
