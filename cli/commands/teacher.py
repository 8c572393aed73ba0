"""``i2p teacher``: train a tiny CLIP of our own, and measure what a teacher knows of shapes."""

from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import click

from cli.options import LocalPath, json_option
from cli.show.terminal import answer, echo

__all__ = ["teacher"]

SYNTHETIC = "synthetic:?count={count}&seed=1001&split={split}&rotate=yaw"  # a seed that no training uses
_MIB = 2**20


@click.group(epilog="Examples: i2p teacher train; i2p teacher eval; i2p teacher eval --weights ViT-B-16.safetensors")
def teacher() -> None:
    """Train the embedded teacher; measure what a teacher knows."""


@teacher.command(
    epilog="Examples: i2p teacher train; i2p teacher train mine.toml --out runs/mine --set learning.steps=3000. "
    "A stopped run resumes where it was."
)
@click.argument("config", default="tiny", metavar="[CONFIG]")
@click.option("--out", type=LocalPath(file_okay=False),
              help="Folder of views, log, checkpoint and result. [default: runs/teacher-CONFIG]")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting.")
@json_option
def train(config: str, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train a tiny CLIP on depth views of synthetic objects and generated captions.

    CONFIG is "tiny", whose result travels with this package, or a TOML file with [views] and [learning].
    """
    from cli.experiment.toml import load_sections
    from cli.show.pictures import contrastive_curve
    from cli.show.progress import Progress, human_seconds
    from pipeline.teacher.tiny_clip.config import LearningConfig, ViewsConfig
    from pipeline.teacher.tiny_clip.train import StepReport, check_sizes, train_clip
    from pipeline.teacher.tiny_clip.views import draw_views
    from teacher_cache.storage.atomic import refuse_links

    made = load_sections(config, _text(config), overrides, {"views": ViewsConfig, "learning": LearningConfig})
    views: ViewsConfig = made["views"]
    learning: LearningConfig = made["learning"]
    check_sizes(views, learning)  # before minutes are spent on rendering
    folder = out or Path("runs") / f"teacher-{Path(config).stem}"
    refuse_links(folder, folder / "views" / "any")  # before anything is drawn into it
    with Progress("views", views.shapes, unit="shapes") as progress:
        draw_views(views, folder / "views", on_progress=progress.update)
    progress_of: dict[str, Any] = {}

    def on_step(report: StepReport) -> None:
        if not progress_of:
            progress_of["bar"] = Progress("training", learning.all_steps, unit="steps", initial=report.step - 1)
        progress_of["bar"].update(report.step, loss=f"{report.loss:.3f}", right=f"{100 * report.accuracy:.0f}%")

    try:
        path = train_clip(views, learning, folder, on_step=on_step)
    finally:
        if progress_of:
            progress_of["bar"].__exit__(None, None, None)
    if not progress_of:
        echo(f"already complete: {learning.all_steps} steps", err=True)
    else:
        bar = progress_of["bar"]
        echo(f"trained {bar.done - bar.initial} steps in {human_seconds(bar.seconds)}", err=True)
    contrastive_curve(folder / "log.jsonl", folder / "curve.png")
    size, curve = path.stat().st_size, folder / "curve.png"
    said = f"teacher     {path} ({size / _MIB:.1f} MiB)\ncurve       {curve}"
    answer({"teacher": str(path), "bytes": size, "curve": str(curve)}, said, as_json=as_json)
    echo(f"measure it  i2p teacher eval --architecture {learning.architecture} --weights {path}", err=True)


@teacher.command(
    name="eval",
    epilog="Examples: i2p teacher eval; i2p teacher eval --corpus 'mine=folder:train,folder:test'; "
    "i2p teacher eval --architecture ViT-B-16 --pretrained openai",
)
@click.option("--architecture", default="i2p-vit-tiny-16", show_default=True, help="As teacher.architecture.")
@click.option("--pretrained", default="embedded", show_default=True, help="As teacher.pretrained.")
@click.option("--weights", default="", help="As teacher.weights: a local file instead.")
@click.option("--image-side", type=int, default=0, show_default=True,
              help="As teacher.image_side, for timm's towers; 0: the architecture's own.")  # fmt: skip
@click.option("--corpus", "corpora", multiple=True, metavar="NAME=TRAIN,TEST",
              help="Labelled corpora besides held-out synthetic objects; may be given many times.")  # fmt: skip
@click.option("--shapes", type=int, default=1080, show_default=True,
              help="Synthetic objects the probe is fitted on; half as many, of the other split, score it.")  # fmt: skip
@click.option("--points", type=int, default=1024, show_default=True, help="Points rendered of each shape.")
@click.option("--reduction", default="nearest", show_default=True, help="As projection.reduction.")
@click.option("--depth-offset", type=float, default=1.5, show_default=True,
              help="As projection.depth_offset. The defaults are what the embedded teacher was made for.")  # fmt: skip
@click.option("--normalisation", default="auto", show_default=True,
              help="As projection.normalisation; auto: that of timm's weights, or ImageNet's.")  # fmt: skip
@click.option("--seeds", type=int, default=3, show_default=True, help="Random teachers, and draws of points and folds.")
@click.option("--precision", default="float32", show_default=True, help="As teacher.precision; bfloat16 is faster.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@json_option
def evaluate(
    architecture: str,
    pretrained: str,
    weights: str,
    image_side: int,
    corpora: tuple[str, ...],
    shapes: int,
    points: int,
    reduction: str,
    depth_offset: float,
    normalisation: str,
    seeds: int,
    precision: str,
    device: str,
    as_json: bool,
) -> None:
    """Score a teacher and random ones of its architecture: linear probes, and zero-shot if it has a text tower."""
    from cli.actions.teacher_scores import score_teacher, scores_table
    from cli.experiment.toml import ConfigError
    from pipeline.config import ProjectionConfig, TeacherConfig
    from pipeline.corpora.uri import split_uris

    config = TeacherConfig(
        architecture=architecture, pretrained=pretrained, weights=weights, device=device, image_side=image_side,
        precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    projection = ProjectionConfig(reduction=reduction, depth_offset=depth_offset)  # type: ignore[arg-type]
    if normalisation != "auto":
        projection = replace(projection, normalisation=normalisation)  # type: ignore[arg-type]
    problems = [f"teacher.{problem}" for problem in config.problems()]
    problems += [f"projection.{problem}" for problem in projection.problems()]
    if shapes < 72:
        problems.append(f"--shapes {shapes} is less than two for each of the 36 categories")
    named = [
        ("synthetic", SYNTHETIC.format(count=shapes, split="train"), SYNTHETIC.format(count=shapes // 2, split="test"))
    ]
    for text in corpora:
        name, _, pair = text.partition("=")
        uris = split_uris(pair)
        if not name or len(uris) != 2:
            problems.append(f"--corpus {text}: expected NAME=TRAIN,TEST with two corpora, as in mine=folder:a,folder:b")
            continue
        named.append((name, uris[0], uris[1]))
    if seeds < 1:
        problems.append(f"--seeds {seeds} is smaller than 1")
    if problems:
        raise ConfigError("the options", problems)
    result = score_teacher(
        config, projection, named, points=points, seeds=seeds, any_normalisation=normalisation == "auto"
    )
    answer(result, "" if as_json else scores_table(result), as_json=as_json)


def _text(config: str) -> str:
    from cli.experiment.toml import ConfigError, read_config

    path = Path(config)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ConfigError(config, ["no such file"])
        return read_config(path)
    known = resources.files("cli") / "teachers"
    names = sorted(file.name.removesuffix(".toml") for file in known.iterdir() if file.name.endswith(".toml"))
    if config not in names:
        raise ConfigError(config, [f"neither a .toml file nor one of: {', '.join(names)}"])
    return (known / f"{config}.toml").read_text(encoding="utf-8")
