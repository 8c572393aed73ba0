"""``i2p presets``: the experiments that come with the package."""

import click

from cli.experiment.toml import preset_names, preset_text
from cli.options import json_option
from cli.show.terminal import answer

__all__ = ["presets"]


@click.command(epilog="Example: i2p presets quickstart > mine.toml; i2p pretrain mine.toml")
@click.argument("name", required=False)
@json_option
def presets(name: str | None, as_json: bool) -> None:
    """List the presets with their purposes, or print the TOML of one."""
    if name is not None:
        text = preset_text(name)
        answer({"name": name, "toml": text}, text.removesuffix("\n"), as_json=as_json)
        return
    found = {preset: preset_text(preset).splitlines()[0].lstrip("# ") for preset in preset_names()}
    width = max(map(len, found))
    answer(found, "\n".join(f"{preset:<{width}}  {first}" for preset, first in found.items()), as_json=as_json)
