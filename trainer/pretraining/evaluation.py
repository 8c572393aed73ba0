"""Evaluations of a run's encoder, and the file metrics.json with their results."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.config import EvaluationConfig
from trainer.engine.events import Evaluated, Event, Working
from trainer.engine.memory import peak_memory
from trainer.engine.ranks import Ranks
from trainer.engine.run_directory import known_json, write_json
from trainer.engine.watching import Watched
from trainer.errors import EvaluationError
from trainer.models.student import Student
from trainer.pretraining.progress import Progress

if TYPE_CHECKING:
    from trainer.downstream.linear_svm import SvmScore

__all__ = ["Evaluations", "check_evaluation"]


def check_evaluation(config: EvaluationConfig, ranks: Ranks) -> None:
    """Raise EvaluationError or CorpusError for corpora that cannot serve, before training begins."""
    if config.enabled and ranks.main:
        from trainer.downstream.clouds import check_corpora

        check_corpora(config.train, config.test, points=config.stored_points)


class Evaluations:
    """The evaluations of one run; rank 0 makes them while the others wait.

    Making it raises EvaluationError where the student lacks the feature that is asked for.

    settings  the section [evaluation] as JSON types, which metrics.json repeats
    seed      of the run, from which the untrained baseline is drawn
    facts     of the run that metrics.json repeats: what the global loss learns from, which shapes of a cache
    """

    def __init__(
        self,
        run_dir: Path,
        config: EvaluationConfig,
        model: Student,
        ranks: Ranks,
        *,
        settings: Mapping[str, Any],
        seed: int,
        facts: Mapping[str, Any],
    ):
        self._file, self._config, self._model, self._ranks = run_dir / "metrics.json", config, model, ranks
        self._settings, self._seed, self._facts = settings, seed, facts
        self._evaluator: Any = None
        wanted, known = config.model_feature, model.features
        if config.enabled and wanted not in known:
            raise EvaluationError(
                f"evaluation.feature = {config.feature!r}: the {model.config.architecture} student has no feature "
                f"{wanted!r}; it has {', '.join(known)}"
            )

    def if_due(self, progress: Progress, epochs: int, emit: Callable[[Event], None]) -> None:
        """Evaluate shortly between epochs, where the settings say so: one seed, no baselines.

        epochs  of the whole run; after its last there is the final evaluation.
        """
        every = self._config.every
        if not (self._config.enabled and every and progress.epoch % every == 0 and progress.epoch < epochs):
            return
        if self._ranks.main:
            result = self._compare(progress, emit, final=False)
            progress.metrics["svm_accuracy"] = result["rows"]["trained"]["accuracy"]
            self._write(progress, result, final=False)
        self._ranks.wait()

    def final(self, progress: Progress, emit: Callable[[Event], None]) -> Mapping[str, Any] | None:
        """Evaluate the last epoch in full, unless metrics.json already holds the result; -> it, in rank 0."""
        if not self._ranks.main:
            return None
        known = known_json(self._file, "the evaluation")
        same = known.get("epoch") == progress.epoch and known.get("evaluation_settings") == self._settings
        if known.get("final") and same and "evaluation" in known:
            return known["evaluation"]
        result = self._compare(progress, emit, final=True) if self._config.enabled else None
        self._write(progress, result, final=True)
        return result

    def _write(self, progress: Progress, result: Mapping[str, Any] | None, *, final: bool) -> None:
        content: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step, "final": final, **self._facts}
        content |= dict(sorted(progress.metrics.items()))  # in the order that a checkpoint gives them back
        content |= {"evaluation_settings": self._settings, "evaluation": result}
        write_json(self._file, content)

    def _compare(self, progress: Progress, emit: Callable[[Event], None], *, final: bool) -> Mapping[str, Any]:
        """Score the model in its current state; after the last epoch with all seeds and with the baselines."""
        from trainer.downstream.comparison import Evaluator
        from trainer.downstream.embedding import EMBEDDING, Embedding, embedding_of, write_embedding
        from trainer.downstream.features import Encoder, model_encoder

        began = time.perf_counter()

        def watch(watched: Watched) -> None:
            emit(Working(epoch=progress.epoch, step=progress.step, watched=watched))

        if self._evaluator is None:
            self._evaluator = Evaluator(self._config, watch=watch)
        encoders: dict[str, Encoder] = {}
        if final and self._config.baselines:
            encoders |= self._evaluator.baselines(self._model, seed=self._seed, device=self._ranks.device)
        encoders["trained"] = model_encoder(self._model, self._ranks.device, self._config.model_feature)
        kept: list[Embedding] = []

        def keep(name: str, seed: int, features: np.ndarray, score: "SvmScore") -> None:
            if final and name == "trained" and seed == 0:
                clouds, points = self._evaluator.test, self._config.points
                kept.append(embedding_of(clouds, features, score, epoch=progress.epoch, points=points))

        result: Mapping[str, Any] = self._evaluator.compare(
            encoders, seeds=None if final else 1, watch=watch, keep=keep
        ).to_json()
        for embedding in kept:  # before metrics.json, whose result says that nothing is left to do
            write_embedding(self._file.with_name(EMBEDDING), embedding)
        seconds, peak = time.perf_counter() - began, peak_memory(self._ranks.device)
        emit(Evaluated(epoch=progress.epoch, step=progress.step, final=final, result=result, seconds=seconds, **peak))
        return result
