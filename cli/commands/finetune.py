"""``i2p finetune``: a classifier on labelled shapes, from a pre-trained encoder or from scratch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cli.options import fine_tuning_options
from cli.show.terminal import answer, echo

__all__ = ["finetune"]


@click.command(
    epilog="Examples: i2p finetune synthetic --from runs/quickstart --seeds 3; "
    "i2p finetune synthetic --from none --sizes runs/quickstart; i2p finetune modelnet40 --from RUN --protocol linear. "
    "A stopped run goes on where it was. In several processes: torchrun --nproc-per-node 2 -m cli.main finetune ..."
)
@fine_tuning_options(place="runs/CONFIG-PROTOCOL-START", section="[classifier]")
@click.option("--protocol", type=click.Choice(["full", "mlp-3", "linear"]),
              help="Short for --set finetune.protocol=...: what is trained.")  # fmt: skip
@click.option("--reference", is_flag=True,
              help="The field's habits: the best epoch ON THE TEST SPLIT, one draw of ranks a batch, a new head, "
              "frozen encoders whose batch norms move; the result says so.")  # fmt: skip
def finetune(
    config: str,
    start: str,
    sizes: str | None,
    protocol: str | None,
    reference: bool,
    seeds: int,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fine-tune a classifier as CONFIG says: synthetic, modelnet40, obj-bg, obj-only, pb-t50-rs, or a TOML file.

    The last weights are scored on the test split, or those that were best on a held-out part of the training split
    (finetune.select). Nothing is chosen on the test split unless finetune.select says "test", as the field does.
    """
    from cli.actions.finetuning import CLASSES, check_starts, load_recipe, reference_settings, run_seeds, start_of
    from trainer.engine.ranks import place_in_launch

    check_starts(start, sizes)
    habits = reference_settings(CLASSES) if reference else []
    if protocol:
        habits.append(f"finetune.protocol='{protocol}'")
    sections, stated = load_recipe(config, [*habits, *overrides])
    if reference and sections["finetune"].protocol != "full":  # wherever the protocol was stated; --set still wins
        sections, stated = load_recipe(config, [*habits, "finetune.frozen='reference'", *overrides])
    model, weights = start_of(start, sizes, sections, stated)
    where = out or Path("runs") / "-".join([Path(config).stem, sections["finetune"].protocol, Path(start).name])
    found = run_seeds(sections, model, weights, source=start, out=where, seeds=seeds)
    if place_in_launch().rank == 0:
        answer(found, table(found), as_json=as_json)
        if not as_json:
            echo(f"results     {where / 'metrics.json'}")


def table(found: Mapping[str, Any]) -> str:
    """The result as text: a line a seed, then mean and spread, in per cent."""
    from cli.actions.finetuning import SCORED

    lines = [
        f"{found['protocol']} fine-tuning from {found['from']}, "
        f"{found['test']['shapes']} shapes of {found['test']['uri']}",
        *(["  by the field's habits (reference)"] if found["reference"] else []),
        f"  {found['points']} points, {found['epochs']} epochs, augmentation: {found['augmentation']}",
        f"  head: {found['head']}",
        f"  scored: {SCORED[found['select']]}",
    ]
    for seed, score, of_classes, epoch in zip(
        found["seeds"], found["scores"], found["class_scores"], found["chosen"], strict=True
    ):
        lines.append(
            f"  seed {seed:<6}{100 * score:>8.2f}%  mean over classes {100 * of_classes:.2f}%  (epoch {epoch})"
        )
    if len(found["seeds"]) > 1:
        lines.append(f"  {'mean':<11}{100 * found['mean']:>8.2f}% ± {100 * found['spread']:.2f}")
    lines.append(f"  one shape is worth {100 * found['step']:.2f} points")
    return "\n".join(lines)
