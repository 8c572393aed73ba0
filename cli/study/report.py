"""Summary of a study: mean and deviation over seeds, and the difference to the arm without a teacher."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cli.show.pictures import GRID, INK, pyplot, save_figure
from cli.study.arms import ARMS, BASELINE, SCALING
from cli.study.plan import UNTRAINED

__all__ = ["markdown", "picture", "summarise"]

_COLOURS = ("#777777", "#c98a1b", "#1f5fa8", "#2f8f5b", "#b3452c")


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise the results of runs to rows of (arm, teacher).

    -> {"sets": names, "rows": [{"arm", "teacher", "seeds", "visible", "seconds", "feature", "numbers", "sets": {name:
       {"mean", "spread", "scores", "gain", "gain_error"}}}], "references": {name: {"largest class", "coordinates"}}}

    A student has a row for each feature that was scored, those of the study's own feature first. numbers are in one.
    spread is the sample standard deviation over seeds (None for one). gain is the mean over seeds of the difference to
    the arm without a teacher at the same seed, gain_error its standard error; None where no seed has both.
    """
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in sorted(results, key=_order):
        rows.setdefault((result["arm"], result["teacher"]), []).append(result)
    names = list(dict.fromkeys(name for result in results for name in result["sets"]))
    base = {result["seed"]: result for result in rows.get((BASELINE, "none"), [])}
    summary: dict[str, Any] = {"sets": names, "rows": [], "references": {}}
    for feature in _features(results):
        for (arm, teacher), found in rows.items():
            row: dict[str, Any] = {"arm": arm, "teacher": teacher, "seeds": len(found), "feature": feature, "sets": {}}
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


def _order(result: Mapping[str, Any]) -> tuple[int, str, int]:
    names = [UNTRAINED, *(arm.name for arm in (*ARMS, *SCALING))]
    return names.index(result["arm"]), result["teacher"], result["seed"]


def markdown(summary: Mapping[str, Any]) -> str:
    """Format the summary as one Markdown table; accuracies and gains in per cent."""
    names = summary["sets"]
    head = ["arm", "teacher", "seeds", "feature", "numbers", *(text for name in names for text in (name, "gain"))]
    head += ["salient / other tokens visible", "s a run"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for what in ("largest class", "coordinates"):
        values = [summary["references"].get(name, {}).get(what) for name in names]
        if any(value is not None for value in values):
            cells = [text for value in values for text in ("" if value is None else f"{100 * value:.1f}", "")]
            lines.append("| " + " | ".join([what, "", "", "", "", *cells, "", ""]) + " |")
    for row in summary["rows"]:
        cells = [row["arm"], row["teacher"], str(row["seeds"]), row["feature"], str(row["numbers"])]
        for name in names:
            cell = row["sets"][name]
            cells.append(f"{100 * cell['mean']:.1f}" + _plus_minus(cell["spread"]))
            own = row["arm"] == BASELINE or cell["gain"] is None
            cells.append("" if own else f"{100 * cell['gain']:+.1f}" + _plus_minus(cell["gain_error"]))
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
            if row["arm"] == BASELINE:
                axis.axvline(100 * cell["mean"], linestyle="--", color=INK, linewidth=0.8)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("linear SVM accuracy, %")
        axis.grid(axis="x", color=GRID)
    axes[0][0].set_yticks(range(len(rows)), [f"{row['arm']}  ({row['teacher']})" for row in rows], fontsize=9)
    save_figure(figure, path, plt)
