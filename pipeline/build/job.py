"""Messages between the build driver and its workers: a `Job` and a task one way, a `Failure` or report back.

Small and of plain types, and light to import: a Dask scheduler unpickles every task, and must not load torch for that.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from pipeline.build.provenance import differences, software
from pipeline.config import CorpusConfig, ProjectionConfig, TeacherConfig
from pipeline.corpora.uri import place_of
from pipeline.errors import BuildError
from teacher_cache import CacheHandle

__all__ = ["Failure", "Job", "check_software", "elsewhere"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings of one build, as a worker needs them. Picklable and small.

    token  of this build: what a process keeps under another token belongs to another build, and is dropped
    ids    `ids_digest` of the corpus that was planned; a worker that sees other shapes refuses
    lanes  threads of a process that teach; 0: as many as the Dask worker has (`dask worker --nthreads`)
    software  as `provenance.software` of the driver
    basis  SHA-256 of the basis that features are stored in, which workers read from the cache; "" for the teacher's
           channels
    """

    token: str
    corpus: CorpusConfig
    projection: ProjectionConfig
    teacher: TeacherConfig
    handle: CacheHandle
    ids: str
    lanes: int
    software: Mapping[str, str]
    basis: str = ""

    @property
    def mark(self) -> str:
        """A file the driver keeps in the cache while it builds; a worker that does not see it uses another storage."""
        return f"logs/driver-{self.token}"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A shard that failed, as text: exceptions of arbitrary classes may not survive pickling.

    worker  address of the Dask worker, "" for a thread of the driver
    """

    shard: int
    message: str
    traceback: str
    worker: str = ""


def check_software(job: Job) -> None:
    """Raise BuildError unless this process runs the driver's software: other code gives other numbers."""
    lines = differences(software(), job.software)
    if lines:
        raise BuildError(
            "this worker runs other software (here) than the driver (there):\n  "
            + "\n  ".join(lines)
            + (
                "\n"
                "  Install the same software everywhere; a shard made by other code would pass every check and hold "
                "other values."
            )
        )


def elsewhere(job: Job) -> Job:
    """Return the job with every path absolute, for workers started in other folders."""
    kind, _, rest = job.corpus.uri.partition(":")
    _, mark, query = rest.partition("?")
    place = place_of(job.corpus.uri)
    uri = job.corpus.uri if place is None else f"{kind}:{quote(os.fsencode(place.absolute()))}{mark}{query}"
    teacher = replace(job.teacher, weights=_absolute(job.teacher.weights) if job.teacher.weights else "")
    if teacher.architecture.endswith(".json"):
        teacher = replace(teacher, architecture=_absolute(teacher.architecture))
    return replace(job, corpus=replace(job.corpus, uri=uri), teacher=teacher)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
