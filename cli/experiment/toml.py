"""Loading of experiments from TOML: layers, types, and every problem reported at once.

An experiment is one TOML file with a table per room's dataclass. Layers, later ones win: the dataclasses' defaults, the
preset a file names with ``preset = "..."``, the file, ``--set section.key=value``. A layer whose [model] names another
architecture than the layers below begins [model] anew, because the settings below are of another student.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from cli.experiment.sections import SECTIONS, Experiment, section_class
from pipeline.settings import typed
from teacher_cache.foreign import decode_text, misnomer
from trainer.models.config import DEFAULT_ARCHITECTURE

__all__ = [
    "ConfigError",
    "load_experiment",
    "load_sections",
    "parse_settings",
    "preset_names",
    "preset_text",
    "stated_settings",
    "to_toml",
]


class ConfigError(Exception):
    """One or more things are wrong with a configuration; the message lists all of them."""

    def __init__(self, source: str, problems: Iterable[str]):
        self.source = source
        self.problems = list(problems)
        count = len(self.problems)
        lines = "\n".join(f"  {line}" for line in self.problems)
        super().__init__(f"{count} problem{'s' if count != 1 else ''} in {source}\n{lines}")


def preset_names() -> list[str]:
    """List the presets in the package, sorted."""
    return sorted(p.name.removesuffix(".toml") for p in _presets().iterdir() if p.name.endswith(".toml"))


def preset_text(name: str) -> str:
    """Return the TOML text of a preset. Raises ConfigError for an unknown name."""
    if name not in preset_names():
        close = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"presets: {', '.join(preset_names())}"
        raise ConfigError(name, [f"neither a preset nor a .toml file; {hint}"])
    return (_presets() / f"{name}.toml").read_text(encoding="utf-8")


def load_experiment(config: str, overrides: Iterable[str] = ()) -> Experiment:
    """Load the experiment of a preset or TOML file.

    config     a preset's name, or the path of a TOML file.
    overrides  ``section.key=value`` strings; the value is read as TOML, or as plain text where it is not TOML.

    Raises ConfigError listing every unknown key, wrong type and impossible combination.
    """
    problems: list[str] = []
    tables = _layered(config, problems)
    chosen: dict[str, dict[str, Any]] = {}
    for text in overrides:
        _apply_override(chosen, text, problems)
    for key, table in chosen.items():
        _lay(tables, key, table)
    name = Path(config).stem
    sections = {key: _section(key, cls, tables.get(key, {}), problems) for key, cls in SECTIONS.items()}
    problems += [f"[{key}] is not a section; {_suggest(key, SECTIONS)}" for key in tables if key not in SECTIONS]
    # A wrong key leaves its section at the default there, so the other settings are still checked and reported.
    experiment = Experiment(name=name, **sections)
    problems += [problem for problem in experiment.problems() if problem not in problems]
    if problems:
        raise ConfigError(config, problems)
    return experiment


def load_sections(source: str, text: str, overrides: Iterable[str], sections: Mapping[str, type]) -> dict[str, Any]:
    """Load section name -> its dataclass, from TOML text and overrides, for settings that are no experiment's.

    source  names the text in messages.  sections  each class has `problems()`.

    Raises ConfigError listing every unknown key, wrong type and every section's problems.
    """
    problems: list[str] = []
    tables: dict[str, dict[str, Any]] = {}
    for key, table in _parse(text, source).items():
        if isinstance(table, dict):
            tables[key] = table
        else:
            problems.append(f"{key} = {table!r} is outside any section; sections: {', '.join(sections)}")
    for override in overrides:
        _apply_override(tables, override, problems)
    problems += [f"[{key}] is not a section; {_suggest(key, sections)}" for key in tables if key not in sections]
    settings = list(_all_settings(sections))
    made = {key: cls(**_values(key, cls, tables.get(key, {}), problems, settings)) for key, cls in sections.items()}
    problems += [f"{key}.{problem}" for key, section in made.items() for problem in section.problems()]
    if problems:
        raise ConfigError(source, problems)
    return made


def stated_settings(source: str, text: str, overrides: Iterable[str], section: str) -> dict[str, Any]:
    """The settings of one section that TOML text and overrides state, as they stand there.

    Raises ConfigError for text that is not TOML; what is wrong with a setting, `load_sections` says.
    """
    tables = {key: dict(table) for key, table in _parse(text, source).items() if isinstance(table, dict)}
    for override in overrides:
        _apply_override(tables, override, [])
    return tables.get(section, {})


def parse_settings(overrides: Iterable[str], sections: Mapping[str, type]) -> dict[str, dict[str, Any]]:
    """Parse ``section.key=value`` strings to section name -> settings, only those stated, typed as in the sections.

    Raises ConfigError listing every unknown section or key and every wrong type.
    """
    problems: list[str] = []
    tables: dict[str, dict[str, Any]] = {}
    for text in overrides:
        _apply_override(tables, text, problems)
    problems += [f"[{name}] is not a section; {_suggest(name, sections)}" for name in tables if name not in sections]
    settings = list(_all_settings(sections))
    stated = {
        name: _values(name, sections[name], table, problems, settings)
        for name, table in tables.items()
        if name in sections
    }
    if problems:
        raise ConfigError("--set", problems)
    return stated


def to_toml(experiment: Experiment) -> str:
    """Format the resolved experiment as TOML that load_experiment reads back to an equal one."""
    import tomli_w

    tables = {key: _plain(dataclasses.asdict(getattr(experiment, key))) for key in SECTIONS}
    return tomli_w.dumps(tables)


def _presets() -> Any:
    return resources.files("cli") / "presets"


def _layered(config: str, problems: list[str]) -> dict[str, dict[str, Any]]:
    path = Path(config)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ConfigError(config, ["no such file"])
        top = _parse(read_config(path), config)
    else:
        top = _parse(preset_text(config), config)
    base: dict[str, dict[str, Any]] = {}
    if "preset" in top:
        parent = top.pop("preset")
        if parent not in preset_names():
            problems.append(f"preset = {parent!r} is not a preset; {_suggest(str(parent), preset_names())}")
        else:
            base = _layered(parent, problems)
    for key, table in top.items():
        if isinstance(table, dict):
            _lay(base, key, table)
        else:
            problems.append(f"{key} = {table!r} is outside any section; sections: {', '.join(SECTIONS)}")
    return base


def _lay(tables: dict[str, dict[str, Any]], section: str, table: Mapping[str, Any]) -> None:
    """Lay a section's settings over those below."""
    below = tables.setdefault(section, {})
    if section == "model" and table.get("architecture", _architecture(below)) != _architecture(below):
        below.clear()
    below.update(table)


