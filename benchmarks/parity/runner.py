"""Runs sections, one after the other, and turns what is missing or goes wrong into rows."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks.parity.compare import FAILED, UNCOMPARED, Row, missing
from benchmarks.parity.recorded import Missing, Recorded
from benchmarks.parity.section import Part, Section
from benchmarks.parity.sections.backprojection import Backprojection
from benchmarks.parity.sections.finetune import Finetune
from benchmarks.parity.sections.fullsize import Fullsize
from benchmarks.parity.sections.grouping import Grouping
from benchmarks.parity.sections.params import Params
from benchmarks.parity.sections.partseg import Partseg
from benchmarks.parity.sections.plain.finetune import PointMAEFinetune
from benchmarks.parity.sections.plain.fullsize import PlainFullsize
from benchmarks.parity.sections.plain.metrics import Metrics
from benchmarks.parity.sections.plain.params import PlainParams
from benchmarks.parity.sections.plain.partseg import PointMAEPartseg
from benchmarks.parity.sections.plain.pretrain import PointMAEPretrain
from benchmarks.parity.sections.plain.relatives import RELATIVES
from benchmarks.parity.sections.pretrain import Pretrain
from benchmarks.parity.sections.projection import Projection
from benchmarks.parity.sections.teacher import TeacherSection
from cli.experiment.sections import Experiment
from pipeline.errors import TeacherError
from trainer.errors import TrainerError

__all__ = ["FAMILIES", "PLAIN_SECTIONS", "SECTIONS", "Result", "count_parts", "run_section", "sections_for"]

logger = logging.getLogger(__name__)

SECTIONS: dict[str, type[Section]] = {
    section.name: section
    for section in (
        Projection,
        Backprojection,
        TeacherSection,
        Grouping,
        Pretrain,
        Finetune,
        Partseg,
        Fullsize,
        Params,
    )
}
"""In the order of a student's step, then the models made from it: of I2P-MAE and Point-M2AE."""

PLAIN_SECTIONS: dict[str, type[Section]] = {
    section.name: section
    for section in (
        PointMAEPretrain,
        PointMAEFinetune,
        PointMAEPartseg,
        *RELATIVES,
        Metrics,
        PlainFullsize,
        PlainParams,
    )
}
"""The same of the plain-transformer family."""

FAMILIES: dict[str, tuple[dict[str, type[Section]], tuple[str, ...]]] = {
    "hierarchical": (
        SECTIONS,
        ("projection.npz", "backprojection.npz", "teacher.npz", "grouping.npz", "model_pretrain.npz", "finetune.npz"),
    ),
    "plain": (
        PLAIN_SECTIONS,
        ("pointmae_pretrain.npz", "pointmae_finetune.npz", "family_layouts.json", "metrics.npz", "pointbert.npz"),
    ),
}
"""Architecture -> its sections, and files that only a folder of its family has."""


def sections_for(recorded: Recorded) -> tuple[str, dict[str, type[Section]]]:
    """The architecture that a folder is about, by the files it holds, and its sections."""
    held = {name: sum((recorded.folder / file).is_file() for file in files) for name, (_, files) in FAMILIES.items()}
    family = max(FAMILIES, key=held.__getitem__)  # the first of them where a folder holds none
    return family, FAMILIES[family][0]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a section."""

    name: str
    title: str
    file: str
    rows: tuple[Row, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """True when every row did, and there is one."""
        return bool(self.rows) and all(row.passed for row in self.rows)


def run_section(
    name: str,
    recorded: Recorded,
    settings: Experiment,
    *,
    device: torch.device | None = None,
    on_part: Callable[[str], None] = lambda part: None,
) -> Result:
    """Compare one of the folder's sections.

    on_part  is told the name of each part before its work begins.
    """
    started = time.perf_counter()
    section = sections_for(recorded)[1][name](recorded, settings, device or torch.device("cpu"))
    rows: list[Row] = []
    for part, work in section.parts().items():
        on_part(part)
        rows += (_relative(row, recorded) for row in _attempt(f"{name}, {part}", work))
    rows += _unread(section)
    unique = tuple(dict.fromkeys(rows))  # parts that need the same absent file say so once
    return Result(name=name, title=section.title, file=section.file, rows=unique, seconds=time.perf_counter() - started)


def count_parts(names: Iterable[str], recorded: Recorded, settings: Experiment) -> int:
    """How often run_section will call `on_part` for these sections."""
    sections = sections_for(recorded)[1]
    return sum(len(sections[name](recorded, settings, torch.device("cpu")).parts()) for name in names)


def _attempt(what: str, work: Part) -> Iterator[Row]:
    try:
        yield from work()
    except Missing as absent:
        yield missing(absent.what, absent.why)
    except (ValueError, TypeError, RuntimeError, IndexError, TeacherError, TrainerError) as error:
        # What a folder of another layout makes of our functions. The rows so far stand, and so do the other parts'.
        logger.info("%s could not be compared", what, exc_info=error)
        # The whole reason: load_state_dict says in its later lines which sizes differ. One line, for a table's cell.
        yield Row(what=what, verdict=FAILED, note=" ".join(str(error).split()) or type(error).__name__)


def _relative(row: Row, recorded: Recorded) -> Row:
    """The row with files of the folder named without the folder, which is somebody's own."""
    return replace(row, note=row.note.replace(f"{recorded.folder}/", ""))


def _unread(section: Section) -> Iterator[Row]:
    """Rows for arrays that are in the section's file under a name that nothing asked for."""
    if not section.file.endswith(".npz"):
        return
    try:
        arrays = section.recorded.arrays(section.file.removesuffix(".npz"))
    except Missing:
        return  # said already
    for name in arrays.unread():
        yield Row(what=f"{section.file}: {name}", verdict=UNCOMPARED, note="no comparison known under this name")
