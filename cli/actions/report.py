"""Reports of runs: one page and its pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cli.report.charts import confusion_chart, map_chart, run_curves
from cli.report.page import write_page
from cli.report.panels import Panel, cloud_panel, shape_panels
from cli.report.runs import Run, cache_for, clouds_of, embed, flat_settings, inspect, open_run, stages
from cli.show.pictures import heights
from cli.show.titles import ENCODER_TITLES
from trainer.downstream.embedding import Embedding
from trainer.downstream.inspection import choose_shapes, confusion, embedding_map
from trainer.downstream.neighbours import agreement, nearest

__all__ = ["report_runs"]

SHAPES = 12
NEAREST = 5
CONFUSED = 12  # pairs that are listed
NEIGHBOUR_SIDE = 120  # pixels


def report_runs(
    folders: Sequence[Path],
    out: Path,
    *,
    caches: Sequence[Any] = (),
    device: str = "auto",
    shapes: int = SHAPES,
    watch: Any = None,
) -> Path:
    """Write the report of one run, or of several side by side: OUT/index.html and OUT/pictures. -> the page

    caches  of the runs, opened or by location, one for all or one each; (): where each run's settings say.
    shapes  of the cache that are shown, and of the test split whose neighbours are.
    watch   told how far long work is (`trainer.engine.watching`).

    Only `out` is written into. Raises CheckpointError for a folder that is no pre-training run, or a damaged one.
    """
    from trainer.engine.ranks import pick_device, place_in_launch
    from trainer.engine.watching import Count

    named = _names(folders)
    # Not `joined`: under torchrun the first rank writes the report alone, when the others have gone.
    place = pick_device(device, place_in_launch().local_rank)
    Count(watch, "opening runs and caches", "", 0).at(0)
    runs = [open_run(folder, name) for folder, name in zip(folders, named, strict=True)]
    for number, run in enumerate(runs):
        cache_for(run, None if not caches else caches[number if len(caches) > 1 else 0])
    inspect(runs, place, shapes)
    for run in runs:
        embed(run, place, watch)
    pictures: list[tuple[str, Panel]] = []
    told = Count(watch, "drawing", "pictures", 0)
    told.at(0)

    def keep(name: str, panel: Panel) -> Panel:
        pictures.append((name, panel))
        told.add(1)
        return panel

    curves = run_curves([(run.name, run.events) for run in runs])
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    context = {
        "title": f"i2p: {title}",
        "runs": [_about(run, number, keep, shown=shapes) for number, run in enumerate(runs)],
        "results": _results(runs),
        "results_said": [
            f"{run.name}: {_unscored(run)}"
            for run in runs
            if run.evaluation is None or run.metrics.get("epoch") != run.header.epoch
        ],
        "curves": [keep(key, Panel(key=key, title=f"{what} over the epochs", png=png)) for key, what, png in curves],
        "shapes": _shapes(runs, keep),
        "differences": _differences(runs),
        "footer": "Written by i2p report. Everything is in this file; the pictures are in pictures/ as PNG too.",
    }
    return write_page(out, "run.html.j2", context, pictures)


def _names(folders: Sequence[Path]) -> list[str]:
    """Call each run by its folder, and where two would be called the same by more of its path."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _unscored(run: Run) -> str:
    if run.evaluation is not None:
        return (
            f"the scores are of epoch {run.metrics.get('epoch')}; the newest checkpoint, of epoch {run.header.epoch}, "
            "has none yet"
        )
    return (
        "nothing is evaluated (evaluation.train and evaluation.test are not set)"
        if not run.header.config.get("evaluation", {}).get("test")
        else "has not been evaluated yet"
    )


