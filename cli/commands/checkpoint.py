"""``i2p checkpoint``: inspect a checkpoint, and import and export the reference's."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import CheckpointPath, LocalPath
from cli.show.terminal import echo

if TYPE_CHECKING:
    from trainer.checkpoints.files import Header

__all__ = ["checkpoint"]


@click.group()
def checkpoint() -> None:
    """Inspect a checkpoint; convert from and to the reference implementation's."""


@checkpoint.command(epilog="Example: i2p checkpoint info runs/quickstart")
@click.argument("path", type=CheckpointPath())
def info(path: Path) -> None:
    """Print a checkpoint's contents and origin; check its files against their hashes."""
    from trainer.checkpoints.files import find_checkpoint, read_header, read_tensors

    found = find_checkpoint(path)
    header = read_header(found)
    weights = {name: read_tensors(found, header, name) for name in header.files}
    echo(f"checkpoint  {found}")
    _describe(header)
    for name, tensors in weights.items():
        numbers = sum(tensor.numel() for tensor in tensors.values())
        echo(f"{name:<24}{numbers:>12} numbers in {len(tensors)} tensors, {header.files[name]['bytes']} bytes")
    for key, value in header.metrics.items():
        echo(f"{key:<24}{value}")
    for section, settings in header.config.items():
        echo(f"\n[{section}]")
        for key, value in settings.items():
            echo(f"  {key} = {value}")


@checkpoint.command(
    "import",
    epilog="Example: i2p checkpoint import pretrain.pth --out runs/paper   "
    "(small models: --set 'model.groups=[64,32,8]' --set 'model.neighbours=[8,4,4]')",
)
@click.argument("file", type=LocalPath(exists=True, dir_okay=False))
@click.option("--out", type=LocalPath(), required=True, help="Directory to write; must not exist.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
              help="State a setting that weights do not show; may be given many times. Sections: model, masking, "
              "classifier, segmentation. [default: the paper's]")  # fmt: skip
def import_(file: Path, out: Path, overrides: tuple[str, ...]) -> None:
    """Convert FILE, a .pth of I2P-MAE or Point-M2AE, to a checkpoint of ours.

    Pre-training, classification and part segmentation checkpoints are distinguished by their parameter names; `module.`
    and the frozen teacher, `clip_model.`, are dropped. Nothing in the file is executed. Weights keep every bit.
    """
    from cli.experiment.toml import parse_settings
    from trainer.checkpoints.reference.convert import import_reference
    from trainer.checkpoints.reference.recognise import SECTIONS

    sections = {name: cls for of_kind in SECTIONS.values() for name, cls in of_kind.items()}
    converted = import_reference(file, out, settings=parse_settings(overrides, sections))
    echo(f"checkpoint  {converted.path}")
    _describe(converted.header)
    _note(converted.notes)


@checkpoint.command(
    epilog="Example: i2p checkpoint export runs/quickstart --out quickstart.pth   "
    "(to go on with a pre-training there: --teacher ViT-B-16.safetensors)"
)
@click.argument("path", type=CheckpointPath())
@click.option("--out", type=LocalPath(), required=True, help="The .pth to write; must not exist.")
@click.option("--teacher", type=LocalPath(exists=True, dir_okay=False),
              help="CLIP to put under `clip_model.`: OpenAI's layout, or a reference checkpoint.")  # fmt: skip
@click.option("--prefix/--no-prefix", default=None,
              help="Whether names begin with `module.`. [default: as imported, or as the reference does]")  # fmt: skip
def export(path: Path, out: Path, teacher: Path | None, prefix: bool | None) -> None:
    """Export PATH (a run directory or one of its checkpoints) in the layout of the reference's .pth files."""
    from trainer.checkpoints.reference.convert import export_reference

    converted = export_reference(path, out, teacher=teacher, prefix=prefix)
    echo(f"file        {converted.path}")
    _describe(converted.header)
    _note(converted.notes)


@checkpoint.command(epilog="Example: i2p checkpoint slim runs/quickstart --out encoder --half")
@click.argument("path", type=CheckpointPath())
@click.option("--out", type=LocalPath(), required=True, help="Directory to write; must not exist.")
@click.option("--half", is_flag=True, help="Round the weights to float16: half the bytes.")
def slim(path: Path, out: Path, half: bool) -> None:
    """Write the weights of PATH alone, to hand on: a checkpoint without the optimiser's state.

    It loads, evaluates and exports as PATH does; training does not resume from it.
    """
    from trainer.checkpoints.slim import slim_checkpoint

    written, header = slim_checkpoint(path, out, half=half)
    echo(f"checkpoint  {written}")
    _describe(header)


@checkpoint.command(epilog="Example: i2p checkpoint hub runs/quickstart --out encoder")
@click.argument("path", type=CheckpointPath())
@click.option("--out", type=LocalPath(), required=True, help="Directory to write; must not exist.")
def hub(path: Path, out: Path) -> None:
    """Write PATH as a folder that a hub can host: model.safetensors, config.json and a card.

    load_encoder and every command that takes a checkpoint read it.
    """
    from trainer.checkpoints.hub import write_hub_folder

    written, header = write_hub_folder(path, out)
    echo(f"folder      {written}")
    _describe(header)


@checkpoint.command(
    epilog="Examples: i2p checkpoint graph runs/quickstart --out encoder.pt2; "
    "i2p checkpoint graph embedded --out encoder.onnx --points 2048 --feature top"
)
@click.argument("path", type=CheckpointPath())
@click.option("--out", type=LocalPath(dir_okay=False), required=True,
              help="A .pt2 file (torch.export) or .onnx, which must not be there.")  # fmt: skip
@click.option("--points", type=click.IntRange(min=1), default=1024, show_default=True, help="Of every cloud.")
@click.option("--feature", type=click.Choice(["levels", "top"]), default="levels", show_default=True)
def graph(path: Path, out: Path, points: int, feature: str) -> None:
    """Write the encoder of PATH as one graph, clouds to features, that runs without this package.

    The batch is free, the number of points is not. It is compared with the encoder first. Minutes for large encoders.
    """
    from trainer.checkpoints.graph import write_graph

    if out.suffix not in (".pt2", ".onnx"):
        raise click.UsageError(f"--out {out}: expected a name that ends in .pt2 or .onnx")
    if out.exists():
        raise click.UsageError(f"--out {out} is there already; remove it, or choose another name")
    about = write_graph(path, out, points=points, feature=feature)  # type: ignore[arg-type]
    echo(f"graph       {out}: points [B, {points}, 3] float32 -> features [B, {about['numbers']}] ({feature})")


def _describe(header: "Header") -> None:
    echo(f"kind        {header.kind}")
    if header.origin is not None:
        echo(f"origin      {header.origin['file']}, sha256 {header.origin['sha256']}")
    steps = f"{header.step} steps" if header.origin is None else "steps not known"
    echo(f"state       {header.epoch} epochs, {steps}")
    if "recipe" in header.cache:
        echo(f"cache       {header.cache['records']} shapes, recipe {header.cache['recipe']}")
    if "start" in header.cache:
        echo(f"start       {header.cache['start']}")
    if header.teacher.get("channels"):
        echo(f"teacher     {header.teacher['views']} views, {header.teacher['channels']} channels")


def _note(notes: Iterable[str]) -> None:
    for note in notes:
        echo(f"note        {note}")
