"""The table of the downstream suite: a row an encoder, a column a protocol, from the results of the cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cli.suite.plan import ARMS, Cell

__all__ = ["markdown", "summarise"]

TITLES = {
    "coordinates": "coordinate statistics",
    "point-nn": "Point-NN, no weights",
    "scratch": "from scratch",
    "3d-only": "3D only",
    "full": "full",
}


def summarise(cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise cells' results.

    results  name of a cell -> its result; some may be missing.

    ->  set -> {"columns": [{"title", "over", "step", "n"}], "rows": {arm: [{"mean", "spread", "scores"} or None]}},
        values 0..1, spread the sample standard deviation, None for one value.
    """
    found: dict[str, Any] = {}
    for name in dict.fromkeys(cell.set for cell in cells if cell.set):
        table: dict[tuple[str, str], dict[str, list[float]]] = {}  # (title, over) -> arm -> values
        steps: dict[str, float | None] = {}
        for cell in cells:
            result = results.get(cell.name)
            if result is None or cell.set != name:
                continue
            for title, over, values, step in _values(cell, result):
                table.setdefault((title, over), {}).setdefault(cell.arm, []).extend(values)
                steps[title] = step
        keys = [key for key in sorted(table, key=lambda key: _place(key[0])) if not _repeats(key[0], table)]
        found[name] = {
            "columns": [{"title": title, "over": over, "step": steps[title]} for title, over in keys],
            "rows": {arm: [_cell(table[key].get(arm)) for key in keys] for arm in ARMS},
        }
    return found


def markdown(summary: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Format the summary: a table a set, in per cent, then what was done."""
    lines = []
    for name, of in summary.items():
        lines += [f"## {name}", "", "| | " + " | ".join(column["title"] for column in of["columns"]) + " |"]
        lines.append("|---|" + "---|" * len(of["columns"]))
        for arm, row in of["rows"].items():
            lines.append(f"| {TITLES[arm]} | " + " | ".join(map(_shown, row)) + " |")
        lines.append("| ± is over | " + " | ".join(column["over"] for column in of["columns"]) + " |")
        steps = ("" if column["step"] is None else f"{100 * column['step']:.2f}" for column in of["columns"])
        lines += ["| one test shape is worth | " + " | ".join(steps) + " |", ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes)])


def _values(cell: Cell, result: Mapping[str, Any]) -> list[tuple[str, str, list[float], float | None]]:
    """(column, what its spread is over, values, worth of one shape) of a cell."""
    if cell.what == "frozen":
        classes = f"linear SVM, {result['classes']} classes"
        columns = [(classes, "draws of points", result["probe"], 1 / result["shapes"])]
        for setting, scores in result["few"].items():
            columns.append((f"few-shot, {setting}", "folds", scores, 1 / result["few_tested"][setting]))
        return columns
    if cell.what == "tune":
        title = f"fine-tuned on {result['trained_on']} shapes"
        return [(title, "seeds", [result["accuracy"]], 1 / result["shapes"])]
    if cell.what == "parts":
        title = f"parts, {result['trained_on']} shapes"
        return [
            (f"{title}: instance mIoU", "seeds", [result["instance"]], 1 / result["shapes"]),
            (f"{title}: class mIoU", "seeds", [result["classes"]], None),  # more where a category is small
        ]
    return []


def _repeats(title: str, table: Mapping[tuple[str, str], Mapping[str, Sequence[float]]]) -> bool:
    """Tell whether a column is the class mIoU of a balanced set, which is the instance mIoU again."""
    if not title.endswith("class mIoU"):
        return False
    of = {key[0]: values for key, values in table.items()}
    other = of[title.replace("class mIoU", "instance mIoU")]
    return all(np.allclose(values, other[arm], rtol=0, atol=1e-12) for arm, values in of[title].items())


def _place(title: str) -> int:
    order = ("linear", "few-shot", "fine-tuned", "parts")
    return next(place for place, word in enumerate(order) if title.startswith(word))


def _cell(values: list[float] | None) -> dict[str, Any] | None:
    if not values:
        return None
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "spread": spread, "scores": values}


def _shown(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    spread = "" if cell["spread"] is None else f" ± {100 * cell['spread']:.1f}"
    return f"{100 * cell['mean']:.1f}{spread}"
