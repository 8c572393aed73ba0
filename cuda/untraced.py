"""Functions that torch.compile leaves alone, at no cost where nothing is compiled."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["untraced"]

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that torch.compile must not trace, nor anything that it calls.

    As torch.compiler.disable, which imports torch's compiler where it is applied: 1.5 s in every process that imports a
    model. Here it is applied by the first call after that import, before which nothing can be compiled.
    """
    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call
