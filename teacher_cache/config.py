"""The ``[cache]`` section: location of caches and storage of records."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from teacher_cache.documents import Fields
from teacher_cache.errors import ManifestError, StorageError
from teacher_cache.location import localise

__all__ = ["CLASS_TOKENS", "COMPRESSIONS", "DEPTHS", "FEATURES", "FORMATS", "UNTOUCHED", "CacheConfig"]

FORMATS = ("zarr", "webdataset")
FEATURES = ("float16", "float32", "int8")
UNTOUCHED = ("keep", "zero")
DEPTHS = ("uint8", "float16", "none")
CLASS_TOKENS = ("none", "float16")
COMPRESSIONS = ("zstd", "none")
MAX_SHAPES_PER_SHARD = 65536
MIN_STEPS, MAX_STEPS = 7, 127  # an int8 holds no more; with fewer than 7 targets are off by a tenth
MAX_CHANNELS = 8192
SAMPLE, MAX_SAMPLE = 256, 1 << 20
MAX_LEVEL = 19  # zstd's higher levels want gigabytes of window from every reader


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Storage of a cache. Everything except ``root`` and ``name`` is part of the recipe: it changes bytes.

    root              directory that holds caches, one folder each; or a URL that fsspec writes to, s3://bucket/caches.
    name              first part of the cache's folder name; empty: taken from the corpus.
    format            "zarr": one file an array and shard, random access. "webdataset": one tar a shard, sequential.
    shapes_per_shard  shapes a shard, 1..65536: the unit of work, of commit and of repair.
    features          the teacher's features as stored: "float16" (rounded once), "float32" (exact), or "int8"
                      (`steps` steps to the largest number of each token, read as float16).
    steps             of int8 features, 7..127: an error of at most half a step. Fewer compress better: 24 steps take
                      three fifths of the bytes of 127. Other features have no steps.
    half_first        round the teacher's features to float16 before quantising to int8, as `i2p cache convert` must for
                      a float16 cache: its result then equals a build with this setting.
    channels          of a stored feature: 0, as many as the teacher gives; or fewer, its coordinates in a basis that is
                      fitted on a sample of the corpus before the first shard and stored in the cache.
    sample            records that basis is fitted on, 1..1048576. Without `channels` there is no sample.
    untouched         features of patch tokens that no lookup at a stored point reads: "keep" them, or "zero" them,
                      which compresses to nothing and changes no lookup.
    class_token       each view's class token, for the global loss: "float16" (rounded once), or "none".
    depth             depth images as stored: "uint8" (error at most 1/508), "float16" (at most 2^-12), "none".
    compression       "zstd" or "none", for every array of a record.
    level             zstd level, 1..19; without meaning when compression is "none".
    """

    root: str = "caches"
    name: str = ""
    format: Literal["zarr", "webdataset"] = "zarr"
    shapes_per_shard: int = 64
    features: Literal["float16", "float32", "int8"] = "float16"
    steps: int = 127
    half_first: bool = False
    channels: int = 0
    sample: int = SAMPLE
    untouched: Literal["keep", "zero"] = "keep"
    class_token: Literal["none", "float16"] = "none"
    depth: Literal["uint8", "float16", "none"] = "uint8"
    compression: Literal["zstd", "none"] = "zstd"
    level: int = 3

    def problems(self) -> Iterator[str]:
        """Yield every fault of these settings, as text relative to the section."""
        if not self.root:
            yield 'root = "" is empty; name the directory that holds caches'
        try:
            localise(self.root)
        except StorageError as error:
            yield f"root: {error}"
        if "/" in self.name or "\\" in self.name or self.name in {".", ".."} or "\0" in self.name:
            yield f'name = "{self.name}" must be one folder name, without slashes'
        for field, allowed in (
            ("format", FORMATS),
            ("features", FEATURES),
            ("untouched", UNTOUCHED),
            ("class_token", CLASS_TOKENS),
            ("depth", DEPTHS),
            ("compression", COMPRESSIONS),
        ):
            value = getattr(self, field)
            if value not in allowed:
                yield f'{field} = "{value}" is not one of {", ".join(allowed)}'
        if not 1 <= self.shapes_per_shard <= MAX_SHAPES_PER_SHARD:
            yield f"shapes_per_shard = {self.shapes_per_shard} is not in 1..{MAX_SHAPES_PER_SHARD}"
        if not MIN_STEPS <= self.steps <= MAX_STEPS:
            yield f"steps = {self.steps} is not in {MIN_STEPS}..{MAX_STEPS}"
        elif self.steps != MAX_STEPS and self.features != "int8":
            yield f'steps = {self.steps} applies to int8 features only, and features = "{self.features}"'
        if self.half_first and self.features != "int8":
            yield f'half_first = true applies to int8 features only, and features = "{self.features}"'
        if not 0 <= self.channels <= MAX_CHANNELS:
            yield f"channels = {self.channels} is neither 0 (the teacher's own channels) nor in 1..{MAX_CHANNELS}"
        if not 1 <= self.sample <= MAX_SAMPLE:
            yield f"sample = {self.sample} is not in 1..{MAX_SAMPLE}"
        elif self.sample != SAMPLE and not self.channels:
            yield (
                f"sample = {self.sample} is the number of shapes that a basis is fitted on, and channels = 0 uses no "
                "basis"
            )
        if not 1 <= self.level <= MAX_LEVEL:
            yield f"level = {self.level} is not in 1..{MAX_LEVEL}"

    @property
    def feature_dtype(self) -> Literal["float16", "float32"]:
        """Dtype of the features as they are read."""
        return "float32" if self.features == "float32" else "float16"

    def storage(self) -> dict[str, Any]:
        """Return the ``storage`` part of a recipe: only the settings that change bytes."""
        storage: dict[str, Any] = {
            "format": self.format,
            "shapes_per_shard": self.shapes_per_shard,
            "features": self.features,
            "depth": self.depth,
            "compression": self.compression,
        }
        if self.features == "int8" and self.steps != MAX_STEPS:
            storage["steps"] = self.steps  # absent where it changes nothing: recipes of older caches stand
        if self.half_first:
            storage["half_first"] = True
        if self.channels:
            storage |= {"channels": self.channels, "sample": self.sample}
        if self.untouched != "keep":
            storage["untouched"] = self.untouched
        if self.class_token != "none":
            storage["class"] = self.class_token
        if self.compression == "zstd":
            storage["level"] = self.level  # without compression the level changes nothing, so it is not in the recipe
        return storage

    @classmethod
    def from_storage(cls, storage: dict[str, Any]) -> "CacheConfig":
        """Parse the settings of a recipe's ``storage`` part.

        ``root`` and ``name`` take their defaults. Raises ManifestError.
        """
        values = Fields(storage, "recipe: storage")
        compression = values.choice("compression", COMPRESSIONS)
        keys = {"format", "shapes_per_shard", "features", "depth", "compression"} | (
            {"level"} if compression == "zstd" else set()
        )
        if "steps" in storage:
            keys |= {"steps"} if storage.get("features") == "int8" else set()
            values.integer("steps", MIN_STEPS, MAX_STEPS - 1)  # 127 has one spelling: its absence
        if "half_first" in storage:
            keys |= {"half_first"} if storage.get("features") == "int8" and storage["half_first"] is True else set()
        if "channels" in storage:
            keys |= {"channels", "sample"}
        if "untouched" in storage:
            keys.add("untouched")
            values.choice("untouched", ("zero",))  # "keep" has one spelling: its absence
        if "class" in storage:
            keys.add("class")
            values.choice("class", ("float16",))  # "none" has one spelling: its absence
        if set(storage) != keys:
            raise ManifestError(f"recipe: storage: expected keys {sorted(keys)}, found {sorted(storage)}")
        return cls(
            format=values.choice("format", FORMATS),  # type: ignore[arg-type]
            shapes_per_shard=values.integer("shapes_per_shard", 1, MAX_SHAPES_PER_SHARD),
            features=values.choice("features", FEATURES),  # type: ignore[arg-type]
            steps=values.integer("steps", MIN_STEPS, MAX_STEPS - 1) if "steps" in storage else cls.steps,
            half_first="half_first" in storage,
            channels=values.integer("channels", 1, MAX_CHANNELS) if "channels" in storage else 0,
            sample=values.integer("sample", 1, MAX_SAMPLE) if "channels" in storage else cls.sample,
            untouched="zero" if "untouched" in storage else "keep",
            class_token="float16" if "class" in storage else "none",
            depth=values.choice("depth", DEPTHS),  # type: ignore[arg-type]
            compression=compression,  # type: ignore[arg-type]
            level=values.integer("level", 1, MAX_LEVEL) if compression == "zstd" else cls.level,
        )
