"""Summary of a study: mean and deviation over seeds, and the difference to the arm that others are compared with.

A summary is made from results alone, those in memory or in the files that `write_measurements` leaves.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from cli.experiment.toml import ConfigError
from cli.show.pictures import GRID, INK, pyplot, save_figure
from cli.study.arms import ARMS, BASELINE, SCALING
from cli.study.plan import UNTRAINED

__all__ = ["markdown", "picture", "read_measurements", "run_key", "summarise", "write_measurements"]

FORMAT, VERSION = "i2p-study", 1
_COLOURS = ("#777777", "#c98a1b", "#1f5fa8", "#2f8f5b", "#b3452c")


class _Feature(TypedDict):
    accuracy: float
    numbers: int


class _Scores(TypedDict):
    features: dict[str, _Feature]


class _Visible(TypedDict):
    salient: float
    others: float


class _Result(TypedDict):
    """What a summary reads of a run's result; there is more in it."""

    arm: str
    teacher: str
    seed: int
    seconds: float
    settings: dict[str, dict[str, Any]]
    sets: dict[str, _Scores]
    corpus: NotRequired[str]
    cache: NotRequired[str]
    further: NotRequired[list[str]]
    visible: NotRequired[_Visible]


class _Measurements(TypedDict):
    baseline: str
    runs: list[_Result]


