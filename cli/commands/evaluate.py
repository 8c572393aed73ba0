"""``i2p evaluate``: score a checkpoint's encoder on labelled shapes."""

from dataclasses import replace
from pathlib import Path

import click

from cli.options import CheckpointPath, json_option, labelled_pair
from cli.show.terminal import answer, echo

__all__ = ["evaluate"]


@click.command(
    epilog="Examples: i2p evaluate runs/quickstart; i2p evaluate runs/quickstart "
    '--train "modelnet40:DIR?split=train" --test "modelnet40:DIR?split=test"; '
    'i2p evaluate runs/quickstart --on "a=npz:a.npz?split=train,npz:a.npz?split=test" --on b=folder:c,folder:d'
)
@click.argument("checkpoint", type=CheckpointPath())
@click.option("--train", metavar="URI", help="Labelled corpus the SVM is fitted on. [default: the run's own]")
@click.option("--test", metavar="URI", help="Labelled corpus it is scored on. [default: the run's own]")
@click.option("--on", "pairs", multiple=True, metavar="NAME=TRAIN,TEST",
              help="Evaluate on this set instead; of several, one table with a column each.")  # fmt: skip
@click.option("--stored-points", type=int, help="Points read of each shape. [default: --points]")
@click.option("--points", type=int, default=1024, show_default=True, help="Points of each shape the encoder sees.")
@click.option("--feature", type=click.Choice(["auto", "levels", "top", "all"]), default="auto", show_default=True,
              help="Encoder feature; auto: levels, or top with the reference protocol; all: a row each.")  # fmt: skip
@click.option("--protocol", type=click.Choice(["cross-validated", "reference"]), default="cross-validated",
              show_default=True, help="How C is chosen; reference: fixed, raw features.")  # fmt: skip
@click.option("--c", "reference_c", type=float, default=0.01, show_default=True, help="C of the reference protocol.")
@click.option("--logistic", is_flag=True,
              help="Fit logistic regression, too; seconds to a minute a row and seed.")  # fmt: skip
@click.option("--point-nn", is_flag=True, help="Score Point-NN too, which has no weights (0.3 s a shape).")
@click.option("--embedded", is_flag=True, help="Score the package's own encoder too.")
@click.option("--seeds", type=int, default=5, show_default=True, help="Draws of points and folds.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@json_option
def evaluate(
    checkpoint: Path,
    train: str | None,
    test: str | None,
    pairs: tuple[str, ...],
    stored_points: int | None,
    points: int,
    feature: str,
    protocol: str,
    reference_c: float,
    logistic: bool,
    point_nn: bool,
    embedded: bool,
    seeds: int,
    device: str,
    as_json: bool,
) -> None:
    """Score CHECKPOINT (a run directory, one of its checkpoints, or embedded) by a linear SVM, beside baselines."""
    from cli.actions.evaluation import evaluate_on, means, sets_table
    from cli.commands.pretrain import table
    from cli.experiment.toml import ConfigError
    from cli.show.progress import Watching
    from trainer.checkpoints.models import load_model
    from trainer.config import EvaluationConfig
    from trainer.engine.ranks import joined

    if reference_c != 0.01 and protocol != "reference":
        raise click.UsageError("--c is the C of --protocol reference; otherwise C is cross-validated")
    if bool(train) != bool(test):
        raise click.UsageError("give both --train and --test, or neither for the run's own")
    if pairs and train:
        raise click.UsageError("--on names corpora to fit on and to score on; leave --train and --test out")
    named = [labelled_pair(text, "--on") for text in pairs]
    twice = sorted({name for name, *_ in named if [other for other, *_ in named].count(name) > 1})
    if twice:
        raise click.UsageError(f"--on {', '.join(twice)}: that name is taken; choose another")
    model, header = load_model(checkpoint)
    if not train and not named:
        own = header.config.get("evaluation", {})
        train, test = own.get("train"), own.get("test")
        if not train or not test:
            raise click.UsageError(f"{checkpoint} was not evaluated on anything; give --train and --test")
        stored_points = stored_points or max(points, int(own.get("stored_points", points)))
        embedded = embedded or bool(own.get("embedded"))
    sets = named or [("", train or "", test or "")]
    config = EvaluationConfig(
        train=sets[0][1], test=sets[0][2], stored_points=stored_points or points, points=points,
        feature="auto" if feature == "all" else feature, protocol=protocol,  # type: ignore[arg-type]
        reference_c=reference_c, seeds=seeds, embedded=embedded,
    )  # fmt: skip
    configs = {name: replace(config, train=train, test=test) for name, train, test in sets}
    problems = list(dict.fromkeys(problem for one in configs.values() for problem in one.problems()))
    if model.config.least_points > points:
        problems.append(
            f"--points {points} is too few: {model.config.least_points_reason} needs at least "
            f"{model.config.least_points}"
        )
    if problems:
        raise ConfigError("the options", problems)
    seed = int(header.config.get("trainer", {}).get("seed", 0))  # an imported one does not say
    results = {}
    with joined(device) as ranks, Watching() as watch:
        for number, (name, one) in enumerate(configs.items(), 1):
            if named:
                echo(f"{name}, {number} of {len(configs)} sets", err=True)
            results[name] = evaluate_on(
                one, model, seed=seed, device=ranks.device, every_feature=feature == "all", logistic=logistic,
                point_nn=point_nn, watch=watch,
            )  # fmt: skip
    if not named:
        answer(results[""], table(results[""]), as_json=as_json)
        return
    found = {"task": "linear SVM", "sets": results, "means": means(results)}
    answer(found, sets_table(found), as_json=as_json)
