"""Group norm, SiLU and convolution that keep one tensor for the backward pass.

Written out, `conv(silu(norm(x)))` saves four tensors of the size of `x`; these functions save `x` and
compute the cheap rest again when it is needed. Every entry point has a plain form (`recompute=False`)
that means the same, and the fast form falls back on it where it would not help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from voxelry.nn import nd, onednn, pointwise
from voxelry.nn.norm import standardise
from voxelry.nn.recipes import Recipe, attach, recipe_of
from voxelry.ops import winograd

__all__ = ["conv_of", "norm_silu", "norm_silu_conv"]

Grads = tuple[Tensor | None, ...]


def normed(
    x: Tensor, gamma: Tensor, beta: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, eps: float
) -> Tensor:
    """`norm(x) * (1 + scale) + shift` in the type of `x`; statistics are accumulated in single precision at least."""
    if scale is None or shift is None:
        return F.group_norm(x, groups, gamma.to(x.dtype), beta.to(x.dtype), eps)
    if len(x) == 1:  # in one pass: the factors of a channel are those of its only sample
        gamma, beta = gamma * (1 + scale[0]), beta * (1 + scale[0]) + shift[0]
        return F.group_norm(x, groups, gamma.to(x.dtype), beta.to(x.dtype), eps)
    h = F.group_norm(x, groups, gamma.to(x.dtype), beta.to(x.dtype), eps)
    return torch.addcmul(nd.per_channel(shift, h).to(x.dtype), h, nd.per_channel(1 + scale, h).to(x.dtype))


def norm_silu(
    x: Tensor,
    norm: nn.GroupNorm,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """`silu(norm(x) * (1 + scale) + shift) + residual`, `(B, C, *S)`; scale and shift are `(B, C)`."""
    how = norm.weight, norm.bias, scale, shift, norm.num_groups, norm.eps
    if recompute and torch.is_grad_enabled():
        return _NormSilu.apply(x, residual, *how)
    with nd.without_autocast(x):
        result = F.silu(normed(x, *how), inplace=not torch.is_grad_enabled())
        return result if residual is None else result + residual


def norm_silu_conv(
    x: Tensor,
    norm: nn.GroupNorm,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    padding: tuple[int, ...],
    standard: float | None = None,
    recompute: bool = False,
) -> Tensor:
    """`conv(silu(norm(x) * (1 + scale) + shift))`, `(B, C, *S) -> (B, C_out, *S)`.

    `standard` is the constant of weight standardisation, None for the weight as it is.
    """
    if recompute and torch.is_grad_enabled():
        how = norm.weight, norm.bias, scale, shift, weight, bias, norm.num_groups, norm.eps, padding, standard
        return _NormSiluConv.apply(x, *how)
    return nd.convolve(norm_silu(x, norm, scale, shift), effective(weight, standard), bias, padding=padding)


def conv_of(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: tuple[int, ...],
    standard: float | None = None,
    recompute: bool = False,
) -> Tensor:
    """Convolution of `x` and `skip` side by side; keeps neither their concatenation nor a standardised weight."""
    if recompute:
        return _Conv.apply(x, skip, weight, bias, padding, standard)
    x = x if skip is None else torch.cat((x, skip), dim=1)
    return nd.convolve(x, effective(weight, standard), bias, padding=padding)


def effective(weight: Tensor, standard: float | None) -> Tensor:
    """The kernels a convolution uses: standardised with that constant, or as they are."""
    return weight if standard is None else standardise(weight, standard)


class _Kernel:
    """The kernels that a convolution used, made again, and the way back to its weight.

    Args:
        weight: of the convolution.
        standard: see `effective`.
        dtype: that it computed in.
    """

    def __init__(self, weight: Tensor, standard: float | None, dtype: torch.dtype):
        self.leaf = weight.detach().requires_grad_()
        with torch.enable_grad():
            self._made = effective(self.leaf, standard)
        self.values = self._made.detach().to(dtype)

    def gradient(self, grad: Tensor) -> Tensor:
        """Of the weight, from that of `values`."""
        return torch.autograd.grad(self._made, self.leaf, grad.to(self._made.dtype))[0]


def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, ...], *, of_input: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `nd.convolve` for its input and its weight, each only if asked for."""
    if nd.half_is_unsafe(x, weight):
        grad, x, weight = grad.float(), x.float(), weight.float()
    grad, x, weight = nd.arranged(grad), nd.arranged(x), nd.arranged(weight)
    ones = [1] * len(padding)
    if pointwise.is_pointwise(x, weight, padding=padding):
        return pointwise.gradients(grad, x, weight, wanted=[of_input, of_weight])
    if winograd.pays(x, weight):
        return winograd.gradients(grad, x, weight, padding=padding, wanted=[of_input, of_weight])
    return onednn.gradients(grad, x, weight, stride=ones, padding=padding, wanted=[of_input, of_weight])


