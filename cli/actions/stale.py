"""Comparison of a cache with its corpus before training."""

from typing import TYPE_CHECKING

from cli.show.terminal import echo

if TYPE_CHECKING:
    from cli.experiment.sections import Experiment
    from teacher_cache.location import Location

__all__ = ["check_corpus", "finished_cache"]


def check_corpus(experiment: "Experiment", place: "Location") -> None:
    """Compare the experiment's shapes in a finished cache with its corpus, if the cache is of that. Raises BuildError
    where they changed or went; says so where they cannot be compared.

    The corpus' location is taken from the experiment only: notes in a cache are not trusted.
    """
    from pipeline.build.driver import changes_at
    from pipeline.corpora import CorpusError, MachineFault
    from pipeline.errors import BuildError

    try:
        changes = changes_at(place, experiment.corpus, content=experiment.build.check == "content")
    except MachineFault:
        raise
    except CorpusError as error:  # a cache alone is enough to train on, on a machine without the corpus
        reason = str(error).partition("\n")[0]
        echo(f"note: whether the corpus changed since the cache was built is unknown: {reason}", err=True)
        return
    if changes is None:
        echo("note: the cache belongs to another corpus than the experiment's, so its files are not compared", err=True)
    elif changes.stale:
        lines = "\n  ".join(changes.lines())
        raise BuildError(
            f"{place}: expected a cache that matches the corpus {experiment.corpus.uri}:\n"
            f"  {lines}\n"
            "  Update the cache with `i2p cache build CONFIG --changed rebuild`, or train on it unchanged:\n"
            "  --stale-cache train (trainer.stale_cache)."
        )


def finished_cache(experiment: "Experiment") -> "Location | None":
    """Return the location of the experiment's cache if it is finished, else None."""
    from pipeline.build.driver import cache_of
    from teacher_cache.format.paths import MANIFEST
    from teacher_cache.storage.opening import storage_at

    _, place = cache_of(experiment.corpus, experiment.projection, experiment.teacher, experiment.cache)
    try:
        storage_at(place).read(MANIFEST)
    except FileNotFoundError:
        return None
    return place
