"""Results of runs and commands, gathered into rows of one table, beside published figures."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["COLUMNS", "ResultsError", "gather", "published_rows", "to_csv", "to_markdown"]

COLUMNS = {
    "task": "task",
    "set": "test set",
    "who": "encoder or method",
    "feature": "feature",
    "value": "%",
    "spread": "±",
    "of": "± is over",
    "shapes": "shapes",
    "step": "one shape, %",
    "protocol": "protocol",
    "source": "from",
}
PUBLISHED = Path(__file__).parents[1] / "published.toml"
_SETTINGS = ((5, 10), (5, 20), (10, 10), (10, 20))  # of published few-shot figures, in their order
_REFERENCE = "best epoch on the test split, one seed"
_CHOSEN = {
    "last": "last weights",
    "validation": "best on held-out training shapes",
    "test": "best on the test split",
}
_TUNED = "fine-tuned, best epoch on the queries"


class ResultsError(Exception):
    """A path that holds no result: it names what was looked for."""


def gather(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of run directories (their metrics.json, and any results/*.json), of folders of studies and of the downstream
    suite, and of JSON files that commands printed.

    ->  dicts with the keys of COLUMNS: "value", "spread" and "step" in per cent, None where there is none.

    Raises ResultsError for a path without a result, and for a file that is none.
    """
    rows = []
    for path in paths:
        known = [path / name for name in ("metrics.json", "study.json", "downstream.json")]
        files = [path] if path.is_file() else [*known, *sorted((path / "results").glob("*.json"))]
        found = [row for file in files if file.is_file() for row in _rows(_read(file), str(path))]
        if not found:
            raise ResultsError(
                f"{path}: contains no result; expected a run with an evaluation in metrics.json, files in its "
                "results/, a study, or a file that a command printed with --json"
            )
        rows += found
    return rows


