"""Comparisons that several sections make."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.parity.compare import NOISE_BELOW, OK, Row, compare, same
from benchmarks.parity.recorded import Arrays

__all__ = ["by_gradient", "doubled", "gradient_norms", "names_of", "settled"]


def settled(rows: Iterable[Row], in_float64: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Rows about gradients, and what to make of those that are past their tolerance.

    rows        from our float32 run.
    in_float64  makes the same rows from a run with everything but the geometry in float64; called only when needed.

    Where two entries of a maximum are equal up to rounding, float32 may pick either, and the gradient goes elsewhere.
    So a row past its tolerance is accepted, with a note, if float64 agrees with what was recorded. Where it does not,
    the difference is no rounding, and the row stands.
    """
    first = list(rows)
    if all(row.passed for row in first):
        yield from first
        return
    for row, exact in zip(first, in_float64(), strict=True):
        if row.passed or exact.verdict != OK:
            yield row
        else:
            yield replace(
                exact, note=f"in float64; in float32 {row.note}, by up to {row.relative:.1e}: rounding flips a maximum"
            )


def doubled(value: Any) -> Any:
    """A tensor, or lists and named tuples of them, with float32 made float64; all else as it is."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    if isinstance(value, list):
        return [doubled(item) for item in value]
    if isinstance(value, tuple):
        return type(value)(*map(doubled, value))
    return value


def gradient_norms(model: nn.Module, arrays: Arrays, names: str, norms: str) -> Iterator[Row]:
    """Rows for the L2 norm of every parameter's gradient, after a backward pass.

    names, norms  the arrays with the parameters' names, and the norms; NaN: no gradient.
    """
    parameters = dict(model.named_parameters())
    recorded_names = names_of(arrays, names)
    yield same("parameters' names, in order", list(parameters), recorded_names)
    gradients = {name: value.grad for name, value in parameters.items()}
    if list(parameters) != recorded_names:
        return  # what follows goes by position
    recorded = arrays[norms]
    ours = np.array([np.nan if g is None else g.double().norm().item() for g in gradients.values()])
    without = [
        [name for name, norm in zip(parameters, values, strict=True) if np.isnan(norm)] for values in (ours, recorded)
    ]
    yield same("parameters without a gradient", *without)
    there = ~np.isnan(recorded)
    yield from by_gradient(
        "gradient norms", ours[there], recorded[there], recorded[there], "gradient norm", "gradient noise"
    )


def by_gradient(
    what: str, ours: np.ndarray, recorded: np.ndarray, gradients: np.ndarray, tolerance: str, noise: str
) -> Iterator[Row]:
    """Compare one number a parameter, in two rows: where its recorded gradient is more than noise, and where not."""
    large = gradients > NOISE_BELOW  # False for NaN
    yield compare(f"{what}, gradient above {NOISE_BELOW:g}", ours[large], recorded[large], tolerance)
    if not large.all():
        yield compare(f"{what}, the others", ours[~large], recorded[~large], noise)


def names_of(arrays: Arrays, name: str) -> list[str]:
    """A recorded list of names."""
    return [str(item) for item in arrays[name]]
