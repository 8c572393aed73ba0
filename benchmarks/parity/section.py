"""What a section of the comparison is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch

from benchmarks.parity.compare import Row
from benchmarks.parity.recorded import Recorded
from cli.experiment.sections import Experiment

__all__ = ["Part", "Section"]

Part = Callable[[], Iterator[Row]]


class Section(ABC):
    """Compares one recorded file.

    name   what `--section` takes
    title  the heading
    file   the recorded file, with its ending

    recorded  the folder
    settings  the `reference` preset; sizes are replaced by the folder's
    device    where models run
    """

    name: ClassVar[str]
    title: ClassVar[str]
    file: ClassVar[str]

    def __init__(self, recorded: Recorded, settings: Experiment, device: torch.device):
        self.recorded = recorded
        self.settings = settings
        self.device = device

    @abstractmethod
    def parts(self) -> dict[str, Part]:
        """The pieces of work, each named for the progress display.

        Each yields rows, and may raise Missing, which ends it alone. What several need is kept in a cached property.
        """