def per_channel_sum(grad: Tensor) -> Tensor:
    """Gradient of a convolution's bias."""
    return grad.sum(dim=(0, *range(2, grad.ndim)))


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Any, gamma: Tensor, beta: Tensor, scale: Any, shift: Any, *how: Any
    ) -> Tensor:
        ctx.how = how
        ctx.save_for_backward(x, gamma, beta, scale, shift)

        def again(parts: Sequence[Any]) -> Tensor:  # it must not hold `x`, which would outlive the backward pass
            with nd.without_autocast(parts[0]):
                return F.silu(normed(*parts, *how), inplace=True)

        inputs: tuple[Any, ...] = tuple(
            value if value is None else value.detach() for value in (x, gamma, beta, scale, shift)
        )
        result = again(inputs)
        if residual is None:
            return attach(result, Recipe(again, inputs))
        around = recipe_of(residual)
        return attach(
            result + residual, Recipe(lambda p: again(p[:5]).add_(around.make(p[5:])), (*inputs, *around.parts))
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:
        inputs = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[place] for place in (0, 2, 3, 4, 5)]
        before = _Before(inputs, wanted, ctx.how)
        d_x, *small = before.gradients(torch.ops.aten.silu_backward(grad, before.values))
        return d_x, grad if ctx.needs_input_grad[1] else None, *small, None, None


