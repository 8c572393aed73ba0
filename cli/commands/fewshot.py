"""``i2p fewshot``: linear probes of frozen encoders on a few shapes of a few classes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from cli.options import json_option
from cli.show.terminal import answer

if TYPE_CHECKING:
    import torch

__all__ = ["fewshot"]

MANY = 100  # fits, from which on processes are worth their start


@click.command(
    epilog="Examples: i2p fewshot runs/quickstart --train 'npz:FILE?split=train' --test 'npz:FILE?split=test'; "
    "i2p fewshot runs/quickstart coordinates --stored data/ModelNetFewshot --way 5 --shot 10"
)
@click.argument("encoders", nargs=-1, required=True, metavar="ENCODER...")
@click.option("--train", metavar="URI", help="Labelled corpus that shots are drawn from.")
@click.option("--test", metavar="URI", help="That queries are drawn from. [default: other shapes of --train]")
@click.option("--stored", metavar="DIR", help="The field's folds (ModelNetFewshot) instead of drawn ones.")
@click.option("--way", "ways", type=click.IntRange(min=2), multiple=True, default=(5, 10), show_default=True,
              help="Classes of an episode; may be given many times.")  # fmt: skip
@click.option("--shot", "shots", type=click.IntRange(min=2), multiple=True, default=(10, 20), show_default=True,
              help="Shapes of each class to fit on; may be given many times.")  # fmt: skip
@click.option("--folds", type=click.IntRange(1, 1000), default=10, show_default=True, help="Episodes of each setting.")
@click.option("--queries", type=click.IntRange(min=1),
              help="Shapes of each class to be asked about; stored folds have theirs. [default: 20]")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the episodes and points.")
@click.option("--stored-points", type=int, help="Points read of each shape. [default: --points]")
@click.option("--points", type=int, default=1024, show_default=True, help="Points of each shape the encoder sees.")
@click.option("--feature", type=click.Choice(["levels", "top"]), default="levels", show_default=True,
              help="Of a pre-trained encoder.")  # fmt: skip
@click.option("--baselines/--no-baselines", default=True, show_default=True,
              help="Coordinate statistics and the untrained encoder beside it.")  # fmt: skip
@click.option(
    "--jobs", type=click.IntRange(1, 256), help="Processes that fit folds. [default: one a core for many fits]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@json_option
def fewshot(
    encoders: tuple[str, ...],
    train: str | None,
    test: str | None,
    stored: str | None,
    ways: tuple[int, ...],
    shots: tuple[int, ...],
    folds: int,
    queries: int | None,
    seed: int,
    stored_points: int | None,
    points: int,
    feature: str,
    baselines: bool,
    jobs: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Score encoders by few-shot probes: mean and both standard deviations over folds, for every way and shot.

    ENCODER is a run directory, one of its checkpoints, embedded, coordinates or point-nn. Nothing of an encoder is
    trained: a linear SVM is fitted on the shots of each fold, its C chosen by cross-validation on them. Published
    figures are fine-tuned, and of the best epoch on the queries.
    """
    from cli.actions.encoders import points_needed
    from pipeline.corpora.episodes import QUERIES
    from pipeline.corpora.processes import cores
    from trainer.engine.ranks import joined

    if bool(train) == bool(stored):
        raise click.UsageError("give one of --train and --stored")
    if stored and (test or queries):
        raise click.UsageError("--stored has its own queries; --test and --queries go with --train")
    if stored and folds > 10:
        raise click.UsageError("the field has 10 folds of each setting")
    if points_needed(encoders) > points:
        raise click.UsageError(f"--points {points} is less than the {points_needed(encoders)} groups of an encoder")
    if stored_points is not None and stored_points < points:
        raise click.UsageError(f"--stored-points {stored_points} is less than --points {points}")
    names = list(encoders)
    if baselines and "coordinates" not in names:
        names.insert(0, "coordinates")
    settings = {"folds": folds, "queries": queries or QUERIES, "seed": seed}
    with joined(device) as ranks:
        fits = len(ways) * len(shots) * folds * (len(names) + baselines)
        processes = jobs or (cores() if fits >= MANY else 1)
        run = _Run(names, ranks.device, feature, baselines, stored_points or points, points, seed, processes)
        if stored:
            found = run.stored(stored, ways, shots, settings)
        else:
            assert train is not None
            found = run.drawn(train, test, ways, shots, settings)
    answer(found, table(found), as_json=as_json)