def _architecture(table: Mapping[str, Any]) -> Any:
    return table.get("architecture", DEFAULT_ARCHITECTURE)


def read_config(path: Path) -> str:
    """Read the text of a settings file. Raises ConfigError for a file that is no text."""
    data = path.read_bytes()
    found = misnomer(data)
    if found is not None and data.strip():
        raise ConfigError(str(path), [f"{found}; expected settings in TOML"])
    try:
        return decode_text(data)
    except ValueError as error:
        raise ConfigError(str(path), [str(error)]) from None


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(source, [f"not valid TOML: {error}"]) from None


def _apply_override(tables: dict[str, dict[str, Any]], text: str, problems: list[str]) -> None:
    key, equals, value = text.partition("=")
    section, dot, field = key.strip().partition(".")
    if not (equals and dot and section and field):
        problems.append(f"--set {text}: expected section.key=value")
        return
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    tables.setdefault(section, {})[field] = parsed


def _section(name: str, cls: type, table: Mapping[str, Any], problems: list[str]) -> Any:
    try:
        cls = section_class(name, table)
    except ValueError as error:
        problems.append(f"{name}.{error}")
        return cls()
    return cls(**_values(name, cls, table, problems, list(_all_settings({**SECTIONS, name: cls}))))


def _values(
    name: str, cls: type, table: Mapping[str, Any], problems: list[str], settings: Iterable[str]
) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(cls)}
    problems += [
        f"{name}.{key} is not a setting; {_suggest(f'{name}.{key}', settings, within=name)}"
        for key in table
        if key not in known
    ]
    values, wrong = typed(cls, {key: value for key, value in table.items() if key in known})
    problems += [f"{name}.{fault}" for fault in wrong]
    return values


def _all_settings(sections: Mapping[str, type]) -> Iterator[str]:
    for section, cls in sections.items():
        for field in dataclasses.fields(cls):
            yield f"{section}.{field.name}"


def _suggest(word: str, allowed: Iterable[str], within: str | None = None) -> str:
    allowed = list(allowed)
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    # A right key in the wrong section is the other common slip.
    same_key = [name for name in allowed if "." in word and name.split(".")[-1] == word.split(".")[-1]]
    if same_key:
        return f"did you mean {same_key[0]}?"
    if within is not None:
        names = [name.split(".", 1)[1] for name in allowed if name.startswith(f"{within}.")]
        return f"settings of [{within}]: {', '.join(names)}" if names else f"sections: {', '.join(SECTIONS)}"
    return f"allowed: {', '.join(allowed)}"


def _plain(value: Any) -> Any:
    """Convert tuples to lists and drop None, for TOML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
