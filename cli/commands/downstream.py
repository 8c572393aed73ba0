"""``i2p downstream``: an encoder through every protocol, beside its twin without a teacher and untaught ones."""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import LocalPath, json_option, labelled_pair
from cli.show.terminal import answer, echo

if TYPE_CHECKING:
    from cli.suite.plan import Cell

__all__ = ["downstream"]


@click.command(
    epilog="Examples: i2p downstream; i2p downstream runs/mine; "
    "i2p downstream --real 'psb=npz:FILE?split=train,npz:FILE?split=test'. "
    "Every cell of the table is kept: a suite that is stopped goes on where it was, a finished one is only reported."
)
@click.argument("run", default="runs/quickstart", type=LocalPath(file_okay=False), metavar="[RUN]")
@click.option("--out", type=LocalPath(file_okay=False), default=Path("runs/downstream"), show_default=True)
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True,
              help="Of fine-tuning and part segmentation, and draws of points of frozen encoders.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(2), default=8, show_default=True, help="Of fine-tuning and parts.")
@click.option("--points", type=click.IntRange(32), default=1024, show_default=True, help="Of a shape.")
@click.option("--stored-points", type=click.IntRange(32),
              help="That the points of frozen encoders are drawn from. [default: twice --points]")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Cells at a time, a thread each.")
@click.option("--real", metavar="NAME=TRAIN,TEST", multiple=True,
              help="A labelled set of yours, too; parts where it has part labels.")  # fmt: skip
@click.option("--size", type=click.FloatRange(0.01, 100), default=1.0, show_default=True,
              help="Factor of the numbers of synthetic shapes.")  # fmt: skip
@click.option("--report", "report_only", is_flag=True, help="Report what is there; run nothing.")
@json_option
def downstream(
    run: Path,
    out: Path,
    seeds: int,
    epochs: int,
    points: int,
    stored_points: int | None,
    workers: int,
    real: tuple[str, ...],
    size: float,
    report_only: bool,
    as_json: bool,
) -> None:
    """Take the encoder of RUN through linear probe, few-shot, fine-tuning and part segmentation, to one table.

    Beside it: its twin, trained here by the same settings without a teacher (3D only), the same network from scratch,
    Point-NN and coordinate statistics. Nothing is downloaded. If RUN is runs/quickstart and is not there, it is trained
    first, in about as long again.
    """
    from cli.actions.encoders import points_needed
    from cli.suite.plan import hash_of, known_cell, plan_cells, real_set, synthetic_set
    from trainer.checkpoints.files import find_checkpoint, read_header

    if not report_only:
        _train_full(run)
    if not (run / "config.toml").is_file():
        raise click.UsageError(
            f"{run} has no config.toml; name the directory of a run of i2p pretrain, whose settings its twin takes"
        )
    header = read_header(find_checkpoint(run))
    architecture = header.config["model"].get("architecture", "hierarchical")
    if architecture != "hierarchical":
        raise click.UsageError(f"{run} is a {architecture} student; the suite has recipes for the hierarchical one")
    least = points_needed([str(run)])
    if points < least:
        raise click.UsageError(f"--points {points} is less than the {least} that the encoder needs")
    stored = stored_points or 2 * points
    if stored < points:
        raise click.UsageError(f"--stored-points {stored} is less than --points {points}")
    named = [_real(text) for text in real]
    if len({name for name, *_ in named}) < len(named):
        raise click.UsageError("--real: a name is given twice")
    sets = [synthetic_set(size), *(real_set(*of, stored) for of in named)]
    encoder = hash_of([header.files["model.safetensors"]["sha256"], header.config, header.cache])
    cells = plan_cells(
        sets, encoder=encoder, seeds=seeds, points=points, stored_points=stored, epochs=epochs,
        pretrain_passes=3 * header.step * header.config["trainer"]["batch_size"],
    )  # fmt: skip
    results = {cell.name: found for cell in cells if (found := known_cell(out / "cells", cell)) is not None}
    failed: list[str] = []
    if not report_only:
        failed = _carry_out([cell for cell in cells if cell.name not in results], cells, results, run, out, workers)
    _report(cells, results, out, run, header, as_json=as_json)
    if failed:
        echo(f"{len(failed)} cells failed; run the same command again to try them again", err=True)
        raise SystemExit(1)


def _train_full(run: Path) -> None:
    """Train the quickstart where it is asked for and not there; finish a run that was stopped."""
    from cli.commands.pretrain import pretrain
    from cli.experiment.toml import load_experiment
    from trainer.checkpoints.files import latest, read_header

    config = run / "config.toml"
    if config.is_file():
        newest = latest(run)
        if newest is not None and read_header(newest).epoch >= load_experiment(str(config)).trainer.epochs:
            return
        start = str(config)
    elif run == Path("runs/quickstart"):
        start = "quickstart"
    else:
        return
    echo(f"training {run} first, which is not finished", err=True)
    with redirect_stdout(sys.stderr):  # what it prints is not this command's result
        pretrain.main([start, "--out", str(run)], prog_name="i2p pretrain", standalone_mode=False)


