"""The settings note in folders of views and of training runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import TeacherError
from teacher_cache.storage.atomic import replace_file

__all__ = ["claim"]


def claim(path: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the settings (section -> key -> value) of a folder's content, or check them against those written.

    Raises TeacherError naming every setting that differs, or for a note that cannot be read.
    """
    wanted = json.loads(json.dumps(settings))  # tuples become lists, as in what is read back
    if not path.exists():
        replace_file(path, json.dumps(wanted, indent=1).encode())
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        differ = [
            f"{section}.{key}"
            for section, values in wanted.items()
            for key in sorted({*values, *known.get(section, {})})
            if known.get(section, {}).get(key) != values.get(key)
        ]
    except (ValueError, AttributeError, TypeError) as error:
        raise TeacherError(f"{path}: not a settings file ({error}).\n  Delete the folder to start over.") from error
    if differ:
        raise TeacherError(
            f"{path.parent} was started with other settings: {', '.join(differ)} differ.\n"
            "  Use the original settings, or another folder."
        )
