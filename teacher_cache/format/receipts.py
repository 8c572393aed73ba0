"""Receipts of a cache's committed shards.

A shard counts from the moment its receipt is on disk and as long as its files are there in full size.
"""

import logging
from collections.abc import Callable, Iterator

from teacher_cache.errors import ManifestError
from teacher_cache.format import paths
from teacher_cache.format.manifest import Description, Receipt
from teacher_cache.location import join
from teacher_cache.storage.base import Storage

__all__ = ["iter_receipts", "noted_receipts", "read_receipt"]

logger = logging.getLogger(__name__)


def iter_receipts(storage: Storage, description: Description) -> Iterator[Receipt]:
    """Yield the receipts of committed shards, ascending; warn of those that cannot be trusted and skip them."""
    return (receipt for receipt, whole in noted_receipts(storage, description) if whole)


def noted_receipts(storage: Storage, description: Description) -> Iterator[tuple[Receipt, bool]]:
    """Yield every sound receipt, ascending, and whether its shard counts as built.

    A shard counts as built when all its files are there in full size. The others are warned of.
    """
    numbers = {name.removesuffix(".json") for name in storage.names(paths.RECEIPTS)}
    shards = sorted(int(number) for number in numbers if number.isdecimal())
    shards = [
        shard for shard in shards if paths.receipt_path(shard).rpartition("/")[2].removesuffix(".json") in numbers
    ]
    sizes = storage.sizes()
    for shard, data in zip(shards, storage.read_many([paths.receipt_path(s) for s in shards]), strict=True):
        try:
            receipt = _decoded_receipt(storage, shard, description, data)
            try:
                _check_sizes(storage, receipt, sizes)
            except ManifestError as error:
                logger.warning("shard %d is treated as not built: %s", shard, error)
                yield receipt, False
            else:
                yield receipt, True
        except ManifestError as error:
            logger.warning("shard %d is treated as not built: %s", shard, error)


def read_receipt(storage: Storage, shard: int, description: Description) -> Receipt:
    """Read the receipt of a committed shard whose files are there in full size. Raises ManifestError."""
    try:
        data = storage.read(paths.receipt_path(shard))
    except FileNotFoundError:
        data = None
    receipt = _decoded_receipt(storage, shard, description, data)
    _check_sizes(storage, receipt, storage.sizes(few=True))
    return receipt


def _decoded_receipt(storage: Storage, shard: int, description: Description, data: bytes | None) -> Receipt:
    where = join(storage.location, paths.receipt_path(shard))
    if data is None:
        raise ManifestError(f"{where}: expected the receipt of shard {shard}, found none")
    receipt = Receipt.decode(data, str(where), shard=shard, paths=paths.shard_paths(description.storage, shard))
    limit = description.storage.shapes_per_shard
    if receipt.records > limit:
        raise ManifestError(
            f"{where}: {receipt.records} records; expected at most {limit}, the recipe's shapes_per_shard"
        )
    return receipt


def _check_sizes(storage: Storage, receipt: Receipt, sizes: Callable[[str], int | None]) -> None:
    # Sizes only: hashing would read the whole cache at every start. `verify` compares the contents.
    for file in receipt.files:
        size = sizes(file.path)
        if size != file.bytes:
            found = "none" if size is None else f"{size}"
            raise ManifestError(f"{join(storage.location, file.path)}: expected {file.bytes} bytes, found {found}")