def _carry_out(
    missing: Sequence["Cell"],
    cells: Sequence["Cell"],
    results: dict[str, Any],
    run: Path,
    out: Path,
    workers: int,
) -> list[str]:
    """Do the missing cells in processes, those of the twin after it; -> names of those that failed."""
    from cli.actions.build_cache import build_from
    from cli.experiment.toml import load_experiment
    from cli.show.progress import Progress, human_seconds
    from cli.study.workers import WorkerError, do_all
    from cli.suite.work import do
    from teacher_cache.storage.atomic import replace_file

    if not missing:
        return []
    cache_path = None
    if any(cell.what == "pretrain" for cell in missing):
        experiment = load_experiment(str(run / "config.toml"))
        cache_path = experiment.trainer.cache or build_from(experiment).path
    (out / "cells").mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    failed: list[str] = []
    total = sum(cell.passes for cell in cells)
    with Progress("downstream", total, unit="passes", initial=total - sum(c.passes for c in missing)) as progress:
        for later in (False, True):
            stage = [cell for cell in missing if (cell.arm == "3d-only" and cell.what != "pretrain") == later]
            jobs = [(cell, (cell, run, out, cache_path)) for cell in stage]
            if later and any(name.startswith("pretrain") for name in failed):
                failed += [cell.name for cell in stage]
                break
            with closing(do_all(do, jobs, min(workers, max(1, len(jobs))))) as ended:
                for cell, found in ended:
                    if isinstance(found, WorkerError):
                        failed.append(cell.name)
                        progress.write(f"FAILED {cell.name}: {found}")
                    else:
                        results[cell.name], seconds = found
                        text = json.dumps(results[cell.name], indent=1) + "\n"
                        replace_file(out / "cells" / f"{cell.name}.json", text.encode())
                        shutil.rmtree(out / "runs" / cell.name, ignore_errors=True)  # only now: the cell is kept
                        progress.write(f"{cell.name} ({human_seconds(seconds)})")
                    progress.update(progress.done + cell.passes)
    echo(f"{human_seconds(time.perf_counter() - began)} for {len(missing)} cells, {workers} at a time", err=True)
    return failed


def _report(
    cells: Sequence["Cell"], results: Mapping[str, Any], out: Path, run: Path, header: Any, *, as_json: bool
) -> None:
    """Write and print the table."""
    from cli.suite.plan import FEW
    from cli.suite.report import markdown, summarise
    from teacher_cache.storage.atomic import replace_file

    if not any(cell.set and cell.name in results for cell in cells):
        raise click.ClickException(f"no cell of this suite has ended in {out}")
    summary = summarise(cells, results)
    tuned = next(cell for cell in cells if cell.what == "tune").settings
    notes = [
        f"full: {run.name}, {header.epoch} epochs on {header.cache.get('records')} shapes. 3D only: its twin by the "
        "same settings, masked at random, without the teacher's losses. One pre-training each: ± says nothing of that.",
        f"{tuned['points']} points. Frozen and from scratch: the first weights of each seed, batch norms settled.",
        f"Fine-tuning and parts train all weights for {tuned['epochs']} epochs; the last weights are scored, and "
        "nothing is chosen on a test split. Of parts a shape's category is given.",
    ]
    for name in summary:
        frozen = (results[c.name] for c in cells if c.what == "frozen" and c.set == name and c.name in results)
        few = next((found["few"] for found in frozen), None)
        absent = [text for way, shot in FEW if few is not None and (text := f"{way}-way {shot}-shot") not in few]
        if absent:
            notes.append(f"{name}: no few-shot {', '.join(absent)}: too few classes have enough shapes.")
    text = markdown(summary, notes)
    content = {"task": "downstream", "run": str(run), "sets": summary, "notes": notes}
    replace_file(out / "downstream.json", (json.dumps(content, indent=1) + "\n").encode())
    replace_file(out / "downstream.md", (text + "\n").encode())
    answer(content, text, as_json=as_json)
    missing = sum(cell.name not in results for cell in cells)
    if missing:
        echo(f"{missing} of {len(cells)} cells are missing", err=True)
    echo(f"written: {out / 'downstream.md'}, downstream.json", err=True)


def _real(text: str) -> tuple[str, str, str]:
    name, train, test = labelled_pair(text, "--real")
    if not name.replace("-", "").isalnum() or name == "synthetic":
        hint = "a name of letters, digits and '-', and not synthetic"
        raise click.BadParameter(f"{text}: expected {hint}", param_hint="--real")
    return name, train, test
