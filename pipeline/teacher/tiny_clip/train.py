"""Training of a tiny CLIP: open_clip's towers and contrastive loss on rendered views and generated captions.

In addition to the caption of the image, each patch is supervised with the part it shows, by the same kind of loss
against the texts of the parts in the batch: students learn from patch features, which captions alone supervise poorly
(the idea of RegionCLIP, Zhong et al., CVPR 2022).

Step k is a function of (settings, k) and the weights before it: a killed run resumes from its last checkpoint and ends
in the same weights (on one machine and number of threads).
"""

import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Full, Queue
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.corpora.kinds.synthetic import Attributes
from pipeline.errors import TeacherError
from pipeline.teacher.tiny_clip.captions import Vocabulary, caption, part_phrase
from pipeline.teacher.tiny_clip.config import LearningConfig, ViewsConfig
from pipeline.teacher.tiny_clip.files import read_checkpoint, save_clip, write_checkpoint
from pipeline.teacher.tiny_clip.folder import claim
from pipeline.teacher.tiny_clip.towers import new_towers
from pipeline.teacher.tiny_clip.views import LEVELS, ViewSet, objects, open_views, settings_of
from pipeline.teacher.tower import describe_architecture, resolve_device
from pipeline.views import VIEWS, normalise_depth
from teacher_cache.storage.atomic import open_log, refuse_links, replace_file

__all__ = ["CLIP_FILE", "Batch", "StepReport", "check_sizes", "train_clip"]

CLIP_FILE = "clip.safetensors"
LARGEST_SCALE = 100.0  # of the logits, as in CLIP
BETAS = (0.9, 0.98)
EPSILON = 1e-6
_AHEAD = 3
_PATIENCE = 0.5  # seconds between checks whether batches are still needed
_FREE = {"device", "threads", "checkpoint_every"}


class StepReport(NamedTuple):
    """Report of one step.

    Fields: steps done so far, the loss of captions, that of parts, the share of images whose own caption fits best, the
    logits' scale.
    """

    step: int
    loss: float
    grounding: float
    accuracy: float
    scale: float


class Batch(NamedTuple):
    """The inputs of one step.

    pixels      [M, S, S] float32 in 0..1
    captions    [M, L] int64 tokens
    parts       [M, T] int64 into part_texts, -1 where a patch shows none
    part_texts  [K, L] int64 tokens, one text for each part in the batch
    """

    pixels: Tensor
    captions: Tensor
    parts: Tensor
    part_texts: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(value.to(device) for value in self))


def train_clip(
    views: ViewsConfig,
    learning: LearningConfig,
    folder: Path,
    *,
    views_folder: Path | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> Path:
    """Train on the views in `views_folder` (default: folder/views), or resume; -> the file of both towers.

    folder   made if absent; receives settings.json, log.jsonl, the checkpoint and clip.safetensors.

    Raises TeacherError for a folder of other settings, views that are damaged, or an architecture without a text tower.
    """
    from open_clip.loss import ClipLoss

    check_sizes(views, learning)
    architecture = describe_architecture(learning.architecture)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder, folder / "views" / "any")
    _claim(folder, views, learning)
    if learning.threads:
        torch.set_num_threads(learning.threads)
    device = resolve_device(learning.device)
    corpus = objects(views)
    described = [corpus.describe(index) for index in range(len(corpus))]
    vocabulary = _vocabulary(described, architecture, learning.architecture)
    model = new_towers(architecture, learning).to(device)
    optimizer = _optimizer(model, learning)
    done = read_checkpoint(folder, model, optimizer)
    loss_of = ClipLoss()
    model.train()
    source = None
    if done < learning.all_steps:
        part_tokens = vocabulary([part_phrase(name) for name in corpus.part_names])
        seen = open_views(views, views_folder or folder / "views")
        source = _Source(seen, described, part_tokens, vocabulary, learning)
    _shorten_log(folder / "log.jsonl", done)
    with os.fdopen(open_log(folder / "log.jsonl"), "a", encoding="utf-8") as log:
        for step, batch in enumerate(_ahead(source, done) if source is not None else (), start=done):
            for group in optimizer.param_groups:
                group["lr"] = _rate(learning, step)
            model.visual.patch_dropout.share = _dropout(learning, step)
            torch.manual_seed(learning.seed * 1_000_003 + step)  # of the dropped patches
            report = _step(model, optimizer, loss_of, batch.to(device), learning, step)
            if not math.isfinite(report.loss):
                raise TeacherError(
                    f"the loss is not finite in step {step + 1}; lower learning.learning_rate, or use float32.\n"
                    f"  The last checkpoint in {folder} is intact."
                )
            log.write(json.dumps(report._asdict()) + "\n")
            if report.step % learning.checkpoint_every == 0 or report.step == learning.all_steps:
                log.flush()
                write_checkpoint(folder, report.step, model, optimizer)
            if on_step is not None:
                on_step(report)
    path = folder / CLIP_FILE
    save_clip(path, model, architecture, vocabulary)
    return path