def _results(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A table for each pair of splits and protocol: a row an encoder, the runs side by side."""
    tables: dict[str, list[Run]] = {}
    for run in runs:
        if run.evaluation is not None:
            tables.setdefault(_caption(run.evaluation), []).append(run)
    found = []
    for caption, own in tables.items():
        results = [run.evaluation for run in own]
        names = dict.fromkeys(name for result in results if result for name in result["rows"])
        alone = len(runs) == 1
        heads = ["", "feature", "numbers", "accuracy"] if alone else ["", *(run.name for run in own)]
        first: Mapping[str, Any] = results[0] or {}
        blank = ["", ""] if alone else []
        chance = [_percent(first.get("chance"))] * len(own)
        lines = [{"own": False, "cells": ["always the largest class", *blank, *chance]}]
        for name in names:
            rows = [(result or {})["rows"].get(name) for result in results]
            more = blank
            if alone and rows[0]:
                feature = "none" if name == "coordinates" else str(rows[0].get("feature", ""))
                more = [feature, str(rows[0].get("dimensions", ""))]
            cells = [ENCODER_TITLES.get(name, name), *more, *(_scored(row) for row in rows)]
            lines.append({"own": name == "trained", "cells": cells})
        found.append({"caption": caption, "heads": heads, "rows": lines})
    return found


def _caption(result: Mapping[str, Any]) -> str:
    seeds = result.get("seeds", 1)
    return (
        f"Linear SVM on {result['test']['shapes']} shapes of {result['test']['uri']}, fitted on "
        f"{result['train']['shapes']} of {result['train']['uri']}; {result['classes']} classes, "
        f"{result['points']} points, {result['protocol']}, mean and standard deviation over {seeds} "
        f"seed{'s' if seeds > 1 else ''} (draws of points and folds, of one training)."
    )


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "not known"


def _scored(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not scored"
    spread = f" ± {100 * row['spread']:.1f}" if len(row.get("scores", ())) > 1 else ""
    return f"{100 * row['accuracy']:.1f}{spread} %"


def _shapes(runs: Sequence[Run], keep: Any) -> list[dict[str, Any]]:
    """The shapes that are shown, in the order of the first run that has any, each with its pictures run by run."""
    order: dict[str, None] = {}
    for run in runs:
        order |= dict.fromkeys(shape.id for shape in run.inspected.shapes) if run.inspected else {}
    found = []
    for place, id in enumerate(order):
        sides, label = [], ""
        for number, run in enumerate(runs):
            for shape in run.inspected.shapes if run.inspected else ():
                if shape.id != id:
                    continue
                names = run.cache.label_names
                label = label or (names[shape.label] if 0 <= shape.label < len(names) else "")
                rows = shape_panels(shape)
                for row in rows:
                    for panel in row:
                        keep(f"run-{number}-shape-{place:02}-{panel.key}", panel)
                sides.append({"run": run.name, "rows": rows})
        found.append({"id": id, "title": label or id, "sides": sides})
        if not label:
            found[-1]["id"] = ""
    return found


def _about(run: Run, number: int, keep: Any, *, shown: int) -> dict[str, Any]:
    header, embedding = run.header, run.embedding
    parameters = sum(value.numel() for value in run.model.parameters())
    planned = header.config.get("trainer", {}).get("epochs", "?")
    said = [run.no_cache] if run.no_cache else []
    said += [run.not_inspected] if run.not_inspected else []
    said += list(run.inspected.reasons.values()) if run.inspected else []
    if further := header.teacher.get("further"):
        said.append(f"learnt from {1 + len(further)} teachers; saliency and features are shown of the first")
    if "shapes" in header.cache:
        said.append(f"trained on {header.cache.get('records')} records of the cache, which has others too")
    recipe = run.cache.recipe if run.cache is not None else None
    return {
        "name": run.name,
        "number": number,
        "summary": f"{header.config['model'].get('architecture', 'hierarchical')} student of {parameters / 1e6:.2f}M "
        f"parameters, epoch {header.epoch} of {planned}, step {header.step}",
        "shapes_said": said,
        "stages": stages(run),
        "facts": [
            ("run", str(run.folder)),
            ("checkpoint", header.name),
            ("cache", str(run.cache.path) if run.cache is not None else "not at hand"),
            *((f"cache, {key}", str(value)) for key, value in header.cache.items()),
            *((f"version of {name}", version) for name, version in header.versions.items()),
        ],
        "config": run.config
        or "no config.toml in the run directory; the checkpoint says:\n" + json.dumps(header.config, indent=1),
        "recipe": "the cache is not available here"
        if recipe is None
        else json.dumps(
            {part: dict(getattr(recipe, part)) for part in ("corpus", "projection", "teacher", "storage")}, indent=1
        ),
        **_embedded(run, number, keep, embedding, shown),
    }


def _embedded(run: Run, number: int, keep: Any, embedding: Embedding | None, shown: int) -> dict[str, Any]:
    """Neighbours, map and confusion matrix."""
    found: dict[str, Any] = {
        "embedding_said": run.no_embedding, "agreement": "", "neighbours": [], "map": None, "map_caption": "",
        "confusion": None, "confusion_caption": "", "confused": [],
        "confusion_said": run.no_embedding or "no classifier was fitted: " + _unscored(run),
    }  # fmt: skip
    if embedding is None:
        return found
    labels = embedding.labels[embedding.rows]
    k = min(NEAREST, len(embedding.rows) - 1)
    if k > 0:
        neighbours = nearest(embedding.features, k)
        share = agreement(neighbours.idx, labels)
        if share is not None:
            found["agreement"] = (
                f"{100 * share:.1f} % of the {k} nearest of a shape are of its class, among {len(labels)} shapes of "
                f"{embedding.uri}."
            )
        found["neighbours"] = _neighbours(run, number, keep, embedding, neighbours.idx, shown)
        if not found["neighbours"]:
            found["embedding_said"] = f"{embedding.uri} cannot be read here, so its shapes are not drawn"
    else:
        found["embedding_said"] = "a single shape has no neighbours"
    rows, places = embedding_map(embedding.features)
    chart = map_chart(places, labels[rows], embedding.label_names)
    found["map"] = keep(f"run-{number}-map", Panel(key="map", title="map of embeddings by class", png=chart))
    found["map_caption"] = f"{len(rows)} shapes of {embedding.uri}, {len(np.unique(labels[rows]))} classes."
    if embedding.predicted is not None:
        names = embedding.label_names
        counts = confusion(embedding.labels, embedding.predicted, len(names))
        wrong = counts - np.diag(np.diag(counts))
        panel = Panel(key="confusion", title="confusion matrix", png=confusion_chart(counts, names))
        right, of = int(np.trace(counts)), int(counts.sum())
        found["confusion"] = keep(f"run-{number}-confusion", panel)
        found["confusion_caption"] = (
            f"{right} of {of} shapes right ({100 * right / of:.1f} %), seed 0 of the evaluation; each row by its own "
            "number of shapes."
        )
        order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED]
        pairs = [divmod(int(flat), len(names)) for flat in order if wrong.flat[flat] > 0]
        found["confused"] = [(names[true], names[taken], int(wrong[true, taken])) for true, taken in pairs]
    return found


def _neighbours(
    run: Run, number: int, keep: Any, embedding: Embedding, idx: np.ndarray, shown: int
) -> list[list[Panel]]:
    names, rows = embedding.label_names, embedding.rows
    labels = embedding.labels[rows]
    queries = choose_shapes([embedding.ids[row] for row in rows], labels, min(shown, len(rows)))
    wanted = np.unique(np.concatenate((queries, idx[queries].ravel())))
    clouds = clouds_of(run, embedding, rows[wanted].tolist())
    if clouds is None:
        return []
    by_row = dict(zip(wanted.tolist(), clouds, strict=True))
    lines = []
    for place, query in enumerate(queries.tolist()):
        line = []
        for rank, row in enumerate([query, *idx[query].tolist()]):
            label = int(labels[row])
            title = names[label] if 0 <= label < len(names) else embedding.ids[rows[row]]
            same = labels[row] == labels[query] if label >= 0 else None
            mark = "" if rank == 0 or same is None else "right" if same else "wrong"
            cloud = by_row[row]
            panel = cloud_panel(
                f"near-{place:02}-{rank}", title if rank else f"{title}, asked", cloud, heights(cloud),
                mark=mark, side=NEIGHBOUR_SIDE, turnable=False,
            )  # fmt: skip
            line.append(keep(f"run-{number}-{panel.key}", panel))
        lines.append(line)
    return lines


def _differences(runs: Sequence[Run]) -> list[list[str]]:
    """Settings, caches and versions that are not the same in all runs."""
    if len(runs) < 2:
        return []
    flat = [flat_settings(run.header) for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    rows = [[key, *(settings.get(key, "absent") for settings in flat)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]
