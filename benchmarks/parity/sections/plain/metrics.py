"""metrics.npz, metrics.json: scores of part segmentation, votes and few-shot folds by the official routines."""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.parity.compare import Row, compare, same
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section
from trainer.downstream.few_shot import FewShotConfig, summarise
from trainer.downstream.metrics import overall_accuracy, part_scores, predict_parts
from trainer.downstream.voting import VoteConfig, vote
from trainer.errors import EvaluationError

__all__ = ["Metrics"]


class Metrics(Section):
    name = "metrics"
    title = "Scores: parts, votes, few-shot folds"
    file = "metrics.npz"

    def parts(self) -> dict[str, Part]:
        return {"parts": self._parts, "votes": self._votes, "few-shot": self._few_shot}

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("metrics")

    @cached_property
    def _official(self) -> Any:
        return self.recorded.table("metrics")

    def _parts(self) -> Iterator[Row]:
        classes = self.recorded.table("config")["seg_classes"]
        names, own = list(classes), [np.array(classes[name]) for name in classes]
        arrays = self._arrays
        categories, truth = arrays["seg__category"], arrays["seg__target"].astype(np.int64)
        found = predict_parts(arrays["seg__log_probs"].astype(np.float32), categories, own)
        yield arrays.check("predicted parts", "seg__pred", found, "exact")
        each = [
            part_scores(
                found[row : row + 1], truth[row : row + 1], np.zeros(1, int), label_names=["it"], parts=[own[c]]
            )
            for row, c in enumerate(categories)
        ]
        yield arrays.check("IoU of every shape", "seg__shape_iou", [one.instance for one in each], "score")
        scores = part_scores(found, truth, categories, label_names=names, parts=own)
        yield arrays.check("IoU of every category", "seg__class_iou", list(scores.categories.values()), "score")
        recall = [np.mean(found[truth == part] == part) for part in range(len(arrays["seg__part_accuracy"]))]
        yield arrays.check("accuracy of every part", "seg__part_accuracy", recall, "score")
        for theirs, ours in (
            ("accuracy", scores.accuracy),
            ("class_avg_accuracy", scores.part_recall),
            ("class_avg_iou", scores.classes),
            ("inctance_avg_iou", scores.instance),
        ):
            yield compare(f"official {theirs}", ours, self._official["partseg"][theirs], "score")
        yield from self._without_some(found, truth, categories, names, own)

    def _without_some(
        self, found: np.ndarray, truth: np.ndarray, categories: np.ndarray, names: list[str], own: list[np.ndarray]
    ) -> Iterator[Row]:
        """Two categories without a shape: means over categories are not defined, the others are."""
        kept = self._arrays["seg__missing_keep"].astype(bool)
        there = sorted(set(categories[kept].tolist()))
        numbers = np.searchsorted(there, categories[kept])
        scores = part_scores(
            found[kept], truth[kept], numbers, label_names=[names[c] for c in there], parts=[own[c] for c in there]
        )
        official = self._official["partseg_two_categories_absent"]
        yield compare("categories absent: accuracy", scores.accuracy, official["accuracy"], "score")
        yield compare("categories absent: instance IoU", scores.instance, official["inctance_avg_iou"], "score")
        undefined = [name for name in official if math.isnan(official[name])]
        yield same("categories absent: not defined", undefined, ["class_avg_accuracy", "class_avg_iou"])
        try:
            part_scores(found[kept], truth[kept], categories[kept], label_names=names, parts=own)
            refused = False
        except EvaluationError:
            refused = True
        yield same("categories absent: refused here", [refused], [True])

    def _votes(self) -> Iterator[Row]:
        logits, labels = self._arrays["vote__logits"], self._arrays["vote__label"]
        draws, shapes, _ = logits.shape
        calls = iter([logits[0], *logits])  # the plain answer first, which the recorded vote has none of
        config = VoteConfig(points=1, pool=1, draws=draws, rounds=1, batch_size=shapes)
        scores = vote(lambda clouds: next(calls), np.zeros((shapes, 1, 3), np.float32), labels, config)
        official = self._official["vote"]
        yield compare("vote, per cent", 100 * scores.rounds[0], official["accuracy"], "score")
        single = [100 * overall_accuracy(one.argmax(1), labels) for one in logits]
        yield compare("single passes, per cent", single, official["single_pass"], "score")

    def _few_shot(self) -> Iterator[Row]:
        official = self._official["fewshot"]
        scores = summarise(official["fold_accuracies"], FewShotConfig(folds=len(official["fold_accuracies"])), tested=1)
        for ours, theirs in (
            ("mean", "mean"),
            ("population_spread", "std_population"),
            ("sample_spread", "std_sample"),
        ):
            yield compare(f"few-shot folds: {theirs}", getattr(scores, ours), official[theirs], "score")
