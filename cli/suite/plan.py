"""The cells of the downstream suite: which encoder goes through which protocol on which set, with which seed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.experiment.toml import ConfigError

__all__ = [
    "ARMS", "FEW", "TWIN", "Cell", "Names", "hash_of", "known_cell", "plan_cells", "real_set", "synthetic_set",
]  # fmt: skip

ARMS = ("coordinates", "point-nn", "scratch", "3d-only", "full")
"""Rows of the table. The first two have no weights; "3d-only" is the full run's twin without a teacher (Point-M2AE)."""

TWIN = ("masking.mode=random", "model.targets=3d", "alignment.weight=0", "trainer.keep_checkpoints=1",
        "trainer.tensorboard=false", "evaluation.train=''", "evaluation.test=''")  # fmt: skip
"""What the twin's settings differ in from the full run's; what it starts from and sees is the same."""

PARTED = ("chair", "table", "bed", "mug", "lamp", "teapot", "car", "airplane", "guitar", "bicycle", "boat", "house")
BATCH = ("finetune.batch_size=8",)  # there are few shapes, and a network from scratch needs steps
HEAD = ("classifier.label_smoothing=0.0",)  # the recipe's one layer, fitted before the first step
FEW = ((5, 10), (10, 10))  # ways and shots
FOLDS = 10


@dataclass(frozen=True)
class Names:
    """A set and what each protocol takes of it, as URIs.

    probe  (train, test) of the linear probe and of few-shot folds;  tune  of fine-tuning;  parts  of part segmentation,
    None where points have no part labels;  queries  of each class in a few-shot fold
    """

    name: str
    probe: tuple[str, str]
    tune: tuple[str, str]
    parts: tuple[str, str] | None
    queries: int


@dataclass(frozen=True)
class Cell:
    """One piece of work, whose result is kept.

    what      "pretrain", "frozen" (linear probe and few-shot), "tune" or "parts"
    settings  all that its numbers follow from, as JSON types
    passes    about so many shapes go through a network, a training step counting as three
    """

    what: str
    arm: str
    set: str
    seed: int | None
    settings: Mapping[str, Any]
    passes: int

    @property
    def name(self) -> str:
        seed = "" if self.seed is None else f"-{self.seed}"
        return "-".join(filter(None, (self.what, self.set, self.arm))) + seed


def synthetic_set(size: float = 1.0) -> Names:
    """The set that needs no download: 36 categories of synthetic objects, turned about the vertical.

    size  share of the shapes, for tests.
    """

    def uri(split: str, each: int, names: Sequence[str] = ()) -> str:
        count = max(2, round(each * size)) * (len(names) or 36)
        of = f"&categories={','.join(names)}" if names else ""
        return f"synthetic:?count={count}&seed=1&split={split}&rotate=yaw{of}"

    return Names(
        name="synthetic",
        probe=(uri("train", 10), uri("test", 8)),
        tune=(uri("train", 5), uri("test", 8)),
        parts=(uri("train", 8, PARTED), uri("test", 8, PARTED)),
        queries=max(2, round(8 * size)),
    )


def plan_cells(
    sets: Sequence[Names],
    *,
    encoder: str,
    seeds: int,
    points: int,
    stored_points: int,
    epochs: int,
    pretrain_passes: int,
) -> list[Cell]:
    """The cells in the order of work, the longest first.

    encoder        hash of the full run's weights and settings, which the twin's follow from.
    points         of a shape that encoders see;  stored_points  that frozen encoders' points are drawn from.
    """
    cells = [Cell("pretrain", "3d-only", "", None, {"encoder": encoder, "overrides": list(TWIN)}, pretrain_passes)]
    for of in sets:
        common = {"points": points, "stored_points": stored_points, "encoder": encoder}
        shapes = sum(_count(uri, points) for uri in of.probe)
        for arm in ARMS:
            draws = 1 if arm == "point-nn" else seeds
            settings = {**common, "seeds": draws, "uris": list(of.probe), "queries": of.queries, "folds": FOLDS}
            passes = draws * shapes * {"coordinates": 0, "point-nn": 25}.get(arm, 1)
            cells.append(Cell("frozen", arm, of.name, None, settings, passes))
        for arm in ("scratch", "3d-only", "full"):
            for what, uris in (("tune", of.tune), ("parts", of.parts)):
                if uris is None:
                    continue
                passes = 3 * epochs * _count(uris[0], points) + _count(uris[1], points)
                settings = {"points": points, "encoder": encoder, "uris": list(uris), "epochs": epochs}
                settings["overrides"] = list(BATCH if what == "parts" else (*BATCH, *HEAD))
                cells += [Cell(what, arm, of.name, seed, settings, passes) for seed in range(seeds)]
    return sorted(cells, key=lambda cell: (cell.what != "pretrain", -cell.passes))


def known_cell(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """Read the result of a cell; None if it is still to be done.

    Raises ConfigError naming what differs for a result of other settings.
    """
    from trainer.engine.run_directory import known_json

    found = known_json(folder / f"{cell.name}.json", "the cell")
    if not found:
        return None
    then, now = found.get("settings", {}), json.loads(json.dumps(cell.settings))
    differences = [
        f"{key} was {then.get(key, 'absent')!r}, is now {now.get(key, 'absent')!r}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]
    if differences:
        raise ConfigError(
            f"{folder / cell.name}.json, which holds a result of other settings",
            [*differences, "name another --out, repeat the settings, or delete the folder"],
        )
    return found


def hash_of(value: Any) -> str:
    """A short hash of JSON types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def real_set(name: str, train: str, test: str, points: int) -> Names:
    """A labelled set of one's own: all protocols that it allows."""
    from pipeline.corpora import open_corpus
    from trainer.downstream.clouds import check_corpora

    check_corpora(train, test, points=points)
    corpus = open_corpus(test, points=points)
    labels = [corpus.label(index) for index in range(len(corpus))]
    queries = min(labels.count(label) for label in {*labels})
    return Names(name, (train, test), (train, test), (train, test) if corpus.part_names else None, min(queries, 20))


def _count(uri: str, points: int) -> int:
    from pipeline.corpora import open_corpus

    return len(open_corpus(uri, points=points))