class _NormSiluConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, scale: Any, shift: Any, weight: Tensor, bias: Any, *how: Any
    ) -> Tensor:
        *ctx.how, ctx.padding, ctx.standard = how
        ctx.save_for_backward(x, gamma, beta, scale, shift, weight)
        with nd.without_autocast(x):
            active = F.silu(normed(x, gamma, beta, scale, shift, *ctx.how), inplace=True)
        return nd.convolve(active, effective(weight, ctx.standard), bias, padding=ctx.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:
        *inputs, weight = ctx.saved_tensors
        before = _Before(inputs, ctx.needs_input_grad[:5], ctx.how)
        kernel = _Kernel(weight, ctx.standard, grad.dtype)
        d_bias = per_channel_sum(grad) if ctx.needs_input_grad[6] else None
        d_weight = None
        if ctx.needs_input_grad[5]:
            active = F.silu(before.values).to(grad.dtype)
            d_kernel = conv_backward(grad, active, kernel.values, ctx.padding, of_input=False, of_weight=True)[1]
            assert d_kernel is not None
            d_weight = kernel.gradient(d_kernel)
            del active  # before the gradient of the same size is made
        like = before.values.to(grad.dtype)  # of the input only the size counts here
        found = conv_backward(grad, like, kernel.values, ctx.padding, of_input=True, of_weight=False)[0]
        assert found is not None
        found = found.to(before.values.dtype)
        torch.ops.aten.silu_backward.grad_input(found, before.values, grad_input=found)
        return *before.gradients(found), d_weight, d_bias, None, None, None, None


class _Before:
    """What a SiLU was applied to, made again, and the way back from it.

    Args:
        inputs: of `normed`: x, gamma, beta, scale and shift.
        wanted: of which of them a gradient is asked for.
        how: groups and the constant of the norm.
    """

    def __init__(self, inputs: Sequence[Tensor | None], wanted: Sequence[bool], how: Sequence[Any]):
        self.leaves = [
            None if value is None else value.detach().requires_grad_(asked)
            for value, asked in zip(inputs, wanted, strict=True)
        ]
        self.wanted = wanted
        x = self.leaves[0]
        assert x is not None
        with torch.enable_grad(), nd.without_autocast(x):
            self._result = normed(*self.leaves, *how)  # type: ignore[arg-type]
        self.values = self._result.detach()

    def gradients(self, grad: Tensor) -> list[Tensor | None]:
        """Of each input, from that of `values`."""
        leaves = [leaf for leaf, asked in zip(self.leaves, self.wanted, strict=True) if leaf is not None and asked]
        found = iter(torch.autograd.grad(self._result, leaves, grad) if leaves else ())
        return [
            next(found) if leaf is not None and asked else None
            for leaf, asked in zip(self.leaves, self.wanted, strict=True)
        ]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, skip: Any, weight: Tensor, bias: Any, padding: tuple[int, ...], standard: Any
    ) -> Tensor:
        ctx.padding, ctx.standard = padding, standard
        dtype = nd.autocast_dtype(x) or x.dtype
        x, skip = x.to(dtype), None if skip is None else skip.to(dtype)
        recipes = [recipe_of(part) for part in (x, skip) if part is not None]
        ctx.recipes = [(recipe.make, len(recipe.parts)) for recipe in recipes]
        ctx.save_for_backward(weight, *(part for recipe in recipes for part in recipe.parts))
        whole = x if skip is None else torch.cat((x, skip), dim=1)
        kernel = effective(weight, standard).to(dtype)
        with nd.without_autocast(x):
            result = nd.convolve(whole, kernel, None if bias is None else bias.to(dtype), padding=padding)
        if any(padding) or bias is None or dtype != weight.dtype:
            return result

        def again(parts: Sequence[Tensor]) -> Tensor:
            inputs = made(ctx_recipes, parts[2:])
            return nd.convolve(torch.cat(inputs, dim=1), parts[0], parts[1], padding=padding)

        ctx_recipes = ctx.recipes  # the recipe must not hold the node itself
        held = (weight.detach(), bias.detach(), *(part for recipe in recipes for part in recipe.parts))
        return attach(result, Recipe(again, held)) if standard is None else result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:
        weight, *saved = ctx.saved_tensors
        kernel = _Kernel(weight, ctx.standard, grad.dtype)
        d_inputs: list[Tensor | None] = []
        d_kernels: list[Tensor] = []
        channel = start = 0
        for place, (make, count) in enumerate(ctx.recipes):
            part = make(saved[start : start + count])
            share = nd.arranged(kernel.values[:, channel : channel + part.shape[1]])
            start, channel = start + count, channel + part.shape[1]
            d_input, d_kernel = conv_backward(
                grad, part, share, ctx.padding, of_input=ctx.needs_input_grad[place], of_weight=True
            )
            assert d_kernel is not None
            d_inputs.append(None if d_input is None else d_input.to(part.dtype))
            d_kernels.append(d_kernel)
        d_weight = kernel.gradient(torch.cat(d_kernels, dim=1))
        d_bias = per_channel_sum(grad) if ctx.needs_input_grad[3] else None
        return d_inputs[0], d_inputs[1] if len(d_inputs) > 1 else None, d_weight, d_bias, None, None


def made(recipes: Sequence[tuple[Callable[[Sequence[Tensor]], Tensor], int]], parts: Sequence[Tensor]) -> list[Tensor]:
    """The results of recipes whose parts stand one after another."""
    results = []
    for make, count in recipes:
        results.append(make(parts[:count]))
        parts = parts[count:]
    return results
