"""``i2p checkpoint``: inspect a checkpoint, and import and export the reference's."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import CheckpointPath, LocalPath, json_option
from cli.show.terminal import answer

if TYPE_CHECKING:
    from trainer.checkpoints.files import Header

__all__ = ["checkpoint"]


@click.group()
def checkpoint() -> None:
    """Inspect a checkpoint; convert from and to the reference implementation's."""


@checkpoint.command(epilog="Example: i2p checkpoint info runs/quickstart")
@click.argument("path", type=CheckpointPath())
@json_option
def info(path: Path, as_json: bool) -> None:
    """Print a checkpoint's contents and origin; check its files against their hashes."""
    from trainer.checkpoints.files import find_checkpoint, read_header, read_tensors

    found = find_checkpoint(path)
    header = read_header(found)
    weights = {name: read_tensors(found, header, name) for name in header.files}
    numbers = {name: sum(tensor.numel() for tensor in tensors.values()) for name, tensors in weights.items()}
    lines = [f"checkpoint  {found}", *_described(header)]
    for name, tensors in weights.items():
        size = header.files[name]["bytes"]
        lines.append(f"{name:<24}{numbers[name]:>12} numbers in {len(tensors)} tensors, {size} bytes")
    lines += [f"{key:<24}{value}" for key, value in header.metrics.items()]
    for section, settings in header.config.items():
        lines += [f"\n[{section}]", *(f"  {key} = {value}" for key, value in settings.items())]
    answer({**_as_json(found, header), "numbers": numbers}, "\n".join(lines), as_json=as_json)


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
@json_option
def import_(file: Path, out: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Convert FILE, a .pth of I2P-MAE or Point-M2AE, or of Point-MAE and its relatives, to a checkpoint of ours.

    Relatives are Point-BERT, ACT, ReCon, PCP-MAE and Point-FEMAE; their files become plain students. Method and kind
    (pre-training, classification, part segmentation) are told by the parameter names alone; `module.` and frozen
    teachers are dropped, and what is taken, left out and left new is said. Nothing in the file is executed. Weights
    keep every bit.
    """
    from cli.experiment.toml import parse_settings
    from trainer.checkpoints.reference.convert import import_reference
    from trainer.checkpoints.reference.recognise import KINDS, sections_of_kind

    def stated(architecture: str) -> dict[str, dict[str, Any]]:
        of_kinds = [sections_of_kind(architecture, kind) for kind in KINDS]
        return parse_settings(overrides, {name: cls for of_kind in of_kinds for name, cls in of_kind.items()})

    converted = import_reference(file, out, settings=stated)
    _answer(f"checkpoint  {converted.path}", converted.path, converted.header, converted.notes, as_json)


@checkpoint.command(
    epilog="Example: i2p checkpoint export runs/quickstart --out quickstart.pth   "
    "(to resume pre-training there: --teacher ViT-B-16.safetensors)"
)
@click.argument("path", type=CheckpointPath())
@click.option("--out", type=LocalPath(), required=True, help="The .pth to write; must not exist.")
@click.option("--teacher", type=LocalPath(exists=True, dir_okay=False),
              help="CLIP to put under `clip_model.`: OpenAI's layout, or a reference checkpoint.")  # fmt: skip
@click.option("--prefix/--no-prefix", default=None,
              help="Whether names begin with `module.`. [default: as imported, or as the reference does]")  # fmt: skip
@json_option
def export(path: Path, out: Path, teacher: Path | None, prefix: bool | None, as_json: bool) -> None:
    """Export PATH (a run directory or one of its checkpoints) in the layout of the reference's .pth files.

    A hierarchical student's is I2P-MAE's or Point-M2AE's, a plain one's Point-MAE's.
    """
    from trainer.checkpoints.reference.convert import export_reference

    converted = export_reference(path, out, teacher=teacher, prefix=prefix)
    _answer(f"file        {converted.path}", converted.path, converted.header, converted.notes, as_json)


@checkpoint.command(epilog="Example: i2p checkpoint slim runs/quickstart --out encoder --half")
@click.argument("path", type=CheckpointPath())
@click.option("--out", type=LocalPath(), required=True, help="Directory to write; must not exist.")
@click.option("--half", is_flag=True, help="Round the weights to float16: half the bytes.")
@json_option
def slim(path: Path, out: Path, half: bool, as_json: bool) -> None:
    """Write the weights of PATH alone, to hand on: a checkpoint without the optimiser's state.

    It loads, evaluates and exports as PATH does; training does not resume from it.
    """
    from trainer.checkpoints.slim import slim_checkpoint

    written, header = slim_checkpoint(path, out, half=half)
    _answer(f"checkpoint  {written}", written, header, (), as_json)


@checkpoint.command(epilog="Example: i2p checkpoint hub runs/quickstart --out encoder")
@click.argument("path", type=CheckpointPath())
@click.option("--out", type=LocalPath(), required=True, help="Directory to write; must not exist.")
@json_option
def hub(path: Path, out: Path, as_json: bool) -> None:
    """Write PATH as a folder that a hub can host: model.safetensors, config.json and a card.

    load_encoder and every command that takes a checkpoint read it.
    """
    from trainer.checkpoints.hub import write_hub_folder

    written, header = write_hub_folder(path, out)
    _answer(f"folder      {written}", written, header, (), as_json)


@checkpoint.command(
    epilog="Examples: i2p checkpoint graph runs/quickstart --out encoder.pt2; "
    "i2p checkpoint graph embedded --out encoder.onnx --points 2048 --feature top"
)
@click.argument("path", type=CheckpointPath())
@click.option("--out", type=LocalPath(dir_okay=False), required=True,
              help="A .pt2 file (torch.export) or .onnx, which must not be there.")  # fmt: skip
@click.option("--points", type=click.IntRange(min=1), default=1024, show_default=True, help="Of every cloud.")
@click.option("--feature", type=click.Choice(["levels", "top"]), default="levels", show_default=True)
@json_option
def graph(path: Path, out: Path, points: int, feature: str, as_json: bool) -> None:
    """Write the encoder of PATH as one graph, clouds to features, that runs without this package.

    The batch is free, the number of points is not. The graph is compared with the encoder before it is written
    as either; the ONNX file itself is not run. Minutes for large encoders.
    """
    from trainer.checkpoints.graph import write_graph

    if out.suffix not in (".pt2", ".onnx"):
        raise click.UsageError(f"--out {out}: expected a name that ends in .pt2 or .onnx")
    if out.exists():
        raise click.UsageError(f"--out {out} is there already; remove it, or choose another name")
    about = write_graph(path, out, points=points, feature=feature)  # type: ignore[arg-type]
    text = f"graph       {out}: points [B, {points}, 3] float32 -> features [B, {about['numbers']}] ({feature})"
    answer({"path": str(out), **about}, text, as_json=as_json)


def _answer(first: str, path: Path, header: "Header", notes: Iterable[str], as_json: bool) -> None:
    said = list(notes)
    lines = [first, *_described(header), *(f"note        {note}" for note in said)]
    answer({**_as_json(path, header), "notes": said}, "\n".join(lines), as_json=as_json)


def _as_json(path: Path, header: "Header") -> dict[str, Any]:
    return {"path": str(path), **asdict(header)}


def _described(header: "Header") -> list[str]:
    steps = f"{header.step} steps" if header.origin is None else "steps unknown"
    lines = [f"kind        {header.kind}"]
    if header.origin is not None:
        lines.append(f"origin      {header.origin['file']}, sha256 {header.origin['sha256']}")
    lines.append(f"state       {header.epoch} epochs, {steps}")
    if "recipe" in header.cache:
        lines.append(f"cache       {header.cache['records']} shapes, recipe {header.cache['recipe']}")
    if "start" in header.cache:
        lines.append(f"start       {header.cache['start']}")
    if header.teacher.get("channels"):
        for maps in (header.teacher, *header.teacher.get("further", ())):
            lines.append(f"teacher     {maps['views']} views, {maps['channels']} channels")
    return lines
