"""The settings of the offline stage: corpus, projection, teacher and build.

One frozen dataclass a section of the experiment file; these are the only places for the defaults and bounds. `problems`
yields every fault of a section, with names relative to it; faults between two sections are found by `conflicts`, and
faults that need the teacher's architecture by `pipeline.teacher.tower.teacher_conflicts`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from pipeline.settings import device_problems, faults

__all__ = ["MAX_POINTS", "BuildConfig", "CorpusConfig", "ProjectionConfig", "TeacherConfig", "conflicts"]

MIN_POINTS = 32  # a cloud with fewer distinct points is quarantined, so asking for fewer can only fail
MAX_POINTS = 10**7  # of one shape: 120 MB as float32
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """[corpus]: the shapes a cache is made of.

    uri     where the shapes come from, `kind:location?key=value&key=value`; see docs for the kinds
    points  points stored per shape, at least 32; meshes are sampled, larger clouds subsampled
    poses   stored per shape, 1..64: the shape itself, then copies under the student's augmentation, which the teacher
            encodes too; each is a record, and an epoch of training visits one of them
    only    a file with the ids of the shapes to use, one per line; "": all
    take    of these the first n, in the corpus' order; 0: all
    share   share of these, 0..1, chosen by a hash of each id; smaller shares are subsets of larger ones
    share_seed  of that hash, 0..2^63-1: another seed chooses another part

    The selection is built, compared and trained on; the cache may hold more. It is not part of a cache's recipe.
    """

    uri: str = "synthetic:?count=1000&seed=0"
    points: Annotated[int, Ge(MIN_POINTS), Le(MAX_POINTS)] = 2048
    poses: Annotated[int, Ge(1), Le(64)] = 1
    only: str = ""
    take: Annotated[int, Ge(0)] = 0
    share: Annotated[float, Gt(0), Le(1)] = 1.0
    share_seed: Annotated[int, Ge(0), Le(MAX_SEED)] = 0

    @property
    def selects(self) -> bool:
        """True where the experiment is about some of the corpus' shapes."""
        return bool(self.only or self.take or self.share < 1)

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        if self.share_seed and self.share == 1:
            yield f"share_seed = {self.share_seed} selects a part of the shapes, but share = 1.0 takes all of them"
        if ":" not in self.uri:
            yield f"uri = {self.uri!r} has no kind; expected KIND:LOCATION, for instance folder:meshes"


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """[projection]: how a cloud becomes three depth images.

    image_side     pixels along an image's side, even, 8..4096, a multiple of patch_side; must be the teacher's
    patch_side     pixels along a patch's side; must be the teacher's
    splat          side in pixels of the square that each point covers, odd, 1..15
    reduction      how a pixel reduces the depths that fall on it: "sum" (the reference), "mean", "max" or "nearest"
    depth_offset   added to every depth before it is drawn, 0..4. 0: the reference's signed depths, whose middle is the
                   background's value, so that outlines vanish there; 1.5: every point stands out from the background
    points         points drawn: 0 for all that are stored, n for the first n of them
    normalisation  mean and spread the images are brought to: "imagenet" (the reference), "clip" (OpenAI's own), "half"
                   (0.5 and 0.5: SigLIP's) or "unit" (0 and 1: depths as they are); a timm teacher requires its own
    """

    image_side: Annotated[int, Ge(8), Le(4096)] = 224
    patch_side: Annotated[int, Ge(1)] = 16
    splat: Annotated[int, Ge(1), Le(15)] = 5
    reduction: Literal["sum", "mean", "max", "nearest"] = "sum"
    depth_offset: Annotated[float, Ge(0), Le(4)] = 0.0
    points: Annotated[int, Ge(0)] = 0
    normalisation: Literal["imagenet", "clip", "half", "unit"] = "imagenet"

    @property
    def tokens(self) -> int:
        """Patch tokens of one image, T."""
        return (self.image_side // self.patch_side) ** 2

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        if self.image_side % 2:
            yield f"image_side = {self.image_side} is not an even number"
        if self.patch_side > 0 and self.image_side % self.patch_side:
            yield f"image_side = {self.image_side} is not a multiple of patch_side = {self.patch_side}"
        if self.splat % 2 == 0:
            yield f"splat = {self.splat} is not an odd number"
        if 0 < self.points < MIN_POINTS:
            yield f"points = {self.points} is neither 0 (all stored points) nor at least {MIN_POINTS}"


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """[teacher]: the frozen image model whose features and attention are cached.

    architecture  a model name of open_clip, one of pipeline/architectures (i2p-vit-tiny-16), a JSON file like
                  those, "openai": read off a weights file in OpenAI's layout, or "timm:" and a ViT's name in timm
    pretrained    open_clip's or timm's tag of the weights to download, "embedded" (those in this package,
                  i2p-vit-tiny-16's) or "random" (to test the pipeline only); unused beside `weights`
    weights       a local weights file (.safetensors, .pt, .bin); "" takes `pretrained`
    quickgelu     which GELU: "auto" (from the tag, the file or the architecture), "on" or "off"
    precision     arithmetic of the forward pass: "float32", "float16" or "bfloat16"
    batch_size    images in one forward pass; 0 chooses: one shape's on a CPU, 96 on a GPU
    device        "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N"
    seed          draws the weights of the random teacher, 0..2^63-1
    image_side    pixels along an image's side, for timm's towers only, a multiple of their patch side: position
                  embeddings of another side are resized; 0 is the architecture's own side
    """

    architecture: str = "ViT-B-16"
    pretrained: str = "openai"
    weights: str = ""
    quickgelu: Literal["auto", "on", "off"] = "auto"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    batch_size: Annotated[int, Ge(0)] = 0
    device: str = "auto"
    seed: Annotated[int, Ge(0), Le(MAX_SEED)] = 0
    image_side: Annotated[int, Ge(0), Le(4096)] = 0

    @property
    def random(self) -> bool:
        """True for the random teacher; a weights file takes precedence over the tag."""
        return self.pretrained == "random" and not self.weights

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        if not self.architecture:
            yield 'architecture = "" is empty; ViT-B-16 is the reference'
        if self.architecture == "openai" and not self.weights:
            yield 'architecture = "openai" is inferred from a weights file, but weights = "" names none'
        if not self.pretrained and not self.weights:
            yield 'pretrained = "" and weights = "" give no weights; set pretrained = "random" for a random teacher'
        yield from device_problems(self.device)
        of_timm = self.architecture.startswith("timm:")
        if self.image_side and not of_timm:
            yield (
                f"image_side = {self.image_side} applies to timm's towers only; architecture = {self.architecture!r} "
                "has a fixed side, so leave it 0"
            )
        if of_timm and self.quickgelu in ("on", "off"):
            yield (
                f"quickgelu = {self.quickgelu!r} does not apply to timm's architectures, whose names say it; leave auto"
            )


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """[build]: where the shard tasks run. Nothing here changes a byte of the cache.

    scheduler  "threads" (this process), "processes" (a local Dask cluster) or the address of a Dask scheduler, tcp://...
    workers    threads that run the teacher, or local processes; 0 is one per core, or two for a GPU; unused with an
               address
    changed    how shapes that changed or vanished since the cache was built are handled: "refuse" stops before anything
               is written; "rebuild" builds the shards that hold them again
    check      how changes are detected: "stamps" reads files whose size or time differs, "content" all of them
    retries    times a shard whose worker died is rescheduled before the build stops, 0..100; with an address each is a
               round of that scheduler's own `distributed.scheduler.allowed-failures`
    max_refused    share of the corpus, 0..1, that may be refused before the build counts as failed; what is built is
                   kept
    retry_refused  try every shape again that an earlier build refused, not only those whose file has changed since
    """

    scheduler: str = "threads"
    workers: Annotated[int, Ge(0)] = 0
    changed: Literal["refuse", "rebuild"] = "refuse"
    check: Literal["stamps", "content"] = "stamps"
    retries: Annotated[int, Ge(0), Le(100)] = 3
    max_refused: Annotated[float, Ge(0), Le(1)] = 0.05
    retry_refused: bool = False

    @property
    def remote(self) -> bool:
        """True when `scheduler` is the address of a cluster that someone else started."""
        return "://" in self.scheduler

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        if self.scheduler not in ("threads", "processes") and not self.remote:
            yield f"scheduler = {self.scheduler!r} is none of threads, processes, or an address such as tcp://host:8786"


def conflicts(corpus: CorpusConfig, projection: ProjectionConfig) -> Iterator[str]:
    """Faults between two sections that are each sound, with full names."""
    if projection.points > corpus.points:
        yield (f"projection.points = {projection.points} is more than the stored corpus.points = {corpus.points}")
