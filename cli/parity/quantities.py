"""Comparisons that several sections make."""

from collections.abc import Iterator

import numpy as np
from torch import nn

from cli.parity.compare import NOISE_BELOW, Row, compare, same
from cli.parity.recorded import Arrays

__all__ = ["by_gradient", "gradient_norms", "names_of"]


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
    without = [[name for name, norm in zip(parameters, values, strict=True) if np.isnan(norm)] for values in (ours, recorded)]
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