def _step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[..., Any],
    batch: "Batch",
    learning: LearningConfig,
    step: int,
) -> StepReport:
    visual = model.visual
    visual.patch_dropout.look(batch.pixels, visual.patch_size[0])
    with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=learning.precision == "bfloat16"):
        image, patches = visual(normalise_depth(batch.pixels, "imagenet"))
        words = torch.cat([batch.captions, batch.part_texts])
        model.ln_final.at = words.argmax(dim=1)  # the end token is the largest number
        text = model.encode_text(words)
        patches = patches @ visual.proj
    # The products of the loss are small, and a softmax of cosines times 100 needs more than eight bits of mantissa.
    image, text, patches = (nn.functional.normalize(value.float(), dim=-1) for value in (image, text, patches))
    text, part_text = text[: len(image)], text[len(image) :]
    scale = model.logit_scale.exp()
    loss = loss_of(image, text, scale)
    grounding = _grounding(patches, batch.parts, visual.patch_dropout.chosen, part_text, scale)
    optimizer.zero_grad(set_to_none=True)
    (loss + learning.grounding * grounding).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0.0, math.log(LARGEST_SCALE))
        own = (image @ text.T).argmax(dim=1) == torch.arange(len(image), device=image.device)
    return StepReport(step + 1, loss.item(), grounding.item(), own.float().mean().item(), scale.item())


def _grounding(patches: Tensor, parts: Tensor, chosen: Tensor | None, part_text: Tensor, scale: Tensor) -> Tensor:
    """Compute the cross-entropy of classifying each patch's part among those of the batch, where it shows one.

    patches [M, kept, C], parts [M, T] int64 into part_text or -1, chosen [M, kept] or None, part_text [K, C].
    """
    wanted = parts if chosen is None else parts.gather(1, chosen)
    shown = wanted >= 0
    if not bool(shown.any()):
        return patches.sum() * 0.0
    return nn.functional.cross_entropy(scale * patches[shown] @ part_text.T, wanted[shown])


def check_sizes(views: ViewsConfig, learning: LearningConfig) -> None:
    """Raise TeacherError unless views are of the sizes that the tower reads."""
    name = learning.architecture
    vision = describe_architecture(name)["vision_cfg"]
    for key, wanted in (("image_side", vision["image_size"]), ("patch_side", vision["patch_size"])):
        if getattr(views, key) != wanted:
            raise TeacherError(
                f"views.{key} = {getattr(views, key)} is not the {wanted} that learning.architecture = {name} takes; "
                f"set views.{key} = {wanted} and render the views again."
            )


def _vocabulary(described: list[Attributes], architecture: dict[str, Any], name: str) -> Vocabulary:
    text = architecture.get("text_cfg", {})
    if "vocab_size" not in text or "context_length" not in text:
        raise TeacherError(f"learning.architecture = {name} has no text tower (text_cfg: vocab_size, context_length)")
    return Vocabulary.of(described, size=text["vocab_size"], length=text["context_length"])


