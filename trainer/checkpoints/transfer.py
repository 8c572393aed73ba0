"""Transfer of a pre-trained encoder to a fine-tuning model, with a report of what was and was not taken."""

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from trainer.models.heads.fine_tuned import FineTuned

__all__ = ["EncoderLoad", "load_pretrained_encoder", "without_module_prefix"]

logger = logging.getLogger(__name__)

SHOWN = 8  # names in one message


class EncoderLoad(NamedTuple):
    """Names of the entries that were loaded, kept and unused.

    loaded  names of the model's encoder that now have the checkpoint's values
    kept    the model's other names (final norm, head, a new class token), which keep the values they had
    unused  the checkpoint's names, without a `module.` prefix, that the model has no use for
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]


def load_pretrained_encoder(model: FineTuned, entries: Mapping[str, Tensor], *, source: str) -> EncoderLoad:
    """Copy a checkpoint's encoder into a fine-tuning model; its head stays as it is.

    model    says by `sought` what its encoder is called here and there.
    entries  the state dict of a pre-training or fine-tuning model, with or without `module.` before each name.
    source   where it came from, for messages.

    Raises ValueError, and changes nothing, where the encoder is not there, or lacks entries, has more, or has other
    shapes. What is left over on either side otherwise (decoder, heads) is returned, and logged.
    """
    entries = without_module_prefix(entries, source=source)
    own = model.state_dict()
    sought = model.sought(entries)
    found = {name: theirs for name, theirs in sought.names.items() if theirs in entries}
    if not found:
        raise ValueError(
            f"{source}: none of its {len(entries)} entries is one of the model's {len(sought.names)} encoder weights; "
            f"expected names such as {next(iter(sought.names.values()))}, found {_first_few(entries)}. Pass the state "
            "dict itself (in the reference's files, the entry base_model)."
        )
    missing = [theirs for name, theirs in sought.names.items() if name not in found and name not in sought.optional]
    taken = set(found.values())
    unused = tuple(name for name in entries if name not in taken)
    unlike = (("missing", missing), ("unexpected", sought.strange))
    faults = [f"{what} {_first_few(names)}" for what, names in unlike if names]
    faults += [
        f"{theirs} has shape {tuple(entries[theirs].shape)}, expected {tuple(own[name].shape)}"
        for name, theirs in found.items()
        if entries[theirs].shape != own[name].shape
    ]
    if faults:
        listed = "\n  ".join(faults)
        raise ValueError(
            f"{source}: its encoder does not fit the model, so nothing was loaded:\n"
            f"  {listed}\n"
            "Create the model with the [model] settings that the checkpoint was trained with."
        )
    model.load_state_dict({name: entries[theirs] for name, theirs in found.items()}, strict=False)
    kept = tuple(name for name in own if name not in found)
    logger.info("%s: %d encoder entries loaded; not used: %s", source, len(found), _first_few(unused))
    logger.info(
        "%d entries of the model are not part of the encoder and keep their values: %s", len(kept), _first_few(kept)
    )
    return EncoderLoad(tuple(found), kept, unused)


def without_module_prefix(entries: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Strip the `module.` that data-parallel wrappers put before names.

    Raises ValueError where two names then are the same.
    """
    plain = {name.removeprefix("module."): value for name, value in entries.items()}
    if len(plain) < len(entries):
        double = [name for name in entries if name.startswith("module.") and name.removeprefix("module.") in entries]
        raise ValueError(
            f"{source}: names occur both with and without the prefix `module.`: {_first_few(double)}. Expected one of "
            "the "
            "two."
        )
    return plain


def _first_few(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more
