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

from voxelry.nn import nd, onednn
from voxelry.nn.lean import rows
from voxelry.nn.norm import standardise
from voxelry.nn.recipes import Recipe, attach, recipe_of

__all__ = ["conv_of", "norm_silu", "norm_silu_conv"]

Grads = tuple[Tensor | None, ...]


def plain_norm_silu(x: Tensor, norm: nn.GroupNorm, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """`silu(norm(x) * (1 + scale) + shift)` as autograd sees it."""
    h = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    if scale is not None and shift is not None:
        h = h * (nd.per_channel(scale, h) + 1) + nd.per_channel(shift, h)
    return F.silu(h)


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
    if recompute and in_rows(x):
        return _NormSilu.apply(x, norm.weight, norm.bias, scale, shift, residual, norm.num_groups, norm.eps)
    if recompute:
        result = _Again.apply(_silu_of_norm, x, norm.weight, norm.bias, scale, shift, norm.num_groups, norm.eps)
    else:
        result = plain_norm_silu(x, norm, scale, shift)
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
    if recompute and in_rows(x):
        return _NormSiluConv.apply(
            x, norm.weight, norm.bias, scale, shift, weight, bias, norm.num_groups, norm.eps, padding, standard
        )
    if recompute:
        return _Again.apply(
            _conv_of_silu_of_norm, x, norm.weight, norm.bias, scale, shift, norm.num_groups, norm.eps, weight, bias,
            padding, standard,
        )  # fmt: skip
    return nd.convolve(plain_norm_silu(x, norm, scale, shift), effective(weight, standard), bias, padding=padding)


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


def effective_backward(grad: Tensor, weight: Tensor, standard: float | None) -> Tensor:
    """Gradient of `effective` for the weight, by running it again: a weight is small beside a feature map."""
    if standard is None:
        return grad
    with torch.enable_grad():
        leaf = weight.detach().requires_grad_()
        return torch.autograd.grad(standardise(leaf, standard), leaf, grad.to(leaf.dtype))[0]


def in_rows(x: Tensor) -> bool:
    """Whether the row kernels handle `x`: on the CPU, single or double precision, no autocast."""
    precise = x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cpu" and precise and not torch.is_autocast_enabled("cpu")


def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, ...], *, of_input: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `nd.convolve` for its input and its weight, each only if asked for."""
    if nd.half_is_unsafe(x, weight):
        grad, x, weight = grad.float(), x.float(), weight.float()
    ones = [1] * len(padding)
    return onednn.gradients(grad, x, weight, stride=ones, padding=padding, wanted=[of_input, of_weight])


def per_channel_sum(grad: Tensor) -> Tensor:
    """Gradient of a convolution's bias."""
    return grad.sum(dim=(0, *range(2, grad.ndim)))


