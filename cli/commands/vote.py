"""``i2p vote``: a fine-tuned classifier on a test split, plain and with votes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cli.options import CheckpointPath, json_option
from cli.show.terminal import answer

__all__ = ["vote"]


@click.command(
    epilog="Examples: i2p vote runs/tuned/seed-0; "
    "i2p vote imported --test 'modelnet40:DIR?split=test&order=stored' --stored-points 8192. "
    "The field's habit, however a classifier was trained: --rounds 49 --sharing batch --scale 0.667 1.5 --shift 0.2 "
    "--rotation none, and the largest round is printed."
)
@click.argument("checkpoint", type=CheckpointPath())
@click.option("--test", metavar="URI",
              help="Labelled corpus; order=stored for farthest points as stored. [default: the run's own]")  # fmt: skip
@click.option("--stored-points", type=int,
              help="Points read of each shape. [default: as trained, else what --points is drawn from]")  # fmt: skip
@click.option("--points", type=int, help="Points of each shape the classifier sees. [default: as trained, else 1024]")
@click.option("--rounds", type=int, default=10, show_default=True, help="Votes, each with its own draws.")
@click.option("--draws", type=int, default=10, show_default=True, help="Draws whose logits one vote averages.")
@click.option("--scale", type=(float, float),
              help="Range of the factor of each axis; 1 1 for none. [default: as trained, else 2/3 3/2]")  # fmt: skip
@click.option("--shift", type=float, help="Largest shift of each axis. [default: as trained, else 0.2]")
@click.option("--rotation", type=click.Choice(["none", "cloud", "batch"]),
              help="About --up: each cloud, or a batch, its angle. [default: as trained, else none]")  # fmt: skip
@click.option("--up", type=click.Choice(["y", "z"]), help="Axis of the rotation. [default: as trained, else z]")
@click.option("--sharing", type=click.Choice(["cloud", "batch"]),
              help="Whether a cloud, or as in the field a batch, draws its ranks. [default: as trained, "
              "else cloud]")  # fmt: skip
@click.option("--frame", type=click.Choice(["canonical", "stored"]),
              help="stored: coordinates as the corpus has them, as ScanObjectNN is trained on. [default: as trained, "
              "else canonical]")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draws.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@json_option
def vote(
    checkpoint: Path,
    test: str | None,
    stored_points: int | None,
    points: int | None,
    rounds: int,
    draws: int,
    scale: tuple[float, float] | None,
    shift: float | None,
    rotation: str | None,
    up: str | None,
    sharing: str | None,
    frame: str | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Score a fine-tuned classifier: plain, and by rounds of votes with their mean, spread and largest.

    One vote is the mean of the logits over --draws draws of points. CHECKPOINT is a classifier's: a folder seed-N of
    i2p finetune, one of its checkpoints or best/epoch-NNNN, or an imported one.
    """
    from cli.experiment.toml import ConfigError
    from cli.show.progress import Progress
    from pipeline.corpora import open_corpus
    from trainer.checkpoints.models import load_fine_tuned
    from trainer.downstream.clouds import read_clouds
    from trainer.downstream.features import classifier_logits
    from trainer.downstream.voting import VoteConfig, pool_of
    from trainer.downstream.voting import vote as hold
    from trainer.engine.ranks import joined
    from trainer.errors import EvaluationError
    from trainer.models.heads.fine_tuned import ShapeClassifier

    model, header = load_fine_tuned(checkpoint)
    if not isinstance(model, ShapeClassifier):
        raise click.UsageError(f"{checkpoint} is a part segmenter; voting needs a classifier")
    trained = header.config.get("finetune", {})  # an imported one does not say how it was
    test = test or trained.get("test")
    if not test:
        raise click.UsageError(f"{checkpoint} does not record its test corpus; give --test")
    points = trained.get("points", 1024) if points is None else points
    frame = frame or trained.get("frame", "canonical")
    if stored_points is None:
        stored_points = max(trained["stored_points"], points) if trained else pool_of(points, 2**31)
    # A classifier is asked about clouds such as it has learnt from, unless others are named.
    given = {"scale": scale, "shift": shift, "rotation": rotation, "up": up, "sharing": sharing}
    drawn: dict[str, Any] = {name: trained.get(name) if value is None else value for name, value in given.items()}
    drawn = {name: tuple(value) if isinstance(value, list) else value for name, value in drawn.items()}
    if points == trained.get("points") and trained.get("pool", 0) <= stored_points:  # else the field's, by points
        drawn["pool"] = trained.get("pool")
    config = VoteConfig(
        points=points, draws=draws, rounds=rounds, seed=seed,
        **{name: value for name, value in drawn.items() if value is not None},
    )  # fmt: skip
    problems = list(config.problems())
    if up is not None and config.rotation == "none":
        problems.append(f"--up {up} with --rotation none, which turns nothing")
    if stored_points < points:
        problems.append(f"--stored-points {stored_points} is less than --points {points}")
    least = model.config.least_points(model.model)
    if points < least:
        problems.append(f"--points {points} is too few: the classifier needs at least {least}")
    if problems:
        raise ConfigError("the options", problems)
    with Progress("reading", 0, unit="shapes") as progress:
        progress.expect(len(open_corpus(test, points=stored_points)))
        clouds = read_clouds(test, points=stored_points, frame=frame, progress=progress.add)  # type: ignore[arg-type]
    if len(clouds.label_names) != model.config.classes:
        raise EvaluationError(
            f"{test} has {len(clouds.label_names)} classes, the classifier {model.config.classes}; give the corpus it "
            "was trained for"
        )
    with joined(device) as ranks, Progress("voting", len(clouds) * (1 + rounds * draws), unit="clouds") as progress:
        logits = classifier_logits(model.to(ranks.device), ranks.device)
        found = hold(logits, clouds.points, clouds.labels, config, progress=progress.add)
    result = {
        "task": "vote", "checkpoint": str(checkpoint), "test": {"uri": test, "shapes": len(clouds)},
        "skipped": len(clouds.skipped), "settings": {**vars(config), "scale": list(config.scale)}, **found.to_json(),
    }  # fmt: skip
    answer(result, table(result), as_json=as_json)


