"""``i2p presets``: the experiments that come with the package."""

import click

from cli.experiment.toml import preset_names, preset_text
from cli.show.terminal import echo

__all__ = ["presets"]


@click.command(epilog="Example: i2p presets quickstart > mine.toml; i2p pretrain mine.toml")
@click.argument("name", required=False)
def presets(name: str | None) -> None:
    """List the presets with their purposes, or print the TOML of one."""
    if name is not None:
        echo(preset_text(name), nl=False)
        return
    width = max(map(len, preset_names()))
    for preset in preset_names():
        first = preset_text(preset).splitlines()[0].lstrip("# ")
        echo(f"{preset:<{width}}  {first}")