def fold_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Group normalisation and the scale and shift after it as one factor and offset per channel.

    Returns:
        factor `(B, C)`, offset `(B, C)` in the dtype of `x`; mean and 1/deviation per group `(B, G)` in float64.
    """
    mean, variance = rows.sums(x)
    grouped = mean.unflatten(1, (groups, -1))
    centre = grouped.mean(dim=2)
    spread = variance.unflatten(1, (groups, -1)).mean(dim=2) + grouped.var(dim=2, correction=0)
    rstd = (spread + eps).rsqrt()
    size = gamma.numel() // groups
    factor = rstd.repeat_interleave(size, dim=1) * gamma.double()
    offset = beta.double() - centre.repeat_interleave(size, dim=1) * factor
    if scale is not None and shift is not None:
        factor, offset = factor * (1 + scale.double()), offset * (1 + scale.double()) + shift.double()
    return factor.to(x.dtype), offset.to(x.dtype), centre, rstd


def norm_gradients(
    plain: Tensor,
    weighted: Tensor,
    voxels: int,
    gamma: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    centre: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Grads]:
    """Chain rule through `fold_norm`, from the sums of the gradient and of the gradient times `x`.

    Returns:
        slope and offset `(B, C)` of what the statistics add to the gradient of `x`; gradients of gamma,
        beta, scale and shift.
    """
    groups = rstd.shape[1]
    size = gamma.numel() // groups
    mean_c, rstd_c = (value.repeat_interleave(size, dim=1) for value in (centre, rstd))
    gain = torch.ones_like(plain) if scale is None else 1 + scale.double()
    normal = (weighted - plain * mean_c) * rstd_c  # sum of gradient times normalised value
    d_gamma, d_beta = (normal * gain).sum(dim=0), (plain * gain).sum(dim=0)
    d_scale = None if scale is None else (normal * gamma.double() + plain * beta.double()).to(scale.dtype)
    d_shift = None if shift is None else plain.to(shift.dtype)
    through = gamma.double() * gain
    count = voxels * size
    along = (normal * through).unflatten(1, (groups, size)).sum(dim=2) / count
    across = (plain * through).unflatten(1, (groups, size)).sum(dim=2) / count
    slope = -(rstd.square() * along)
    offset = -(rstd * across) - slope * centre
    slope, offset = (value.repeat_interleave(size, dim=1).to(gamma.dtype) for value in (slope, offset))
    return slope, offset, (d_gamma.to(gamma.dtype), d_beta.to(beta.dtype), d_scale, d_shift)


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, scale: Any, shift: Any, residual: Any, *how: Any
    ) -> Tensor:
        x = rows.dense(x)
        factor, offset, centre, rstd = fold_norm(x, gamma, beta, scale, shift, *how)
        ctx.save_for_backward(x, gamma, beta, scale, shift, factor, offset, centre, rstd)
        result = rows.silu_affine(x, factor, offset, residual)
        if residual is None:
            return attach(result, Recipe(lambda p: rows.silu_affine(p[0], p[1], p[2]), (x.detach(), factor, offset)))
        around = recipe_of(residual)
        return attach(
            result,
            Recipe(
                lambda p: rows.silu_affine(p[0], p[1], p[2], around.make(p[3:])),
                (x.detach(), factor, offset, *around.parts),
            ),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:
        x, gamma, beta, scale, shift, factor, offset, centre, rstd = ctx.saved_tensors
        given = rows.dense(grad)
        inner = rows.empty_like_rows(x)
        plain, weighted = rows.silu_affine_backward(given, x, factor, offset, inner)
        slope, constant, small = norm_gradients(
            plain, weighted, x[0, 0].numel(), gamma, beta, scale, shift, centre, rstd
        )
        inner = rows.affine_backward(inner, x, factor, slope, constant)
        return inner, *small, grad if ctx.needs_input_grad[5] else None, None, None


class _NormSiluConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, scale: Any, shift: Any, weight: Tensor, bias: Any, *how: Any
    ) -> Tensor:
        x = rows.dense(x)
        groups, eps, ctx.padding, ctx.standard = how
        factor, offset, centre, rstd = fold_norm(x, gamma, beta, scale, shift, groups, eps)
        ctx.save_for_backward(x, gamma, beta, scale, shift, weight, factor, offset, centre, rstd)
        kernel = effective(weight, ctx.standard)
        return nd.convolve(rows.silu_affine(x, factor, offset), kernel, bias, padding=ctx.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:
        x, gamma, beta, scale, shift, weight, factor, offset, centre, rstd = ctx.saved_tensors
        grad = rows.dense(grad)
        kernel = effective(weight, ctx.standard)
        d_bias = per_channel_sum(grad) if ctx.needs_input_grad[6] else None
        d_weight = None
        if ctx.needs_input_grad[5]:
            active = rows.silu_affine(x, factor, offset)
            d_kernel = conv_backward(grad, active, kernel, ctx.padding, of_input=False, of_weight=True)[1]
            assert d_kernel is not None
            d_weight = effective_backward(d_kernel, weight, ctx.standard)
            del active  # before the gradient of the same size is made
        found = conv_backward(grad, x, kernel, ctx.padding, of_input=True, of_weight=False)[0]
        assert found is not None
        inner = rows.dense(found)
        plain, weighted = rows.silu_affine_backward(inner, x, factor, offset, inner)
        slope, constant, small = norm_gradients(
            plain, weighted, x[0, 0].numel(), gamma, beta, scale, shift, centre, rstd
        )
        inner = rows.affine_backward(inner, x, factor, slope, constant)
        return inner, *small, d_weight, d_bias, None, None, None, None


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
        kernel = effective(weight, ctx.standard).to(grad.dtype)
        d_inputs: list[Tensor | None] = []
        d_kernels: list[Tensor] = []
        channel = start = 0
        for place, (make, count) in enumerate(ctx.recipes):
            part = make(saved[start : start + count])
            share = kernel[:, channel : channel + part.shape[1]].contiguous()
            start, channel = start + count, channel + part.shape[1]
            d_input, d_kernel = conv_backward(
                grad, part, share, ctx.padding, of_input=ctx.needs_input_grad[place], of_weight=True
            )
            assert d_kernel is not None
            d_inputs.append(None if d_input is None else d_input.to(part.dtype))
            d_kernels.append(d_kernel)
        d_weight = effective_backward(torch.cat(d_kernels, dim=1), weight, ctx.standard).to(weight.dtype)
        d_bias = per_channel_sum(grad) if ctx.needs_input_grad[3] else None
        return d_inputs[0], d_inputs[1] if len(d_inputs) > 1 else None, d_weight, d_bias, None, None


def made(recipes: Sequence[tuple[Callable[[Sequence[Tensor]], Tensor], int]], parts: Sequence[Tensor]) -> list[Tensor]:
    """The results of recipes whose parts stand one after another."""
    results = []
    for make, count in recipes:
        results.append(make(parts[:count]))
        parts = parts[count:]
    return results


def _silu_of_norm(x: Tensor, gamma: Tensor, beta: Tensor, scale: Any, shift: Any, groups: int, eps: float) -> Tensor:
    """The plain form in the dtype of `x`: statistics are accumulated in single precision all the same."""
    h = F.group_norm(x, groups, gamma.to(x.dtype), beta.to(x.dtype), eps)
    if scale is not None and shift is not None:
        h = h * (nd.per_channel(scale, h) + 1).to(x.dtype) + nd.per_channel(shift, h).to(x.dtype)
    return F.silu(h)


def _conv_of_silu_of_norm(x: Tensor, *rest: Any) -> Tensor:
    *norm, weight, bias, padding, standard = rest
    bias = None if bias is None else bias.to(x.dtype)
    return nd.convolve(_silu_of_norm(x, *norm), effective(weight, standard).to(x.dtype), bias, padding=padding)


class _Again(torch.autograd.Function):
    """Run a function without a graph, and again with one in the backward pass."""

    @staticmethod
    def forward(ctx: Any, function: Any, *arguments: Any) -> Tensor:
        ctx.function = function
        ctx.places = [place for place, value in enumerate(arguments) if isinstance(value, Tensor)]
        ctx.others = [None if isinstance(value, Tensor) else value for value in arguments]
        ctx.save_for_backward(*(arguments[place] for place in ctx.places))
        with nd.without_autocast(arguments[0]):
            return function(*arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:
        arguments = list(ctx.others)
        wanted = []
        for place, value in zip(ctx.places, ctx.saved_tensors, strict=True):
            arguments[place] = value.detach().requires_grad_(ctx.needs_input_grad[place + 1])
            wanted += [place] if ctx.needs_input_grad[place + 1] else []
        with torch.enable_grad(), nd.without_autocast(grad):
            result = ctx.function(*arguments)
        found = dict(
            zip(wanted, torch.autograd.grad(result, [arguments[place] for place in wanted], grad), strict=True)
        )
        return None, *(found.get(place) for place in range(len(arguments)))