def augmentation(settings: Mapping[str, Any]) -> str:
    """What the draws of a vote do to a cloud, in words."""
    low, high = settings["scale"]
    words = [f"scale {low:.3g}..{high:.3g}, shift {settings['shift']:.3g}"]
    if settings.get("rotation", "none") != "none":
        words.append(f"rotated about {settings['up']}, one angle a {settings['rotation']}")
    return ", ".join(words)


def table(found: Mapping[str, Any]) -> str:
    """Format the result as text, in per cent."""
    settings, rounds = found["settings"], len(found["rounds"])
    lines = [
        f"{found['checkpoint']} on {found['test']['shapes']} shapes of {found['test']['uri']}",
        f"  {settings['points']} points; draws: {augmentation(settings)}; one shape is worth "
        f"{100 * found['step']:.2f} points",
        f"  {'plain, no vote':<34}{100 * found['plain']:>7.2f}%  mean over classes {100 * found['plain_class']:.2f}%",
        f"  {'all draws together, one answer':<34}{100 * found['together']:>7.2f}%  mean over classes "
        f"{100 * found['together_class']:.2f}%",
        f"  {f'mean of {rounds} rounds':<34}{100 * found['mean']:>7.2f}%"
        + (f" ± {100 * found['spread']:.2f}" if rounds > 1 else ""),
        f"  {f'the largest of {rounds} rounds':<34}{100 * found['best_of_rounds']:>7.2f}%  chosen on the test split; "
        "what papers print",
    ]
    if found["skipped"]:
        lines.append(f"  {found['skipped']} shapes could not be read and were left out")
    return "\n".join(lines)
