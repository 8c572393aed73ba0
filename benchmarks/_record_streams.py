"""One set of records in this project's cache, in litdata's and in MosaicML Streaming's format, and loaders of each.

A loader gives batches as its library gives them to a training loop, local files, shuffled; `ids` of a batch are the
records' numbers.
"""

import abc
from pathlib import Path
from typing import Any

import numpy as np

import teacher_cache
from teacher_cache import CacheConfig, CacheSchema
from teacher_cache.format.records import TeacherRecord
from teacher_cache.testing import make_recipe, make_record

__all__ = ["LIBRARIES", "Library", "Records"]

FIELDS = ("points", "lo", "cell", "offset", "features", "saliency", "class_token")


class Records:
    """Made-up records without depth images, features in float16: ``count`` of them, ``distinct`` kinds in turn."""

    def __init__(self, schema: CacheSchema, count: int, distinct: int) -> None:
        self.schema, self.count = schema, count
        self._made = [make_record(index, schema) for index in range(min(distinct, count))]

    def record(self, index: int) -> TeacherRecord:
        made = vars(self._made[index % len(self._made)])
        return TeacherRecord(**(made | {"id": f"r{index}", "label": index}))

    def arrays(self, index: int) -> dict[str, Any]:
        """What both libraries store of a record."""
        record = self.record(index)
        found = {name: getattr(record, name) for name in FIELDS}
        half = {name: found[name].astype(np.float16) for name in ("features", "class_token")}
        return {"id": index} | found | half


class Library(abc.ABC):
    """Records written by a library in a folder of its own, ``shard`` of them a file, and read by it."""

    package = ""  # at the package index; empty: this project
    compressions: tuple[str, ...] = ("none", "zstd")

    @abc.abstractmethod
    def write(self, folder: Path, records: Records, shard: int, compression: str) -> None: ...

    @abc.abstractmethod
    def loader(self, folder: Path, *, batch: int, ranks: int, rank: int, workers: int, state: Any = None) -> Any:
        """``batch`` records a batch over all ranks, of which this is one; ``state`` resumes."""

    @abc.abstractmethod
    def ids(self, batch: Any) -> list[int]: ...

    @abc.abstractmethod
    def state(self, loader: Any, batch: Any) -> Any:
        """What to resume with after ``batch``, as the library gives it."""


class Ours(Library):
    def write(self, folder: Path, records: Records, shard: int, compression: str) -> None:
        config = CacheConfig(features="float16", shapes_per_shard=shard, depth="none", compression=compression)  # type: ignore[arg-type]
        writer = teacher_cache.create_cache(folder, make_recipe(config), records.schema, config)
        for number, first in enumerate(range(0, records.count, shard)):
            rows = range(first, min(first + shard, records.count))
            teacher_cache.write_shard(writer.handle, number, [records.record(index) for index in rows])
        writer.finish(planned=records.count)

    def loader(self, folder: Path, *, batch: int, ranks: int, rank: int, workers: int, state: Any = None) -> Any:
        """Its workers are threads of this process, and the states hold for any number of them."""
        cache = teacher_cache.open(folder, threads=max(workers, 1))
        settings = state or {"batch_size": batch}
        return teacher_cache.stream(cache, rank=rank, ranks=ranks, readers=workers, **settings)

    def ids(self, batch: Any) -> list[int]:
        return [int(label) for label in batch.content.label]

    def state(self, loader: Any, batch: Any) -> Any:
        return batch.state


class StatefulLoaders(Library):
    """Libraries whose loaders follow torch's DataLoader, hold the state themselves and give batches as dictionaries."""

    @staticmethod
    def resumed(loader: Any, state: Any) -> Any:
        if state is not None:
            loader.load_state_dict(state)
        return loader

    def ids(self, batch: Any) -> list[int]:
        return [int(index) for index in batch["id"]]

    def state(self, loader: Any, batch: Any) -> Any:
        return loader.state_dict()


class LitData(StatefulLoaders):
    package = "litdata"

    def write(self, folder: Path, records: Records, shard: int, compression: str) -> None:
        from litdata import optimize

        optimize(
            fn=records.arrays,
            inputs=list(range(records.count)),
            output_dir=str(folder),
            chunk_size=shard,
            compression=None if compression == "none" else compression,
            num_workers=1,
            start_method="fork",
            verbose=False,
        )

    def loader(self, folder: Path, *, batch: int, ranks: int, rank: int, workers: int, state: Any = None) -> Any:
        from litdata import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(str(folder), shuffle=True, drop_last=True, seed=0)
        loader = StreamingDataLoader(dataset, batch_size=batch // ranks, num_workers=workers, drop_last=True)
        return self.resumed(loader, state)


class MosaicMLStreaming(StatefulLoaders):
    package = "mosaicml-streaming"

    def write(self, folder: Path, records: Records, shard: int, compression: str) -> None:
        from streaming import MDSWriter

        first = records.arrays(0)
        kinds = {
            name: f"ndarray:{value.dtype}:{','.join(map(str, value.shape))}"
            for name, value in first.items()
            if name != "id"
        }
        size = sum(value.nbytes for name, value in first.items() if name != "id")
        with MDSWriter(
            out=str(folder),
            columns={"id": "int"} | kinds,
            compression=None if compression == "none" else compression,
            size_limit=shard * (size + 64) + 4096,
        ) as writer:
            for index in range(records.count):
                writer.write(records.arrays(index))

    def loader(self, folder: Path, *, batch: int, ranks: int, rank: int, workers: int, state: Any = None) -> Any:
        from streaming import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=0, batch_size=batch // ranks)
        loader = StreamingDataLoader(dataset, batch_size=batch // ranks, num_workers=workers, drop_last=True)
        return self.resumed(loader, state)


LIBRARIES: dict[str, Library] = {"ours": Ours(), "litdata": LitData(), "mosaicml-streaming": MosaicMLStreaming()}