class _Run:
    """The encoders, made once, and what all folds have in common."""

    def __init__(
        self,
        names: Sequence[str],
        device: "torch.device",
        feature: str,
        untrained: bool,
        stored_points: int,
        points: int,
        seed: int,
        processes: int,
    ) -> None:
        self.processes = processes
        self.names, self.device, self.feature, self.untrained = names, device, feature, untrained
        self.stored_points, self.points, self.seed = stored_points, points, seed
        self._encoders: Any = None

    def drawn(
        self, train: str, test: str | None, ways: Sequence[int], shots: Sequence[int], settings: Mapping[str, int]
    ) -> dict[str, Any]:
        """Episodes over labelled corpora, whose shapes are encoded once."""
        from cli.show.progress import Progress
        from trainer.downstream.few_shot import FewShotConfig, drawn_folds, few_shots

        parts = [self._read(uri) for uri in (train, test) if uri is not None]
        configs = [FewShotConfig(way=way, shot=shot, **settings) for way in ways for shot in shots]
        # Before hours of encoding: too few shapes in a class are found now.
        folds = [drawn_folds(parts[0], parts[1] if test else None, config) for config in configs]
        features = self._features(parts)
        pairs = {name: (found[0], found[-1]) for name, found in features.items()}
        total = sum(map(len, folds)) * len(pairs)
        with Progress("probing", total, unit="fits") as progress:
            rows = few_shots(
                pairs, list(zip(configs, folds, strict=True)), processes=self.processes, progress=progress.add
            )
        return self._result({"train": train, "test": test}, settings, rows)

    def stored(
        self, folder: str, ways: Sequence[int], shots: Sequence[int], settings: Mapping[str, int]
    ) -> dict[str, Any]:
        """Score on the field's folds, each a pair of corpora."""
        from urllib.parse import quote

        from cli.show.progress import Progress
        from pipeline.corpora.episodes import QUERIES
        from trainer.downstream.few_shot import FewShotConfig, ProbeJob, probe_all, summarise

        rows = []
        total = len(ways) * len(shots) * settings["folds"]
        with Progress("folds", total, unit="folds") as progress:
            for config in (FewShotConfig(way=way, shot=shot, **settings) for way in ways for shot in shots):
                jobs: dict[str, list[ProbeJob]] = {}
                for fold in range(config.folds):
                    base = f"fewshot:{quote(folder)}?way={config.way}&shot={config.shot}&fold={fold}&split="
                    train, test = (self._read(base + split, quiet=True) for split in ("train", "test"))
                    for name, (a, b) in self._features([train, test], quiet=True).items():
                        jobs.setdefault(name, []).append(ProbeJob(a, train.labels, b, test.labels, fold))
                    progress.add(1)
                found = iter(probe_all([job for of in jobs.values() for job in of], processes=self.processes))
                scores = {name: [next(found) for _ in of] for name, of in jobs.items()}
                rows.append({name: summarise(of, config, tested=config.way * QUERIES) for name, of in scores.items()})
        return self._result({"stored": folder}, {**settings, "queries": QUERIES}, rows)

    def _read(self, uri: str, *, quiet: bool = False) -> Any:
        from cli.show.progress import Progress
        from pipeline.corpora import open_corpus
        from trainer.downstream.clouds import read_clouds

        if quiet:
            return read_clouds(uri, points=self.stored_points)
        with Progress("reading", 0, unit="shapes") as progress:
            progress.expect(len(open_corpus(uri, points=self.stored_points)))
            return read_clouds(uri, points=self.stored_points, progress=progress.add)

    def _features(self, parts: Sequence[Any], *, quiet: bool = False) -> dict[str, list[Any]]:
        from cli.actions.encoders import named_encoders
        from cli.show.progress import Progress
        from trainer.downstream.comparison import SETTLING_CLOUDS
        from trainer.downstream.features import encode

        clouds = [part.draw(self.points, self.seed) for part in parts]
        if self._encoders is None:
            self._encoders = named_encoders(
                self.names, device=self.device, feature=self.feature,
                untrained_on=clouds[0][:SETTLING_CLOUDS] if self.untrained else None,
            )  # fmt: skip
        found = {}
        for name, encoder in self._encoders.items():
            with Progress(f"encoding ({name})", sum(map(len, clouds)), unit="shapes", quiet=quiet) as progress:
                found[name] = [encode(encoder, part, batch_size=32, progress=progress.add) for part in clouds]
        return found

    def _result(
        self, corpora: Mapping[str, Any], settings: Mapping[str, int], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        from trainer.downstream.features import feature_name

        return {
            "task": "few-shot",
            "protocol": "linear SVM on frozen features, C cross-validated on the shots",
            **corpora,
            **settings,
            "points": self.points,
            "rows": {
                name: {
                    "feature": feature_name(encoder),
                    "settings": [row[name].to_json() for row in rows],
                }
                for name, encoder in self._encoders.items()
            },
        }


def table(found: Mapping[str, Any]) -> str:
    """Format the result as text: a line per encoder, a column per setting; accuracies in per cent."""
    where = found.get("stored") or f"{found['train']}, queries of {found['test'] or 'the same'}"
    first = next(iter(found["rows"].values()))["settings"]
    heads = [f"{score['way']}-way {score['shot']}-shot" for score in first]
    width = max(18, *(len(name) for name in found["rows"]))
    lines = [
        f"few-shot on {where}",
        f"  {found['protocol']}; {found['points']} points, {found['folds']} folds, {found['queries']} queries a class",
        "  mean ± standard deviation over folds (divided by the folds; by one less)",
        f"  {'':<{width}}{'feature':<12}" + "".join(f"{head:>24}" for head in heads),
    ]
    for name, row in found["rows"].items():
        feature = "none" if name == "coordinates" else row["feature"]
        cells = [
            f"{100 * score['mean']:.1f}% ± {100 * score['population_spread']:.1f} ({100 * score['sample_spread']:.1f})"
            for score in row["settings"]
        ]
        lines.append(f"  {name:<{width}}{feature:<12}" + "".join(f"{cell:>24}" for cell in cells))
    steps = ", ".join(dict.fromkeys(f"{100 * score['step']:.2g}" for score in first))
    lines.append(f"  one query is worth {steps} points of a fold")
    return "\n".join(lines)
