"""The settings of the offline stage: which corpus, how it is drawn, who looks at it, and where the work runs.

One frozen dataclass a section of the experiment file; these are the only places for the defaults. `problems` yields
every fault of a section, with names relative to it; faults between two sections are found by `conflicts`, and faults
that need the teacher's architecture by `pipeline.teacher.tower.teacher_conflicts`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["MAX_POINTS", "BuildConfig", "CorpusConfig", "ProjectionConfig", "TeacherConfig", "conflicts"]

MIN_POINTS = 32  # a cloud with fewer distinct points is quarantined, so asking for fewer can only fail
MAX_POINTS = 10**7  # of one shape: 120 MB as float32
SEED_BOUND = 2**63


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """[corpus]: the shapes a cache is made of.

    uri     where the shapes come from, `kind:location?key=value&key=value`; see docs for the kinds
    points  points stored for each shape, at least 32; meshes are sampled, larger clouds thinned
    poses   stored of each shape, 1..64: the shape itself, then copies under the student's augmentation that the teacher
            looks at; each is a record, and an epoch of training visits one of them
    only    a file with the ids of the shapes that the experiment is about, one a line; "": all
    take    of these the first n, in the corpus' order; 0: all
    share   of these a part, 0..1, chosen by a hash of each id; smaller shares lie within larger ones
    share_seed  of that hash, 0..2^63-1: another seed chooses another part

    What is selected is built, compared and trained on; the cache may hold more. It is no part of a cache's recipe.
    """

    uri: str = "synthetic:?count=1000&seed=0"
    points: int = 2048
    poses: int = 1
    only: str = ""
    take: int = 0
    share: float = 1.0
    share_seed: int = 0

    @property
    def selects(self) -> bool:
        """True where the experiment is about some of the corpus' shapes."""
        return bool(self.only or self.take or self.share < 1)

    def problems(self) -> Iterator[str]:
        if self.take < 0:
            yield f"take = {self.take} is negative; 0 takes all shapes"
        if not 0 < self.share <= 1:
            yield f"share = {self.share} is outside 0..1; 0.1 is a tenth of the shapes"
        if not 0 <= self.share_seed < SEED_BOUND:
            yield f"share_seed = {self.share_seed} is outside 0..2^63-1"
        elif self.share_seed and self.share == 1:
            yield f"share_seed = {self.share_seed} chooses a part of the shapes, and share = 1.0 takes all"
        if not 1 <= self.poses <= 64:
            yield f"poses = {self.poses} is outside 1..64"
        if ":" not in self.uri:
            yield f"uri = {self.uri!r} has no kind; write kind:location, for instance folder:meshes"
        if self.points < MIN_POINTS:
            yield f"points = {self.points} is fewer than {MIN_POINTS}"
        if self.points > MAX_POINTS:
            yield f"points = {self.points} is more than {MAX_POINTS}"


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """[projection]: how a cloud becomes three depth images.

    image_side     pixels along an image's side, even, 8..4096, a multiple of patch_side; must be the teacher's
    patch_side     pixels along a patch's side; must be the teacher's
    splat          side in pixels of the square each point paints, odd, 1..15
    reduction      what a pixel keeps of the depths painted on it: "sum" (the reference), "mean", "max" or "nearest"
    depth_offset   added to every depth before it is drawn, 0..4. 0: the reference's signed depths, whose middle is the
                   background's value, so that outlines vanish there; 1.5: every point stands out from the background
    points         points drawn: 0 for all that are stored, n for the first n of them
    normalisation  mean and spread the images are brought to: "imagenet" (the reference), "clip" (OpenAI's own), "half"
                   (0.5 and 0.5: SigLIP's) or "unit" (0 and 1: depths as they are); a timm teacher insists on its own
    """

    image_side: int = 224
    patch_side: int = 16
    splat: int = 5
    reduction: Literal["sum", "mean", "max", "nearest"] = "sum"
    depth_offset: float = 0.0
    points: int = 0
    normalisation: Literal["imagenet", "clip", "half", "unit"] = "imagenet"

    @property
    def tokens(self) -> int:
        """Patch tokens of one image, T."""
        return (self.image_side // self.patch_side) ** 2

    def problems(self) -> Iterator[str]:
        if not 8 <= self.image_side <= 4096 or self.image_side % 2:
            yield f"image_side = {self.image_side} is not an even number in 8..4096"
        if self.patch_side < 1:
            yield f"patch_side = {self.patch_side} is smaller than 1"
        elif self.image_side % self.patch_side:
            yield f"image_side = {self.image_side} is not a multiple of patch_side = {self.patch_side}"
        if not 1 <= self.splat <= 15 or self.splat % 2 == 0:
            yield f"splat = {self.splat} is not an odd number in 1..15"
        if self.reduction not in ("sum", "mean", "max", "nearest"):
            yield f"reduction = {self.reduction!r} is none of sum, mean, max, nearest"
        if not 0 <= self.depth_offset <= 4:
            yield f"depth_offset = {self.depth_offset} is outside 0..4"
        if self.points < 0 or 0 < self.points < MIN_POINTS:
            yield f"points = {self.points} is neither 0 (all stored points) nor at least {MIN_POINTS}"
        if self.normalisation not in ("imagenet", "clip", "half", "unit"):
            yield f"normalisation = {self.normalisation!r} is none of imagenet, clip, half, unit"


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """[teacher]: the frozen image model whose features and attention are cached.

    architecture  a model name of open_clip, one of pipeline/architectures (i2p-vit-tiny-16), a JSON file like
                  those, "openai": read off a weights file in OpenAI's layout, or "timm:" and a ViT's name in timm
    pretrained    open_clip's or timm's tag of the weights to download, "embedded" (those in this package,
                  i2p-vit-tiny-16's) or "random" (for plumbing only); unused beside `weights`
    weights       a local weights file (.safetensors, .pt, .bin); "" takes `pretrained`
    quickgelu     which GELU: "auto" (from the tag, the file or the architecture), "on" or "off"
    precision     arithmetic of the forward pass: "float32", "float16" or "bfloat16"
    batch_size    images in one forward pass; 0 chooses: one shape's on a CPU, 96 on a GPU
    device        "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N"
    seed          draws the weights of the random teacher, 0..2^63-1
    image_side    pixels along an image's side, of timm's towers alone, a multiple of their patches: positions learnt at
                  another side are resized; 0 is the architecture's own side
    """

    architecture: str = "ViT-B-16"
    pretrained: str = "openai"
    weights: str = ""
    quickgelu: Literal["auto", "on", "off"] = "auto"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    batch_size: int = 0
    device: str = "auto"
    seed: int = 0
    image_side: int = 0

    @property
    def random(self) -> bool:
        """True for the random teacher; a weights file always wins over the tag."""
        return self.pretrained == "random" and not self.weights

    def problems(self) -> Iterator[str]:
        if not self.architecture:
            yield 'architecture = "" names no model; ViT-B-16 is the reference'
        if self.architecture == "openai" and not self.weights:
            yield 'architecture = "openai" is read off a weights file, and weights = "" names none'
        if not self.pretrained and not self.weights:
            yield 'pretrained = "" and weights = "" name no weights; "random" must be asked for by name'
        if self.quickgelu not in ("auto", "on", "off"):
            yield f"quickgelu = {self.quickgelu!r} is none of auto, on, off"
        if self.precision not in ("float32", "float16", "bfloat16"):
            yield f"precision = {self.precision!r} is none of float32, float16, bfloat16"
        if self.batch_size < 0:
            yield f"batch_size = {self.batch_size} is negative; 0 chooses"
        kind, _, index = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (":" in self.device and not (kind == "cuda" and index.isdecimal())):
            yield f"device = {self.device!r} is none of auto, cpu, cuda, cuda:N"
        if not 0 <= self.seed < SEED_BOUND:
            yield f"seed = {self.seed} is outside 0..2^63-1"
        of_timm = self.architecture.startswith("timm:")
        if self.image_side and not of_timm:
            yield (
                f"image_side = {self.image_side} is of timm's towers; architecture = {self.architecture!r} has a side "
                "of its own, so leave 0"
            )
        elif not 0 <= self.image_side <= 4096:
            yield f"image_side = {self.image_side} is outside 0..4096"
        if of_timm and self.quickgelu in ("on", "off"):
            yield f"quickgelu = {self.quickgelu!r} is not timm's: its architectures say it by their names; leave auto"


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """[build]: where the shard tasks run. Nothing here changes a byte of the cache.

    scheduler  "threads" (this process), "processes" (a local Dask cluster) or the address of a Dask scheduler, tcp://...
    workers    threads that teach, or local processes; 0 is one a core, or two for a GPU; unused with an address
    changed    what is done about shapes that changed or went since the cache was built: "refuse" stops before anything
               is written; "rebuild" builds the shards that hold them again
    check      how changes are looked for: "stamps" reads files whose size or time differs, "content" all of them
    retries    times a shard whose worker died is handed out again before the build stops, 0..100; with an address each
               is a round of that scheduler's own `distributed.scheduler.allowed-failures`
    max_refused    share of the corpus, 0..1, that may be refused before the build counts as failed; what is built stays
    retry_refused  try every shape again that an earlier build refused, not only those whose file has changed since
    """

    scheduler: str = "threads"
    workers: int = 0
    changed: Literal["refuse", "rebuild"] = "refuse"
    check: Literal["stamps", "content"] = "stamps"
    retries: int = 3
    max_refused: float = 0.05
    retry_refused: bool = False

    @property
    def remote(self) -> bool:
        """True when `scheduler` is the address of a cluster that someone else started."""
        return "://" in self.scheduler

    def problems(self) -> Iterator[str]:
        if self.scheduler not in ("threads", "processes") and not self.remote:
            yield f"scheduler = {self.scheduler!r} is none of threads, processes, or an address such as tcp://host:8786"
        if self.workers < 0:
            yield f"workers = {self.workers} is negative; 0 chooses"
        if self.changed not in ("refuse", "rebuild"):
            yield f"changed = {self.changed!r} is neither refuse nor rebuild"
        if self.check not in ("stamps", "content"):
            yield f"check = {self.check!r} is neither stamps nor content"
        if not 0 <= self.retries <= 100:
            yield f"retries = {self.retries} is outside 0..100"
        if not 0 <= self.max_refused <= 1:
            yield f"max_refused = {self.max_refused} is a share of the corpus, and outside 0..1"


def conflicts(corpus: CorpusConfig, projection: ProjectionConfig) -> Iterator[str]:
    """Faults between two sections that are each sound, with full names."""
    if projection.points > corpus.points:
        yield (
            f"projection.points = {projection.points} is more than the corpus.points = {corpus.points} that are stored"
        )
