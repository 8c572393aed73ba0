"""Types and bounds of settings, which stand beside them, and the check of both.

A section of settings is a frozen dataclass; a setting's annotation gives its type and its range:
`points: Annotated[int, Ge(32), Le(MAX_POINTS)] = 2048`. pydantic checks them strictly (true is not a number, 1.5 not an
integer, infinity and NaN are refused) and all at once, here in a dictionary of the dataclass's fields, so that a
section can be built before it is valid and other checks can follow. pydantic is loaded by the first check.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

__all__ = ["device_problems", "faults", "typed"]

_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_MANY = {int: "whole numbers", float: "numbers", bool: "true and false", str: "texts"}
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "too_short")  # pydantic's names


def faults(section: Any) -> Iterator[str]:
    """Name every setting of a section that is of another type or out of its bounds: `name = value is ...`."""
    table = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    _, errors = _check(type(section), table)
    yield from dict.fromkeys(text for _, _, text in errors)


def typed(cls: type, table: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Take settings from a table of TOML or JSON, which has lists for tuples and may have whole numbers for others.

    cls    a section's dataclass
    table  values by names of its fields
    -> (values of the right types, faults of type). What is out of bounds is among the values: `faults` names it.

    Raises KeyError for a name that is no setting of the section.
    """
    values, errors = _check(cls, table)
    wrong = [(name, text) for name, kind, text in errors if kind not in _BOUNDS]
    bad = {name for name, _ in wrong}
    return {name: value for name, value in values.items() if name not in bad}, [text for _, text in wrong]


def device_problems(device: str) -> Iterator[str]:
    """Yield what is wrong with a device's name, without checking that the device exists."""
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (":" in device and not (kind == "cuda" and index.isdecimal())):
        yield f"device = {device!r} is none of auto, cpu, cuda, cuda:N"


def _check(cls: type, table: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """-> (values, (name, pydantic's name of the error, what is wrong with it) of each fault)."""
    from pydantic import ValidationError

    adapter, hints = _adapter(cls)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    try:
        return adapter.validate_python(values), []
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
    errors = []
    for fault in found:
        name, place = str(fault["loc"][0]), list(fault["loc"][1:])
        text = f"{name} = {table[name]!r} {_wrong(hints[name], values[name], fault['type'], place)}"
        errors.append((name, fault["type"], text))
    return values, errors


@cache
def _adapter(cls: type) -> tuple[Any, dict[str, Any]]:
    """-> pydantic's validator of a dictionary of a dataclass's fields, each of which may be absent; the annotations."""
    from pydantic import ConfigDict, TypeAdapter
    from typing_extensions import TypedDict

    every = get_type_hints(cls, include_extras=True)
    hints = {field.name: every[field.name] for field in dataclasses.fields(cls)}
    make: Any = TypedDict
    fields = make(cls.__name__, hints, total=False)
    fields.__pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return TypeAdapter(fields), hints


def _wrong(hint: Any, value: Any, kind: str, place: list[Any]) -> str:
    """Format pydantic's finding in our words, continuing `name = value`."""
    if get_origin(hint) is Annotated and place:
        hint = get_args(hint)[0]  # bounds of the whole list
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    args = get_args(plain)
    if kind == "too_short":
        return "is empty"
    if kind == "missing" or kind == "too_long":
        return f"has {len(value)} entries, not {len(args)}"
    if place:
        at = int(place[0])
        return f"has {value[at]!r}, which {_wrong(args[0 if args[-1] is Ellipsis else at], value[at], kind, place[1:])}"
    if get_origin(plain) is Literal:
        return f"is none of {', '.join(map(str, args))}"
    if get_origin(plain) is tuple:
        element = get_args(args[0])[0] if get_origin(args[0]) is Annotated else args[0]
        return f"is not a list of {_MANY[element]}"
    if kind in _BOUNDS:
        return _outside(get_args(hint)[1:])
    if kind == "finite_number" and value == value:
        return "is infinite"
    return f"is not {_TYPES[plain]}"


def _outside(bounds: tuple[Any, ...]) -> str:
    low = next((bound for bound in bounds if isinstance(bound, Ge | Gt)), None)
    high = next((bound for bound in bounds if isinstance(bound, Le | Lt)), None)
    least: Any = low.ge if isinstance(low, Ge) else low.gt if low else None
    most: Any = high.le if isinstance(high, Le) else high.lt if high else None
    if low and high:
        excluded = [_number(least)] * isinstance(low, Gt) + [_number(most)] * isinstance(high, Lt)
        return f"is outside {_number(least)}..{_number(most)}" + (
            f" ({', '.join(excluded)} excluded)" if excluded else ""
        )
    if high:
        return f"is {'more than' if isinstance(high, Le) else 'not smaller than'} {_number(most)}"
    if least == 0:
        return "is not positive" if isinstance(low, Gt) else "is negative"
    return f"is {'not more' if isinstance(low, Gt) else 'smaller'} than {_number(least)}"


def _number(value: Any) -> str:
    if value > 2**31 and value & (value + 1) == 0:
        return f"2^{value.bit_length()}-1"
    return str(value)