def _optimizer(model: nn.Module, learning: LearningConfig) -> torch.optim.Optimizer:
    matrices = [value for value in model.parameters() if value.ndim >= 2]
    vectors = [value for value in model.parameters() if value.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": learning.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning.learning_rate, betas=BETAS, eps=EPSILON)


def _rate(learning: LearningConfig, step: int) -> float:
    if step >= learning.steps:
        return learning.finish_rate * 0.5 * (1 + math.cos(math.pi * (step - learning.steps) / learning.finish))
    rise = max(round(learning.warmup * learning.steps), 1)
    if step < rise:
        return learning.learning_rate * (step + 1) / rise
    return learning.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(learning.steps - rise, 1)))


def _dropout(learning: LearningConfig, step: int) -> float:
    return 0.0 if step >= learning.steps * (1 - learning.whole) else learning.patch_dropout


class _Source(NamedTuple):
    """The data that batches are made of."""

    views: ViewSet
    described: list[Attributes]
    part_tokens: Tensor
    vocabulary: Vocabulary
    learning: LearningConfig

    def batch(self, step: int) -> Batch:
        """Build the batch of a step: random views, half of them mirrored, each with a new caption."""
        learning, n = self.learning, len(self.views) * VIEWS
        epoch, place = divmod(step * learning.batch_size, n - n % learning.batch_size or n)
        order = np.random.Generator(np.random.PCG64([learning.seed, 1, epoch])).permutation(n)
        chosen = np.resize(order[place : place + learning.batch_size], learning.batch_size)
        rng = np.random.Generator(np.random.PCG64([learning.seed, 2, step]))
        shape, view = chosen // VIEWS, chosen % VIEWS
        pixels, parts = self.views.images[shape, view], self.views.parts[shape, view].astype(np.int64)
        mirrored = rng.random(len(pixels)) < 0.5  # no caption tells left from right
        side = round(parts.shape[1] ** 0.5)
        pixels[mirrored] = pixels[mirrored, :, ::-1]
        parts[mirrored] = parts[mirrored].reshape(-1, side, side)[:, :, ::-1].reshape(-1, side * side)
        texts = [
            caption(self.described[s], self.views.poses[s], v, rng)
            for s, v in zip(shape.tolist(), view.tolist(), strict=True)
        ]
        present, place_of = np.unique(parts, return_inverse=True)
        empty = int(present[0] < 0)  # -1 sorts first
        return Batch(
            torch.from_numpy(pixels).float() / LEVELS,
            self.vocabulary(texts),
            torch.from_numpy(place_of.reshape(parts.shape) - empty),
            self.part_tokens[torch.from_numpy(present[empty:].astype(np.int64))],
        )


def _ahead(source: _Source, first: int) -> Iterator[Batch]:
    """Yield the batches of the remaining steps, prepared by a thread while the model works."""
    queue: Queue[Batch | BaseException] = Queue(maxsize=_AHEAD)
    stop = threading.Event()
    steps = range(first, source.learning.all_steps)

    def hand_over(item: Batch | BaseException) -> None:
        while not stop.is_set():  # nobody reads a closed queue, so this thread must not wait on it for ever
            with suppress(Full):
                queue.put(item, timeout=_PATIENCE)
                return

    def fill() -> None:
        try:
            for step in steps:
                if stop.is_set():
                    return
                hand_over(source.batch(step))
        except BaseException as error:  # passed to the reader of the queue, which would wait for ever
            hand_over(error)

    threading.Thread(target=fill, daemon=True).start()
    try:
        for _ in steps:
            item = queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


def _claim(folder: Path, views: ViewsConfig, learning: LearningConfig) -> None:
    """Write the settings of a run, or check them against those written; the device is not one of them."""
    own = {key: value for key, value in asdict(learning).items() if key not in _FREE}
    claim(folder / "settings.json", {"views": settings_of(views), "learning": own})


def _shorten_log(path: Path, done: int) -> None:
    """Drop log lines of steps after the checkpoint, left by a killed run: they will be repeated."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:done]
    replace_file(path, "".join(lines).encode())
