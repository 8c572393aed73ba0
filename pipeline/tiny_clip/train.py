"""Training a tiny CLIP: open_clip's towers and contrastive loss on views that are drawn and captions that are made up.

Step k is a function of (settings, k) and the weights before it: a run that is killed goes on from its last checkpoint
and ends in the same weights (on one machine and number of threads).
"""

import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.corpora.synthetic import Attributes
from pipeline.errors import TeacherError
from pipeline.teacher import describe_architecture, resolve_device
from pipeline.tiny_clip.captions import Vocabulary, caption
from pipeline.tiny_clip.config import LearningConfig, ViewsConfig
from pipeline.tiny_clip.files import read_checkpoint, save_clip, write_checkpoint
from pipeline.tiny_clip.towers import new_towers
from pipeline.tiny_clip.views import LEVELS, ViewSet, _replace, objects, open_views, settings_of
from pipeline.views import VIEWS, normalise_depth

__all__ = ["CLIP_FILE", "StepReport", "train_clip"]

CLIP_FILE = "clip.safetensors"
LARGEST_SCALE = 100.0  # of the logits, as in CLIP
BETAS = (0.9, 0.98)
EPSILON = 1e-6
_AHEAD = 3


class StepReport(NamedTuple):
    """One step: steps done so far, the loss, the share of images whose own caption fits best, the logits' scale."""

    step: int
    loss: float
    accuracy: float
    scale: float


def train_clip(
    views: ViewsConfig,
    learning: LearningConfig,
    folder: Path,
    *,
    views_folder: Path | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> Path:
    """Train on views that lie in `views_folder` (default: folder/views), or go on; -> the file of both towers.

    folder   made if absent; receives settings.json, log.jsonl, the checkpoint and clip.safetensors.

    Raises TeacherError for a folder of other settings, views that are damaged, or an architecture without a text tower.
    """
    from open_clip.loss import ClipLoss

    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, views, learning)
    if learning.threads:
        torch.set_num_threads(learning.threads)
    device = resolve_device(learning.device)
    architecture = describe_architecture(learning.architecture)
    corpus = objects(views)
    described = [corpus.describe(index) for index in range(len(corpus))]
    vocabulary = _vocabulary(described, architecture, learning.architecture)
    model = new_towers(architecture, learning).to(device)
    optimizer = _optimizer(model, learning)
    done = read_checkpoint(folder, model, optimizer)
    loss_of = ClipLoss()
    model.train()
    images = open_views(views, views_folder or folder / "views") if done < learning.steps else None
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        batches = _ahead(images, described, vocabulary, learning, done) if images is not None else iter(())
        for step, (pixels, tokens) in enumerate(batches, start=done):
            for group in optimizer.param_groups:
                group["lr"] = _rate(learning, step)
            model.visual.patch_dropout.share = _dropout(learning, step)
            torch.manual_seed(learning.seed * 1_000_003 + step)  # of the dropped patches
            report = _step(model, optimizer, loss_of, pixels.to(device), tokens.to(device), learning, step)
            if not math.isfinite(report.loss):
                raise TeacherError(
                    f"the loss is not finite in step {step + 1}; lower learning.learning_rate, or use float32.\n"
                    f"  The last checkpoint in {folder} is not touched."
                )
            log.write(json.dumps(report._asdict()) + "\n")
            if report.step % learning.checkpoint_every == 0 or report.step == learning.steps:
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
    pixels: Tensor,
    tokens: Tensor,
    learning: LearningConfig,
    step: int,
) -> StepReport:
    model.visual.patch_dropout.look(pixels, model.visual.patch_size[0])
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=learning.precision == "bfloat16"):
        image = model.encode_image(normalise_depth(pixels, "imagenet"))
        text = model.encode_text(tokens)
    # The products of the loss are small, and its softmax of a hundredfold cosine is not for eight bits of mantissa.
    image, text = nn.functional.normalize(image.float(), dim=-1), nn.functional.normalize(text.float(), dim=-1)
    scale = model.logit_scale.exp()
    loss = loss_of(image, text, scale)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0.0, math.log(LARGEST_SCALE))
        own = (image @ text.T).argmax(dim=1) == torch.arange(len(image), device=image.device)
    return StepReport(step + 1, loss.item(), own.float().mean().item(), scale.item())


def _vocabulary(described: list[Attributes], architecture: dict[str, Any], name: str) -> Vocabulary:
    text = architecture.get("text_cfg", {})
    if "vocab_size" not in text or "context_length" not in text:
        raise TeacherError(
            f"learning.architecture = {name} describes no text tower (text_cfg: vocab_size, context_length)"
        )
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
    rise = max(round(learning.warmup * learning.steps), 1)
    if step < rise:
        return learning.learning_rate * (step + 1) / rise
    return learning.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(learning.steps - rise, 1)))


def _dropout(learning: LearningConfig, step: int) -> float:
    return 0.0 if step >= learning.steps * (1 - learning.whole) else learning.patch_dropout


def _batch(
    views: ViewSet, described: list[Attributes], vocabulary: Vocabulary, learning: LearningConfig, step: int
) -> tuple[Tensor, Tensor]:
    """The images [M, S, S] float32 in 0..1 and captions [M, L] of a step: random views, half of them mirrored."""
    n = len(views) * VIEWS
    epoch, place = divmod(step * learning.batch_size, n - n % learning.batch_size or n)
    order = np.random.Generator(np.random.PCG64([learning.seed, 1, epoch])).permutation(n)
    chosen = np.resize(order[place : place + learning.batch_size], learning.batch_size)
    rng = np.random.Generator(np.random.PCG64([learning.seed, 2, step]))
    shape, view = chosen // VIEWS, chosen % VIEWS
    pixels = views.images[shape, view]
    mirrored = rng.random(len(pixels)) < 0.5  # no caption tells left from right
    pixels[mirrored] = pixels[mirrored, :, ::-1]
    texts = [caption(described[s], views.poses[s], v, rng) for s, v in zip(shape.tolist(), view.tolist(), strict=True)]
    return torch.from_numpy(pixels).float() / LEVELS, vocabulary(texts)


def _ahead(
    views: ViewSet, described: list[Attributes], vocabulary: Vocabulary, learning: LearningConfig, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the steps that are left, prepared by a thread while the model works."""
    queue: Queue[tuple[Tensor, Tensor] | BaseException] = Queue(maxsize=_AHEAD)
    stop = threading.Event()

    def fill() -> None:
        try:
            for step in range(first, learning.steps):
                if stop.is_set():
                    return
                queue.put(_batch(views, described, vocabulary, learning, step))
        except BaseException as error:  # handed to the reader of the queue, who would wait for ever
            queue.put(error)

    threading.Thread(target=fill, daemon=True).start()
    try:
        for _ in range(first, learning.steps):
            item = queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


def _claim(folder: Path, views: ViewsConfig, learning: LearningConfig) -> None:
    """Note the settings of a run, or check that they are those noted. Where it runs is nobody's business."""
    free = {"device", "threads", "checkpoint_every"}
    own = {key: value for key, value in asdict(learning).items() if key not in free}
    settings = json.loads(json.dumps({"views": settings_of(views), "learning": own}))
    path = folder / "settings.json"
    if not path.exists():
        _replace(path, json.dumps(settings, indent=1).encode())
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    differ = [
        f"{section}.{key}"
        for section, values in settings.items()
        for key, value in values.items()
        if known.get(section, {}).get(key) != value
    ]
    if differ:
        raise TeacherError(
            f"{folder} holds a run with other settings: {', '.join(differ)} differ.\n"
            "  Use the settings it was started with, or another folder."
        )
