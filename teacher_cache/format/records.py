"""Records, one per shape, and the sizes that all records of a cache share.

Letters: N points, V views, S image side, P patch side, T = (S / P)^2 patch tokens in row-major order, C channels,
B records of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.documents import Fields
from teacher_cache.errors import SchemaError

__all__ = ["CacheSchema", "Quarantined", "RecordBatch", "TeacherRecord"]

MAX_ID_BYTES = 4096
MAX_RECORD_VALUES = 1 << 30  # of one array of one record; a header that claims more is refused unread
_LIMITS = {"points": 1 << 26, "views": 1 << 12, "image_side": 1 << 15, "patch_side": 1 << 15, "channels": 1 << 20}
_LABEL_LIMIT = 1 << 31
FLOAT16_OVERFLOW = 65520.0  # from here on rounding to nearest gives infinity


@dataclass(frozen=True, kw_only=True)
class CacheSchema:
    """The sizes that every record of a cache has. Raises ValueError for impossible ones."""

    points: int
    views: int
    image_side: int
    patch_side: int
    channels: int

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(f"schema: {name} = {value!r} is not an integer in 1..{limit}")
        if self.image_side % self.patch_side:
            sides = f"image_side = {self.image_side} is not a multiple of patch_side = {self.patch_side}"
            raise ValueError(f"schema: {sides}")
        largest = self.views * max(self.image_side**2, self.tokens * self.channels)
        if largest > MAX_RECORD_VALUES:
            raise ValueError(f"schema: an array of a record has {largest} values; expected at most {MAX_RECORD_VALUES}")

    @property
    def tokens(self) -> int:
        """T, patch tokens per image."""
        return (self.image_side // self.patch_side) ** 2

    @property
    def class_shape(self) -> tuple[int, int]:
        """[V, C], shape of the class tokens that a cache may store in addition to the arrays of `shapes`."""
        return self.views, self.channels

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array that every record has; depth may be left out."""
        V, S, T = self.views, self.image_side, self.tokens
        return {
            "points": (self.points, 3),
            "lo": (V, 2),
            "cell": (V,),
            "offset": (V, 2),
            "depth": (V, S, S),
            "features": (V, T, self.channels),
            "saliency": (V, T),
        }

    def to_json(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, values: Fields) -> "CacheSchema":
        """Parse the schema of a manifest.

        Raises ManifestError for a wrong type, SchemaError for impossible sizes.
        """
        sizes = {name: values.integer(name, 1, limit) for name, limit in _LIMITS.items()}
        try:
            return cls(**sizes)
        except ValueError as error:
            raise SchemaError(f"{values.where.removesuffix(': schema')}: {error}") from error


@dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no one meaning of ==
class TeacherRecord:
    """One shape with the teacher's features and saliency.

    id        unique in the cache, 1..4096 bytes of UTF-8.
    label     class number, -1 for none.
    points    [N, 3] float32, canonical frame (unit sphere).
    lo        [V, 2] float32, least plane coordinates of a view.
    cell      [V] float32, plane units per pixel.
    offset    [V, 2] int32, centring offset (row, column).
    depth     [V, S, S] float32 in 0..1, the sigmoid image, 0.5 where empty; None where the cache stores none.
    features  [V, T, C] float16 or float32.
    saliency  [V, T] float32.
    class_token  [V, C] float16 or float32, each view's class token, in the features' channels; None where not stored.
    """

    id: str
    label: int
    points: NDArray[np.float32]
    lo: NDArray[np.float32]
    cell: NDArray[np.float32]
    offset: NDArray[np.int32]
    depth: NDArray[np.float32] | None
    features: NDArray[Any]
    saliency: NDArray[np.float32]
    class_token: NDArray[Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A shape that is not in the cache.

    id      the shape's id in its corpus.
    source  the file or description it came from; relative, or the manifest would differ from machine to machine.
    reason  why it was refused.
    """

    id: str
    source: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordBatch:
    """Records stacked: ids has B entries and every array B rows, in the order asked for.

    label [B] int64, points [B, N, 3] float32, lo [B, V, 2] float32, cell [B, V] float32, offset [B, V, 2] int32,
    features [B, V, T, C] float32 where so stored, else float16,
    saliency [B, V, T] float32, depth [B, V, S, S] float32 or None if not asked for,
    class_token [B, V, C] float16 or None if not stored.
    """

    ids: list[str]
    label: NDArray[np.int64]
    points: NDArray[np.float32]
    lo: NDArray[np.float32]
    cell: NDArray[np.float32]
    offset: NDArray[np.int32]
    features: NDArray[Any]
    saliency: NDArray[np.float32]
    depth: NDArray[np.float32] | None = None
    class_token: NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def record(self, row: int) -> TeacherRecord:
        """Return one row as a record; its arrays are views of the batch."""
        return TeacherRecord(
            id=self.ids[row],
            label=int(self.label[row]),
            depth=None if self.depth is None else self.depth[row],
            class_token=None if self.class_token is None else self.class_token[row],
            **{name: getattr(self, name)[row] for name in ("points", "lo", "cell", "offset", "features", "saliency")},
        )

    @classmethod
    def empty(
        cls, size: int, schema: CacheSchema, features: str, *, depth: bool, class_token: bool = False
    ) -> "RecordBatch":
        """Allocate a batch of ``size`` rows to be filled."""
        shapes = schema.shapes

        def rows(name: str, dtype: Any) -> NDArray[Any]:
            return np.empty((size, *shapes[name]), dtype)

        return cls(
            ids=[""] * size,
            label=np.empty(size, np.int64),
            points=rows("points", np.float32),
            lo=rows("lo", np.float32),
            cell=rows("cell", np.float32),
            offset=rows("offset", np.int32),
            features=rows("features", features),
            saliency=rows("saliency", np.float32),
            depth=rows("depth", np.float32) if depth else None,
            class_token=np.empty((size, *schema.class_shape), np.float16) if class_token else None,
        )


def record_problems(
    record: TeacherRecord, schema: CacheSchema, *, features: str, depth: bool, class_token: bool = False
) -> Iterator[str]:
    """Yield every way in which a record does not fit: shape, dtype, values that are not finite or out of range."""
    size = len(record.id.encode("utf-8", errors="replace")) if isinstance(record.id, str) else 0
    if not 1 <= size <= MAX_ID_BYTES or "\0" in record.id or not _is_text(record.id):
        yield f"id has {size} bytes; expected 1..{MAX_ID_BYTES} bytes of UTF-8 without NUL"
    if not isinstance(record.label, int | np.integer) or not -1 <= record.label < _LABEL_LIMIT:
        yield f"label is {record.label!r}; expected an integer, -1 (none) or 0..{_LABEL_LIMIT - 1}"
    shapes = schema.shapes | ({"class_token": schema.class_shape} if class_token else {})
    for name, shape in shapes.items():
        array = getattr(record, name)
        allowed = _DTYPES.get(name, ("float32",))
        if name == "depth" and not depth:
            continue
        if not isinstance(array, np.ndarray):
            yield f"{name} is {type(array).__name__}; expected an array {list(shape)} {' or '.join(allowed)}"
        elif array.shape != shape or array.dtype.name not in allowed:
            found = f"{list(array.shape)} {array.dtype.name}"
            yield f"{name} is {found}; expected {list(shape)} {' or '.join(allowed)}"
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            yield f"{name} has {int((~np.isfinite(array)).sum())} values that are not finite"
        elif name == "depth" and (array.min() < 0 or array.max() > 1):
            yield f"depth is in {array.min():.6g}..{array.max():.6g}; expected 0..1 (the sigmoid image)"
        elif name == "features" and features != "float32" and float(np.abs(array).max()) >= FLOAT16_OVERFLOW:
            yield f"features reach {np.abs(array).max():.6g}, beyond the range of float16; store them as float32"
        elif name == "class_token" and float(np.abs(array).max()) >= FLOAT16_OVERFLOW:
            yield (
                f"class_token reaches {np.abs(array).max():.6g}, beyond the range of float16; set cache.class_token = "
                '"none"'
            )


_DTYPES = {"offset": ("int32",), "features": ("float16", "float32"), "class_token": ("float16", "float32")}


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, as file names in an unknown encoding bring
        return False
    return True