def published_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Figures of papers on the sets and tasks that the rows have, as rows."""
    wanted = {(row["task"], row["set"]) for row in rows}
    found = []
    for method in tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))["method"]:
        for task, name, value, protocol in _figures(method):
            if (task, name) in wanted:
                found.append(
                    _row(task, name, method["name"], "", value / 100, None, "", None, protocol, method["source"])
                )
    return found


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format as a Markdown table; columns that are empty in every row are left out."""
    keys = [key for key in COLUMNS if any(row[key] not in (None, "") for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[key] for key in keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(_cell(key, row).replace("|", "\\|") for key in keys) + " |" for row in rows]
    return "\n".join(lines)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format as CSV with all columns, by their keys, and unrounded numbers."""
    import csv
    import io

    file = io.StringIO()
    writer = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().rstrip("\n")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ResultsError(f"{path}: contains a {type(found).__name__}; expected the output of a command with --json")
    return found


def _rows(found: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    try:
        if "task" in found:
            of_task = {
                "few-shot": _few_shot, "fine-tuning": _fine_tuning, "part segmentation": _parts, "vote": _vote,
                "downstream": _suite, "linear SVM": _probes,
            }  # fmt: skip
            if found["task"] not in of_task:
                raise ResultsError(f"{source}: task {found['task']!r} is none of {', '.join(of_task)}")
            return list(of_task[found["task"]](found, source))
        if "references" in found:
            return list(_study(found, source))
        if "evaluation" in found:  # of metrics.json; null where nothing was evaluated
            return list(_probe(found["evaluation"], source)) if found["evaluation"] else []
        return list(_probe(found, source))
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{source}: a result of unknown form ({type(error).__name__}: {error})") from None


def _probe(found: Mapping[str, Any], source: str) -> Iterator[dict[str, Any]]:
    name, shapes, seeds = _set_name(found["test"]["uri"]), found["test"]["shapes"], found["seeds"]
    how = f"linear SVM, {found['protocol']}, {found['points']} points, {_several(seeds, 'seed')}"
    over = "draws of points and folds" if seeds > 1 else ""
    yield _row("linear SVM", name, "always the largest class", "", found["chance"], None, "", shapes, how, source)
    for who, row in found["rows"].items():
        spread = row["spread"] if seeds > 1 else None
        yield _row("linear SVM", name, who, _feature(who, row), row["accuracy"], spread, over, shapes, how, source)
    how = f"logistic regression, cross-validated, {found['points']} points, {_several(seeds, 'seed')}"
    for who, row in found.get("logistic", {}).items():
        spread = row["spread"] if seeds > 1 else None
        yield _row("logistic regression", name, who, _feature(who, row), row["accuracy"], spread, over, shapes, how,
                   source)  # fmt: skip


def _probes(found: Mapping[str, Any], source: str) -> Iterator[dict[str, Any]]:
    """Rows of an evaluation on several sets, each under the name it was given there."""
    for name, result in found["sets"].items():
        yield from (row | {"set": name} for row in _probe(result, source))


def _study(found: Mapping[str, Any], source: str) -> Iterator[dict[str, Any]]:
    """Rows of study.json; what its sets hold is not in it, so no step is named."""
    for name in found["sets"]:
        base = found["references"].get(name, {})
        for key, who in (("largest class", "always the largest class"), ("coordinates", "coordinates")):
            if key in base:
                yield _row("linear SVM", name, who, "", base[key], None, "", None, "a study's reference", source)
        for row in found["rows"]:
            cell = row["sets"][name]
            who = row["arm"] if row["teacher"] == "none" else f"{row['arm']}, {row['teacher']}"
            over = "" if cell["spread"] is None else "seeds"
            how = f"a study: linear SVM, one draw of points, {_several(row['seeds'], 'seed')}"
            yield _row("linear SVM", name, who, row["feature"], cell["mean"], cell["spread"], over, None, how, source)


def _suite(found: Mapping[str, Any], source: str) -> Iterator[dict[str, Any]]:
    for name, of in found["sets"].items():
        for who, row in of["rows"].items():
            for column, cell in zip(of["columns"], row, strict=True):
                if cell is not None:
                    over, how = column["over"], "downstream suite: last weights, C cross-validated"
                    over = "" if cell["spread"] is None else over
                    shapes = None if column["step"] is None else round(1 / column["step"])
                    mean, spread = cell["mean"], cell["spread"]
                    yield _row(column["title"], name, who, "", mean, spread, over, shapes, how, source)


def _few_shot(found: Mapping[str, Any], source: str) -> Iterator[dict[str, Any]]:
    where = (
        f"folds of {Path(found['stored']).name}" if "stored" in found else _set_name(found["test"] or found["train"])
    )
    for who, row in found["rows"].items():
        for score in row["settings"]:
            task = f"few-shot, {score['way']}-way {score['shot']}-shot"
            how = f"{found['protocol']}, {found['points']} points, {_several(len(score['scores']), 'fold')}"
            several = len(score["scores"]) > 1
            yield _row(
                task, where, who, _feature(who, row), score["mean"], score["sample_spread"] if several else None,
                "folds (sample standard deviation)" if several else "", score["tested"], how, source,
            )  # fmt: skip


def _fine_tuning(found: Mapping[str, Any], source: str) -> Iterator[dict[str, Any]]:
    seeds, habits = len(found["seeds"]), "reference protocol, " if found.get("reference") else ""
    how = (
        f"{habits}{found['protocol']}, {_CHOSEN[found['select']]}, {found['points']} points, {found['epochs']} epochs, "
        f"{_several(seeds, 'seed')}; {found['augmentation']}"
        f"{'; head: ' + found['head'] if 'head' in found else ''}"  # absent in results before heads could differ
    )
    who = "from scratch" if found["from"] == "none" else found["from"]
    spread = found["spread"] if seeds > 1 else None
    yield _row(
        "classification", _set_name(found["test"]["uri"]), who, "", found["mean"], spread, "seeds" if seeds > 1 else "",
        found["test"]["shapes"], how, source,
    )  # fmt: skip


def _parts(found: Mapping[str, Any], source: str) -> Iterator[dict[str, Any]]:
    seeds, name, shapes = len(found["seeds"]), _set_name(found["test"]["uri"]), found["test"]["shapes"]
    who = "from scratch" if found["from"] == "none" else found["from"]
    updates, habits = found["updates"], "reference protocol, " if found["reference"] else ""
    how = (
        f"{habits}{_CHOSEN[found['select']]}, {found['points']} points"
        f"{' drawn with replacement' if found['sampling'] == 'replacement' else ''}, {found['epochs']} epochs, "
        f"{_several(updates, 'step')} a batch, {_several(seeds, 'seed')}; {found['augmentation']}"
        f"{'; parts against those of their category' if found.get('rivals') == 'category' else ''}"
    )
    over = "seeds" if seeds > 1 else ""
    for what, key in (("instance", ""), ("class", "class_")):
        spread = found[f"{key}spread"] if seeds > 1 else None
        # Of class mIoU a shape is worth more where its category is small, so no step is named.
        yield _row(f"part segmentation, {what} mIoU", name, who, "", found[f"{key}mean"], spread, over,
                   shapes if what == "instance" else None, how, source)  # fmt: skip
    for best, key in (("instance", "instance"), ("class", "classes")):
        for value in found.get("best_of_epochs", {}).get(key, ()):
            yield _row(f"part segmentation, {best} mIoU", name, who, "", value, None, "", None,
                       f"the largest of {found['epochs']} epochs, chosen on test; {how}", source)  # fmt: skip


def _vote(found: Mapping[str, Any], source: str) -> Iterator[dict[str, Any]]:
    name, shapes, settings = _set_name(found["test"]["uri"]), found["test"]["shapes"], found["settings"]
    rounds = len(found["rounds"])
    how = f"{settings['points']} points, {settings['draws']} draws a round"
    scaled = f"scale {settings['scale'][0]:.3g}..{settings['scale'][1]:.3g}, shift {settings['shift']:.3g}"
    if settings.get("rotation", "none") != "none":
        scaled += f", rotated about {settings['up']}, one angle a {settings['rotation']}"
    who = found["checkpoint"]
    spread_of = (found["spread"], "rounds") if rounds > 1 else (None, "")
    for task, value, spread, over, said in (
        ("classification", found["plain"], None, "", f"{settings['points']} points, no vote"),
        ("vote", found["mean"], *spread_of, f"mean of {rounds} rounds; {how}; {scaled}"),
        ("vote", found["best_of_rounds"], None, "", f"the largest of {rounds} rounds, chosen on test; {how}; {scaled}"),
        ("vote", found["together"], None, "", f"all {rounds * settings['draws']} draws together; {scaled}"),
    ):  # fmt: skip
        yield _row(task, name, who, "", value, spread, over, shapes, said, source)


def _figures(method: Mapping[str, Any]) -> Iterator[tuple[str, str, float, str]]:
    """(task, set, per cent, protocol) of each figure of a method."""
    sets = {"modelnet40": "ModelNet40", "obj_bg": "OBJ-BG", "obj_only": "OBJ-ONLY", "pb_t50_rs": "PB-T50-RS"}
    for key, name in sets.items():
        for prefix, suffix, task, protocol in (
            ("svm_", "", "linear SVM", "linear SVM, raw feature, C chosen on test"),
            ("", "", "classification", f"fine-tuned, {_REFERENCE}"),
            ("", "_vote", "vote", f"fine-tuned, {_REFERENCE}, the largest of many rounds"),
        ):
            if f"{prefix}{key}{suffix}" in method:
                yield task, name, method[f"{prefix}{key}{suffix}"], protocol
    for (way, shot), value in zip(_SETTINGS, method.get("fewshot", ()), strict=False):
        yield f"few-shot, {way}-way {shot}-shot", "folds of ModelNetFewshot", value, _TUNED
    for key, task in (
        ("part_classes", "part segmentation, class mIoU"),
        ("part_instances", "part segmentation, instance mIoU"),
    ):
        if key in method:
            yield task, "ShapeNetPart", method[key], _REFERENCE


def _set_name(uri: str) -> str:
    """Return a set's name in tables: a published one's name, others' URI."""
    kind, _, rest = uri.partition(":")
    if kind == "modelnet40" and "split=test" in rest:
        return "ModelNet40"
    if kind == "scanobjectnn" and "split=test" in rest:
        names = {"obj_bg": "OBJ-BG", "obj_only": "OBJ-ONLY", "pb_t50_rs": "PB-T50-RS"}
        return next((name for variant, name in names.items() if f"variant={variant}" in rest), uri)
    return "ShapeNetPart" if kind == "shapenetpart" and "split=test" in rest else uri


def _row(
    task: str, name: str, who: str, feature: str, value: float, spread: float | None, of: str, shapes: int | None,
    protocol: str, source: str,
) -> dict[str, Any]:  # fmt: skip
    return {
        "task": task, "set": name, "who": who, "feature": feature, "value": 100 * value,
        "spread": None if spread is None else 100 * spread, "of": of, "shapes": shapes,
        "step": None if not shapes else 100 / shapes, "protocol": protocol, "source": source,
    }  # fmt: skip


def _feature(who: str, row: Mapping[str, Any]) -> str:
    return "" if who == "coordinates" else str(row["feature"])


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def _cell(key: str, row: Mapping[str, Any]) -> str:
    value = row[key]
    if value is None:
        return ""
    if key in ("value", "spread"):
        return f"{value:.2f}"
    return f"{value:.3g}" if key == "step" else str(value)
