"""Verification of a downloaded set: counts, archives and every shape, as one list of what is wrong."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cli.show.terminal import echo

if TYPE_CHECKING:
    from pipeline.corpora import Corpus

__all__ = ["check_release", "print_check"]

SHOWN = 20  # problems that are printed; --json has all


def check_release(corpus: "Corpus", workers: int | None) -> dict[str, Any]:
    """Compare a corpus with the release that its kind knows, and read every shape.

    workers  processes that read, as of `pipeline.corpora.survey.survey`.
    ->       {"uri", "release", "folder", "get", "expected", "found", "shapes", "refused", "absent", "archives":
             {name: "as released" | "not here" | what is wrong}, "problems": [text]}

    Raises CorpusError for a kind that knows no release, and MachineFault.
    """
    from pipeline.corpora import CorpusError
    from pipeline.corpora.survey import survey

    release = getattr(corpus, "release", None)
    if release is None:
        raise CorpusError(
            f"{corpus.uri}: no published release of this kind is known to compare with. Read all of it with `i2p "
            "corpus info URI --check`."
        )
    problems = list(release.problems())
    archives = {}
    beside = {archive.name: (archive, path) for archive, path in release.archives_beside()}
    for archive in release.archives:
        archives[archive.name] = "not here"
        if archive.name in beside:
            fault = _digest_fault(*beside[archive.name])
            archives[archive.name] = fault or "as released"
            problems += [fault] if fault else []
    with _progress("checking", len(corpus), "shapes") as progress:
        report = survey(
            corpus, processes=workers, progress=lambda done, refused: progress.update(done, refused=refused)
        )
    absent = sum(reason.shapes for reason in report.refusals if reason.reason.startswith("is listed in"))
    absent_ok = absent == release.absent  # the release itself lists this many shapes that no copy has
    for reason in report.refusals:
        if not (absent_ok and reason.reason.startswith("is listed in")):
            source, said = reason.examples[0]
            problems.append(f"{reason.shapes} shapes cannot be used, first {source}: {said}")
    return {
        "uri": corpus.uri,
        "release": release.name,
        "folder": str(release.folder),
        "get": release.get,
        "expected": dict(release.expected),
        "found": dict(release.found),
        "shapes": report.shapes,
        "refused": report.refused,
        "absent": release.absent,
        "archives": archives,
        "problems": problems,
    }


def print_check(found: Mapping[str, Any]) -> None:
    """Print the result of `check_release`."""
    echo(f"found       {found['release']} in {found['folder']}")
    for split, count in found["expected"].items():
        echo(f"{split:<12}{found['found'].get(split, 0):,} of {count:,} shapes")
    for name, said in found["archives"].items():
        echo(f"archive     {name}: {said}{', so no checksum was compared' if said == 'not here' else ''}")
    listed = f" ({found['absent']} are listed by the release but exist in no copy of it)" if found["absent"] else ""
    echo(f"read        {found['shapes']:,} shapes, {found['refused']:,} refused{listed}")
    for problem in found["problems"][:SHOWN]:
        echo(f"problem     {problem}")
    if len(found["problems"]) > SHOWN:
        echo(f"  and {len(found['problems']) - SHOWN} more; --json has them all")
    echo(f"remedy      {found['get']}" if found["problems"] else "nothing is missing")


def _digest_fault(archive: Any, path: Any) -> str:
    with _progress(f"reading {path.name}", archive.size, "bytes") as progress:
        return str(archive.fault(path, progress.update))


def _progress(title: str, total: int, unit: str) -> Any:
    from cli.show.progress import Progress

    return Progress(title, total, unit=unit)
