"""Printing of corpus reports, whose figures `pipeline.corpora.survey` computes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.show.terminal import echo

if TYPE_CHECKING:
    from pipeline.corpora import Corpus
    from pipeline.corpora.report import Duplicates, Group, Report

__all__ = ["contents", "human_bytes", "print_contents", "print_report"]

SHOWN = 20  # kinds of refusals and notes; --json has all
NO_LABEL, NO_SPLIT = "(no class)", "shapes"
SPLITS = {"train": 0, "val": 1, "test": 2}  # in this order, others behind them


def contents(corpus: "Corpus") -> dict[str, Any]:
    """Return what is known of a corpus without reading its shapes, as JSON values."""
    from dataclasses import asdict

    from pipeline.corpora.survey import groups_of

    groups = [asdict(group) for group in groups_of(corpus)]
    for group in groups:
        del group["refused"]  # not known
    return {
        "uri": corpus.uri,
        "points": corpus.points,
        "shapes": len(corpus),
        "ignored": getattr(corpus, "ignored", None),
        "label_names": list(corpus.label_names),
        "groups": groups,
    }


def print_contents(found: Mapping[str, Any]) -> None:
    """Print the result of `contents`."""
    from pipeline.corpora.report import Group

    _head(found["uri"], found["shapes"], found["points"], found["ignored"])
    groups = [Group(**group) for group in found["groups"]]
    labelled = sum(group.shapes for group in groups if group.label is not None)
    echo(f"labels    {len(found['label_names'])} classes, {labelled} shapes labelled")
    _table(groups, found["label_names"], refused=False)


def print_report(report: "Report") -> None:
    """Print the report. What the corpus does not have (faces, classes, duplicates) is omitted."""
    _head(report.uri, report.shapes, report.points, report.ignored)
    formats = ", ".join(f"{count} {name}" for name, count in report.formats.items())
    if report.size is not None:  # of the shapes that can be used, while the formats are of all
        formats += f"; {human_bytes(report.size)} can be used" if report.refused else f", {human_bytes(report.size)}"
    echo(f"formats   {formats}")
    classes = {group.label for group in report.groups if group.label is not None}
    labelled = sum(group.shapes for group in report.groups if group.label is not None)
    echo(f"labels    {len(classes)} classes, {labelled} shapes labelled")
    _table(report.groups, (), refused=bool(report.refused))
    if report.extent:
        _sizes(report)
        _up(report)
        if report.same_bytes is not None:
            _duplicates("same bytes", report.same_bytes)
        _duplicates("same shape", report.same_content, other=report.same_bytes is not None)
    if report.notes:
        echo("noted by readers")
    for note in report.notes[:SHOWN]:
        echo(f"  {note.count} {note.what}, in {note.shapes} shapes: {_first_few(note.examples, note.shapes)}")
    _left(report.notes)
    echo(f"refused   {report.refused} of {report.shapes}")
    for reason in report.refusals[:SHOWN]:
        echo(f"  {reason.shapes} x {_line(reason.reason)}")
        for source, said in reason.examples:
            echo(f"    {_line(source)}: {_line(said)}")
        if reason.shapes > len(reason.examples):
            echo(f"    and {reason.shapes - len(reason.examples)} more")
    _left(report.refusals)


def _head(uri: str, shapes: int, points: int, ignored: int | None) -> None:
    echo(f"corpus    {_line(uri)}")
    echo(f"shapes    {shapes}, {points} points each")
    if ignored:
        echo(f"ignored   {ignored} other files")


def _table(groups: Sequence["Group"], names: Sequence[str], *, refused: bool) -> None:
    """Print a row per class (including those of `names` without shapes), a column per split."""
    splits = sorted({group.split for group in groups}, key=lambda split: (SPLITS.get(split or "", 9), split or ""))
    labels = list(dict.fromkeys([*names, *sorted(group.label for group in groups if group.label is not None)]))
    rows: list[str | None] = [*labels, *([None] if any(group.label is None for group in groups) else [])]
    found = {(group.split, group.label): group for group in groups}
    if rows == [None] and splits == [None]:
        return
    heads = [_line(split or NO_SPLIT) for split in splits] + (["refused"] if refused else [])
    width = max(len(_line(label or NO_LABEL)) for label in rows)
    cells = []
    for label in rows:
        here = [found.get((split, label)) for split in splits]
        numbers = [group.shapes if group else 0 for group in here]
        cells.append(numbers + ([sum(group.refused for group in here if group)] if refused else []))
    widths = [max(len(head), *(len(str(row[column])) for row in cells)) for column, head in enumerate(heads)]
    echo(f"  {'':{width}}  " + "  ".join(f"{head:>{wide}}" for head, wide in zip(heads, widths, strict=True)))
    for label, row in zip(rows, cells, strict=True):
        numbers_text = "  ".join(f"{number:>{wide}}" for number, wide in zip(row, widths, strict=True))
        echo(f"  {_line(label or NO_LABEL):{width}}  {numbers_text}")


def _sizes(report: "Report") -> None:
    rows = [(name if name == "longest" else f"along {name}", spread) for name, spread in report.extent.items()]
    if report.meshes:
        rows += [("faces", report.faces), ("vertices", report.vertices), ("area", report.area)]  # type: ignore[list-item]
    if report.clouds:
        rows.append(("points", report.stored))  # type: ignore[arg-type]
    echo(f"{'size':<12}{'smallest':>12}{'median':>12}{'largest':>12}")
    for name, spread in rows:
        numbers = (spread.smallest, spread.median, spread.largest)
        echo(f"  {name:<10}" + "".join(f"{_number(number):>12}" for number in numbers))
    if report.meshes and report.clouds:
        echo(f"  {report.meshes} meshes, {report.clouds} clouds; faces, vertices, area are of meshes, points of clouds")
    echo(f"  the smallest is {_line(report.smallest or '')}, the largest {_line(report.largest or '')}")
    assert report.low is not None
    assert report.high is not None
    sides = (
        f"{axis} {_number(low)}..{_number(high)}"
        for axis, low, high in zip("xyz", report.low, report.high, strict=True)
    )
    echo(f"  all lie within {', '.join(sides)}, axes as in the files")


def _up(report: "Report") -> None:
    up = report.up
    votes = ", ".join(f"{name} {count}" for name, count in up.votes.items())
    said = f"{sum(up.votes.values())} of {report.shapes - report.refused} shapes vote: {votes}"
    if up.axis is None:
        echo(f"up        no guess; {said}")
    else:
        echo(f"up        {'+' if up.sign > 0 else '-'}{up.axis}, a {up.sure} guess; {said}")
    echo("  by the axis whose two ends touch the bounding box of a shape most differently; no shape is rotated")


def _duplicates(title: str, found: "Duplicates", *, other: bool = False) -> None:
    beyond = " beyond those" if other else ""
    if not found.groups:
        echo(f"{title:<12}none{beyond}")
        return
    across = [
        f"{count} across {what}"
        for count, what in ((found.across_splits, "splits"), (found.across_classes, "classes"))
        if count
    ]
    apart = f" ({', '.join(across)})" if across else ""
    echo(f"{title:<12}{found.groups} groups{apart}{beyond}, {found.surplus} shapes more than once")
    for same in found.examples:
        echo(f"  {_first_few(same.ids, same.shapes, ' = ')}")
    if found.groups > len(found.examples):
        echo(f"  and {found.groups - len(found.examples)} more")


def _left(rows: Sequence[object]) -> None:
    if len(rows) > SHOWN:
        echo(f"  and {len(rows) - SHOWN} other kinds; --json has them all")


def _first_few(names: Sequence[str], count: int, between: str = ", ") -> str:
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return between.join(map(_line, names)) + more


def _line(text: str) -> str:
    """Escape text to one line: a name or reason from outside cannot forge another."""
    return text.replace("\n", "\\n").replace("\t", "\\t")


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"


def human_bytes(size: int) -> str:
    """Format a size in decimal units."""
    if size < 10**6:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.1f} MB" if size < 10**9 else f"{size / 1e9:.1f} GB"
