"""``i2p segment``: parts of labelled shapes, from a pre-trained encoder or from scratch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cli.options import fine_tuning_options
from cli.show.terminal import answer, echo

__all__ = ["segment"]

_RIVALS = {"all": "all parts", "category": "those of its category"}


@click.command(
    epilog="Examples: i2p segment synthetic --from runs/quickstart --seeds 3; "
    "i2p segment synthetic --from none --sizes runs/quickstart; i2p segment shapenetpart --from RUN --reference; "
    "i2p segment labeled-psb --from embedded --set 'finetune.train=\"npz:FILE?split=train\"'. "
    "A stopped run resumes where it was. Several processes: torchrun --nproc-per-node N -m cli.main segment ..."
)
@fine_tuning_options(place="runs/parts-CONFIG-START", section="[segmentation]")
@click.option("--reference", is_flag=True,
              help="The field's habits: two optimiser steps a batch, points drawn with replacement, a part set against "
              "all, and the best epoch ON THE TEST SPLIT; the result says so.")  # fmt: skip
def segment(
    config: str,
    start: str,
    sizes: str | None,
    reference: bool,
    seeds: int,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train a part segmenter as CONFIG says: shapenetpart, synthetic, labeled-psb, or a TOML file.

    A shape's category is given and its points' parts are asked for, as ShapeNetPart is scored: instance and class mIoU.
    The last weights are scored on the test split, or those that were best on a held-out part of the training split
    (finetune.select).
    """
    from cli.actions.finetuning import PARTS, check_starts, load_recipe, reference_settings, run_seeds, start_of
    from trainer.engine.ranks import place_in_launch

    check_starts(start, sizes)
    habits = reference_settings(PARTS) if reference else []
    sections, stated = load_recipe(config, [*habits, *overrides], PARTS)
    model, weights = start_of(start, sizes, sections, stated)
    where = out or Path("runs") / "-".join(["parts", Path(config).stem, Path(start).name])
    found = run_seeds(sections, model, weights, source=start, out=where, seeds=seeds)
    if place_in_launch().rank == 0:
        answer(found, table(found), as_json=as_json)
        if not as_json:
            echo(f"results     {where / 'metrics.json'}")


def table(found: Mapping[str, Any]) -> str:
    """The result as text: a line a seed, mean and spread, a line a category; in per cent."""
    from cli.actions.finetuning import SCORED

    steps = f"{found['updates']} optimiser step{'s' if found['updates'] > 1 else ''} a batch"
    points = f"{found['points']} points, {'with replacement' if found['sampling'] == 'replacement' else 'all distinct'}"
    lines = [
        f"part segmentation from {found['from']}, {found['test']['shapes']} shapes of {found['test']['uri']}",
        *(["  by the field's habits (reference)"] if found["reference"] else []),
        f"  {points}, {found['epochs']} epochs, {steps}, augmentation: {found['augmentation']}",
        f"  rivals of a part: {_RIVALS[found['rivals']]}; scored: {SCORED[found['select']]}",
        f"  {'':<11}{'instance mIoU':>18}{'class mIoU':>18}{'accuracy':>12}",
    ]
    for seed, *scores, epoch in zip(
        found["seeds"], found["scores"], found["class_scores"], found["accuracies"], found["chosen"], strict=True
    ):
        instance, classes, accuracy = (f"{100 * score:.2f}%" for score in scores)
        lines.append(f"  {f'seed {seed}':<11}{instance:>18}{classes:>18}{accuracy:>12}  (epoch {epoch})")
    if len(found["seeds"]) > 1:
        instance, classes = (
            f"{100 * found[f'{of}mean']:.2f}% ± {100 * found[f'{of}spread']:.2f}" for of in ("", "class_")
        )
        lines.append(f"  {'mean':<11}{instance:>18}{classes:>18}")
    for name, best in found.get("best_of_epochs", {}).items():
        what = {"instance": "instance mIoU", "classes": "class mIoU", "accuracy": "accuracy"}[name]
        values = ", ".join(f"{100 * value:.2f}%" for value in best)
        lines.append(f"  largest {what} of any epoch on the test split: {values}")
    lines.append(f"  one shape is worth up to {100 * found['step']:.2f} points of instance mIoU")
    width = max(map(len, found["categories"]))
    several = len(found["seeds"]) > 1
    for name, score in found["categories"].items():
        spread = f" ± {100 * score['spread']:.2f}" if several else ""
        lines.append(f"  {name:<{width}}{100 * score['mean']:>9.2f}%{spread}")
    return "\n".join(lines)