def write_measurements(results: Sequence[Mapping[str, Any]], path: Path, baseline: str) -> None:
    """Write all results as they were measured: settings, seeds, accuracies, losses and times of every run."""
    from teacher_cache.storage.atomic import replace_file

    content = {"format": FORMAT, "version": VERSION, "baseline": baseline, "runs": sorted(results, key=_order)}
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def read_measurements(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], str]:
    """Read the results in some files of write_measurements, and the baseline of the first.

    Raises ConfigError for another file, and for a run that two files tell differently.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    baseline = ""
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
                raise ConfigError(str(path), [f"is not the runs.json of a study, {FORMAT} {VERSION}"])
            TypeAdapter(_Measurements).validate_python(content, strict=True)
        except (ValueError, RecursionError) as error:
            faults = (
                [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:3]]
                if isinstance(error, ValidationError)
                else [f"is no JSON ({error})"]
            )
            raise ConfigError(str(path), faults) from None
        baseline = baseline or content["baseline"]
        for result in content["runs"]:
            if found.setdefault(run_key(result), result) != result:
                raise ConfigError(str(path), [f"tells the run {', '.join(map(str, run_key(result)))} differently"])
            if not result["sets"] or set(result["sets"]) != set(next(iter(found.values()))["sets"]):
                held = ", ".join(result["sets"]) or "nothing"
                raise ConfigError(str(path), [f"has runs scored on {held}; expected the same sets in every run"])
    return list(found.values()), baseline


def run_key(result: Mapping[str, Any]) -> tuple[str, str, str, int]:
    """Return what names a run in a study: arm, teacher, corpus ("" where there is one), seed."""
    return result["arm"], result["teacher"], result.get("corpus", ""), result["seed"]


def summarise(results: Sequence[Mapping[str, Any]], baseline: str = BASELINE) -> dict[str, Any]:
    """Summarise the results of runs to rows of (arm, teacher, corpus).

    -> {"sets": names, "baseline": arm, "rows": [{"arm", "teacher", "corpus", "seeds", "visible", "seconds", "feature",
       "numbers", "sets": {name: {"mean", "spread", "scores", "gain", "gain_error"}}}], "references": {name: {"largest
       class", "coordinates"}}}

    A student has a row for each feature that was scored, those of the study's own feature first. numbers are in one.
    spread is the sample standard deviation over seeds (None for one). gain is the mean over seeds of the difference to
    the arm `baseline` at the same seed and on the same corpus, gain_error its standard error; None where no seed has
    both. An untrained student, which is of no corpus, is compared on the first.
    """
    rows: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for result in sorted(results, key=_order):
        rows.setdefault((result["arm"], result["teacher"], result.get("corpus", "")), []).append(result)
    names = list(dict.fromkeys(name for result in results for name in result["sets"]))
    bases: dict[str, dict[int, Mapping[str, Any]]] = {}
    for (arm, _, corpus), found in rows.items():
        if arm == baseline:
            bases.setdefault(corpus, {result["seed"]: result for result in found})
    if bases:
        bases.setdefault("", next(iter(bases.values())))
    summary: dict[str, Any] = {"sets": names, "baseline": baseline, "rows": [], "references": {}}
    for feature in _features(results):
        for (arm, teacher, corpus), found in rows.items():
            row: dict[str, Any] = {"arm": arm, "teacher": teacher, "corpus": corpus, "seeds": len(found)}
            row |= {"feature": feature, "sets": {}}
            base = {} if arm == baseline else bases.get(corpus, {})
            row["numbers"] = next(iter(found[0]["sets"].values()))["features"][feature]["numbers"]
            row["visible"] = found[0].get("visible")
            row["seconds"] = float(np.mean([result["seconds"] for result in found]))
            for name in names:
                row["sets"][name] = _cell(found, base, name, feature)
            summary["rows"].append(row)
    for result in results:
        for name, scores in result["sets"].items():
            kept = {key: scores[key] for key in ("largest class", "coordinates") if key in scores}
            summary["references"].setdefault(name, {}).update(kept)
    return summary


def _features(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the features that every result has a score of, in their order."""
    found = [list(scores["features"]) for result in results for scores in result["sets"].values()]
    return [name for name in found[0] if all(name in other for other in found)] if found else []


def _cell(
    found: Sequence[Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]], name: str, feature: str
) -> dict[str, Any]:
    def accuracy(result: Mapping[str, Any]) -> float:
        return float(result["sets"][name]["features"][feature]["accuracy"])

    scores = [accuracy(result) for result in found]
    pairs = [accuracy(result) - accuracy(base[result["seed"]]) for result in found if result["seed"] in base]
    return {
        "mean": float(np.mean(scores)),
        "spread": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "scores": scores,
        "gain": float(np.mean(pairs)) if pairs else None,
        "gain_error": float(np.std(pairs, ddof=1) / np.sqrt(len(pairs))) if len(pairs) > 1 else None,
    }


def _order(result: Mapping[str, Any]) -> tuple[Any, ...]:
    names = [UNTRAINED, *(arm.name for arm in (*ARMS, *SCALING))]
    arm = result["arm"]  # unknown where the measurements are of another version
    place = names.index(arm) if arm in names else len(names)
    return result.get("corpus", ""), place, arm, result["teacher"], result["seed"]


def markdown(summary: Mapping[str, Any]) -> str:
    """Format the summary as one Markdown table; accuracies and gains in per cent."""
    names = summary["sets"]
    on = ["trained on"] if any(row["corpus"] for row in summary["rows"]) else []
    gains = any(cell["gain"] is not None for row in summary["rows"] for cell in row["sets"].values())
    of_set = ["gain"] if gains else []
    head = ["arm", "teacher", *on, "seeds", "feature", "numbers", *(text for name in names for text in (name, *of_set))]
    head += ["salient / other tokens visible", "s a run"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for what in ("largest class", "coordinates"):
        values = [summary["references"].get(name, {}).get(what) for name in names]
        if any(value is not None for value in values):
            texts = ["" if value is None else f"{100 * value:.1f}" for value in values]
            cells = [cell for text in texts for cell in (text, *("" for _ in of_set))]
            lines.append("| " + " | ".join([what, "", *("" for _ in on), "", "", "", *cells, "", ""]) + " |")
    for row in summary["rows"]:
        cells = [row["arm"], row["teacher"], *(row["corpus"] for _ in on)]
        cells += [str(row["seeds"]), row["feature"], str(row["numbers"])]
        for name in names:
            cell = row["sets"][name]
            cells.append(f"{100 * cell['mean']:.1f}" + _plus_minus(cell["spread"]))
            if gains:
                gain = cell["gain"]
                cells.append("" if gain is None else f"{100 * gain:+.1f}" + _plus_minus(cell["gain_error"]))
        seen = row["visible"]
        cells.append("" if seen is None else f"{seen['salient']:.2f} / {seen['others']:.2f}")
        cells.append(f"{row['seconds']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _plus_minus(value: float | None) -> str:
    return "" if value is None else f" ± {100 * value:.1f}"


def picture(summary: Mapping[str, Any], path: Path) -> None:
    """Draw one panel per set: each arm a line of its seeds' accuracies, colours by teacher, the baseline dashed."""
    plt = pyplot()
    first = summary["rows"][0]["feature"]
    rows, names = [row for row in summary["rows"] if row["feature"] == first][::-1], summary["sets"]
    teachers = list(dict.fromkeys(row["teacher"] for row in summary["rows"]))
    figure, axes = plt.subplots(
        1, len(names), figsize=(2.2 + 3.4 * len(names), 1.2 + 0.34 * len(rows)), sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axis, name in zip(axes[0], names, strict=True):
        for place, row in enumerate(rows):
            cell, colour = row["sets"][name], _COLOURS[teachers.index(row["teacher"]) % len(_COLOURS)]
            values = 100 * np.array(cell["scores"])
            axis.plot(values, [place] * len(values), "o", color=colour, alpha=0.55, markersize=5)
            axis.plot([100 * cell["mean"]], [place], "|", color=colour, markersize=16, markeredgewidth=2)
            if row["arm"] == summary["baseline"]:
                axis.axvline(100 * cell["mean"], linestyle="--", color=INK, linewidth=0.8)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("linear SVM accuracy, %")
        axis.grid(axis="x", color=GRID)
    axes[0][0].set_yticks(range(len(rows)), [_title(row) for row in rows], fontsize=9)
    save_figure(figure, path, plt)


def _title(row: Mapping[str, Any]) -> str:
    return f"{row['arm']}  ({row['teacher']}{', ' + row['corpus'] if row['corpus'] else ''})"
