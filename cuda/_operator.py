"""Operators of torch: `torch.ops.i2p.NAME`, a function for each device, and what torch.compile and autograd need."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from cuda.untraced import untraced

__all__ = ["Operator", "operator"]

F = TypeVar("F", bound=Callable[..., Any])


class Operator:
    """One operator, called as the functions that compute it.

    As torch.library.custom_op makes, but for two things. A first call does not import torch's compiler, which takes
    1.5 s in every process. That no result is a view of an argument is not checked at each call; test_operators.py does.
    """

    def __init__(self, name: str, function: Callable[..., Any], device: str):
        self._name = f"i2p::{name}"
        self._backward: Callable[..., Any] | None = None
        self._keep: Callable[..., None] | None = None
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(self._name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.register_autograd(self._name, self._differentiate, setup_context=self._set_up)
        self.register_kernel(device)(function)
        self._call = getattr(torch.ops.i2p, name).default

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def register_kernel(self, device: str) -> Callable[[F], F]:
        """Decorate the function that computes it on a further type of device; it is never traced."""

        def register(function: F) -> F:
            torch.library.impl(self._name, device, untraced(function))
            return function

        return register

    def register_fake(self, function: F) -> F:
        """Decorate the function that gives results of the right shapes and dtypes, without values."""
        torch.library.register_fake(self._name, function)
        return function

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Give it a gradient, as torch.library.register_autograd takes it; without one, a backward pass is refused."""
        self._backward, self._keep = backward, setup_context

    def _set_up(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if self._keep is not None:
            self._keep(ctx, inputs, output)

    def _differentiate(self, ctx: Any, *gradients: Any) -> Any:
        if self._backward is None:
            raise RuntimeError(f"{self._name} has no gradient; detach its arguments or its results")
        return self._backward(ctx, *gradients)


def operator(name: str, *, device: str = "cpu") -> Callable[[Callable[..., Any]], Operator]:
    """Decorate the function that computes the operator `name` on a type of device, or on all: "default".

    Its annotations are the operator's schema.
    """
    return lambda function: Operator(name, function, device)
