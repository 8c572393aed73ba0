"""``i2p checkpoint``: what a checkpoint is and where it comes from."""

from pathlib import Path

import click

__all__ = ["checkpoint"]


@click.group()
def checkpoint() -> None:
    """Look into a checkpoint."""


@checkpoint.command(epilog="Example: i2p checkpoint info runs/quickstart")
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False))
def info(path: Path) -> None:
    """Print what a checkpoint holds and how it came about; checks its files against their hashes."""
    from trainer.checkpoint import find_checkpoint, read_header, read_tensors

    found = find_checkpoint(path)
    header = read_header(found)
    weights = {name: read_tensors(found, header, name) for name in header.files}
    click.echo(f"checkpoint  {found}")
    click.echo(f"state       {header.epoch} epochs, {header.step} steps")
    click.echo(f"cache       {header.cache['records']} shapes, recipe {header.cache['recipe']}")
    click.echo(f"teacher     {header.teacher['views']} views, {header.teacher['channels']} channels")
    for name, tensors in weights.items():
        numbers = sum(tensor.numel() for tensor in tensors.values())
        click.echo(f"{name:<24}{numbers:>12} numbers in {len(tensors)} tensors, {header.files[name]['bytes']} bytes")
    for key, value in header.metrics.items():
        click.echo(f"{key:<24}{value}")
    for section, settings in header.config.items():
        click.echo(f"\n[{section}]")
        for key, value in settings.items():
            click.echo(f"  {key} = {value}")
