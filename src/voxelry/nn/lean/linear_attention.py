"""Linear attention in passes over the voxels that keep only its input for the backward pass.

Written out at 64 channels and 4 heads of 32, queries, keys and values are six times the input, their
softmaxes four times. Here they exist for one chunk of voxels at a time; the passes exchange small
tables only. Names: `rows` is voxels × channels of one sample, `inner` = heads × head_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from voxelry.nn.lean import rows
from voxelry.nn.lean.folded import Fold, fold_norm, norm_gradients
from voxelry.nn.recipes import recipe_of

__all__ = ["Weights", "linear_attention"]


class Head(NamedTuple):
    """What the passes of one sample share."""

    query: Tensor  # (inner, C), the norm before folded in
    query_bias: Tensor  # (inner,)
    key_value: Tensor  # (2 * inner, C), likewise
    key_value_bias: Tensor
    heads: int

    @property
    def inner(self) -> int:
        """Heads × channels of a head."""
        return self.query.shape[0]

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.inner // self.heads

    def queries(self, block: Tensor) -> Tensor:
        """Softmax of the queries over the channels of a head, `(n, C) -> (n, inner)`."""
        raw = torch.addmm(self.query_bias, block, self.query.t())
        return raw.unflatten(1, (self.heads, -1)).softmax(dim=2).flatten(1)

    def keys_values(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Raw keys and values, `(n, C) -> (n, inner), (n, inner)`."""
        raw = torch.addmm(self.key_value_bias, block, self.key_value.t())
        return raw[:, : self.inner], raw[:, self.inner :]

    def by_head(self, block: Tensor) -> Tensor:
        """`(n, inner) -> (heads, n, head_dim)`."""
        return block.unflatten(1, (self.heads, -1)).transpose(0, 1)


def make_head(qkv: Tensor, bias: Tensor | None, heads: int, factor: Tensor, offset: Tensor) -> Head:
    """Fold the normalisation of one sample into the projections."""
    inner = qkv.shape[0] // 3
    weight, shift = qkv * factor, qkv @ offset
    shift = shift if bias is None else shift + bias
    return Head(weight[:inner], shift[:inner], weight[inner:], shift[inner:], heads)


def summarise(head: Head, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Key statistics and the table of values: maxima and sums `(inner,)`, table `(heads, head_dim, head_dim)`.

    The softmax over all voxels is built up chunk by chunk (Milakov & Gimelshein 2018, arXiv:1805.02867).
    """
    highest = matrix.new_full((head.inner,), -torch.inf)
    total = matrix.new_zeros(head.inner)
    table = matrix.new_zeros(head.heads, head.head_dim, head.head_dim)
    for chunk in rows.row_chunks(matrix.shape[0], 2 * head.inner):
        keys, values = head.keys_values(matrix[chunk])
        raised = torch.maximum(highest, keys.amax(dim=0))
        fade = (highest - raised).exp()
        powers = (keys - raised).exp_()
        total = total * fade + powers.sum(dim=0)
        table = table * fade.view(head.heads, -1, 1) + head.by_head(powers).transpose(1, 2) @ head.by_head(values)
        highest = raised
    return highest, total, table / total.view(head.heads, -1, 1)


def reading(table: Tensor, out: Tensor) -> Tensor:
    """Table and output projection in one matrix, `(heads, d, e), (C, inner) -> (inner, C)`, query scale included."""
    heads, size, _ = table.shape
    per_head = out.t().reshape(heads, size, -1)
    return (table @ per_head).flatten(0, 1) * size**-0.5


class Weights(NamedTuple):
    """Of linear attention between two group normalisations."""

    gamma: Tensor  # scale of the first normalisation, (C,)
    beta: Tensor  # its shift
    qkv: Tensor  # projection to queries, keys and values, (3 * inner, C), heads outermost in each third
    bias: Tensor | None  # its bias
    out: Tensor  # projection back, (C, inner)
    out_bias: Tensor  # its bias
    out_gamma: Tensor  # scale of the last normalisation, (C,)
    out_beta: Tensor  # its shift


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int, groups: int, eps: float, *weights: Tensor | None) -> Tensor:
        recipe = recipe_of(x)
        x = rows.dense(x)
        w = Weights(*weights)  # type: ignore[arg-type]
        before = fold_norm(x, w.gamma, w.beta, groups, eps)
        result = rows.empty_like_rows(x)
        tables = []
        for source, target, *fold in zip(rows.as_rows(x), rows.as_rows(result), *before[:2], strict=True):
            head = make_head(w.qkv, w.bias, heads, *fold)
            highest, total, table = summarise(head, source)
            read = reading(table, w.out)
            for chunk in rows.row_chunks(source.shape[0], head.inner):
                torch.addmm(w.out_bias, head.queries(source[chunk]), read, out=target[chunk])
            tables.append((highest, total, table))
        after = fold_norm(result, w.out_gamma, w.out_beta, groups, eps)
        for source, target, scale, shift in zip(rows.as_rows(x), rows.as_rows(result), *after[:2], strict=True):
            for chunk in rows.row_chunks(*source.shape):
                target[chunk].mul_(scale).add_(shift).add_(source[chunk])
        ctx.heads = heads
        ctx.make = recipe.make
        columns = (torch.stack(values) for values in zip(*tables, strict=True))
        ctx.save_for_backward(*weights, *before, *after, *columns, *recipe.parts)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        w, before, after = Weights(*saved[:8]), Fold(*saved[8:12]), Fold(*saved[12:16])
        highest, total, table, *parts = saved[16:]
        x, grad = rows.dense(ctx.make(parts)), rows.dense(grad)
        voxels, d_x = x[0, 0].numel(), rows.empty_like_rows(x)
        samples = [
            _Back(make_head(w.qkv, w.bias, ctx.heads, *fold), reading(each, w.out), *matrices)
            for *fold, each, matrices in zip(
                *before[:2], table, zip(*map(rows.as_rows, (x, grad, d_x)), strict=True), strict=True
            )
        ]
        plain, weighted = (torch.stack(sums) for sums in zip(*(one.sums(w.out_bias) for one in samples), strict=True))
        slope, constant, d_out_gamma, d_out_beta = norm_gradients(
            plain, weighted, voxels, w.out_gamma, after.centre, after.rstd
        )
        d_qkv, d_out, d_out_bias = (torch.zeros_like(each) for each in (w.qkv, w.out, w.out_bias))
        d_bias = w.qkv.new_zeros(len(w.qkv))
        sums = []
        for sample, one in enumerate(samples):
            affine = slope[sample], constant[sample], after.factor[sample]
            one.through_queries(w, affine, d_out_bias)
            d_table, through_out = one.through_reading(table[sample], w.out)
            d_out += through_out
            sums.append(one.through_values(w, d_table, table[sample], highest[sample], total[sample]))
            d_qkv += one.d_weight * before.factor[sample] + one.d_shift[:, None] * before.offset[sample]
            d_bias += one.d_shift
        # back through the normalisation at the start, and the residual
        plain, weighted = (torch.stack(each) for each in zip(*sums, strict=True))
        slope, constant, d_gamma, d_beta = norm_gradients(plain, weighted, voxels, w.gamma, before.centre, before.rstd)
        d_x = rows.affine_backward(d_x, x, before.factor, slope, constant)
        d_x += grad
        gradients = Weights(
            d_gamma, d_beta, d_qkv, None if w.bias is None else d_bias, d_out, d_out_bias, d_out_gamma, d_out_beta
        )
        return d_x, None, None, None, *gradients


class _Back:
    """The passes back through one sample; gradients of its folded weights add up in `d_weight` and `d_shift`.

    Args:
        head, read: of the sample.
        source, given, target: its input, the gradient of its result, and where that of its input goes, all
            `(voxels, C)`.
    """

    def __init__(self, head: Head, read: Tensor, source: Tensor, given: Tensor, target: Tensor):
        self.head, self.read = head, read
        self.source, self.given, self.target = source, given, target
        self.d_weight = source.new_zeros(3 * head.inner, source.shape[1])
        self.d_shift = source.new_zeros(3 * head.inner)
        self.d_read = torch.zeros_like(read)

    def sums(self, out_bias: Tensor) -> tuple[Tensor, Tensor]:
        """For the normalisation at the end: sums over the voxels of the gradient, and of it times that one's input."""
        plain, weighted = (torch.zeros(self.source.shape[1], dtype=torch.float64) for _ in range(2))
        for chunk in rows.row_chunks(len(self.source), self.head.inner):
            mixed = torch.addmm(out_bias, self.head.queries(self.source[chunk]), self.read)
            plain += self.given[chunk].sum(dim=0)
            weighted += mixed.mul_(self.given[chunk]).sum(dim=0)
        return plain, weighted

    def through_queries(self, w: Weights, affine: tuple[Tensor, Tensor, Tensor], d_out_bias: Tensor) -> None:
        """Back through the output projection and the queries.

        Args:
            affine: the last normalisation's slope, constant and factor, `(C,)` each.
            d_out_bias: what the gradient of the projection's bias is added to.
        """
        slope, constant, factor = affine
        head, inner = self.head, self.head.inner
        for chunk in rows.row_chunks(len(self.source), inner):
            block = self.source[chunk]
            query = head.queries(block)
            d_mixed = torch.addmm(w.out_bias, query, self.read).mul_(slope).add_(constant)
            d_mixed.addcmul_(self.given[chunk], factor)
            d_out_bias += d_mixed.sum(dim=0)
            self.d_read.addmm_(query.t(), d_mixed)
            d_query = (d_mixed @ self.read.t()).unflatten(1, (head.heads, -1))
            split = query.unflatten(1, (head.heads, -1))
            d_query = (d_query - (d_query * split).sum(dim=2, keepdim=True)).mul_(split).flatten(1)
            self.d_weight[:inner].addmm_(d_query.t(), block)
            self.d_shift[:inner] += d_query.sum(dim=0)
            torch.mm(d_query, w.qkv[:inner], out=self.target[chunk])

    def through_reading(self, table: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the table and of the output projection, once all queries are through."""
        heads, size = self.head.heads, self.head.head_dim
        d_read = self.d_read.view(heads, size, -1) * size**-0.5
        d_table = d_read @ out.t().reshape(heads, size, -1).transpose(1, 2)
        return d_table, (table.transpose(1, 2) @ d_read).flatten(0, 1).t()

    def through_values(
        self, w: Weights, d_table: Tensor, table: Tensor, highest: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Back through keys and values; for the normalisation at the start, the sums as `sums` has them."""
        head, inner = self.head, self.head.inner
        plain, weighted = (torch.zeros(self.source.shape[1], dtype=torch.float64) for _ in range(2))
        own = (table * d_table).sum(dim=2).flatten()  # the softmax's own term has a closed form
        for chunk in rows.row_chunks(len(self.source), 2 * inner):
            block = self.source[chunk]
            keys, values = head.keys_values(block)
            keys = (keys - highest).exp_().div_(total)
            d_keys = (head.by_head(values) @ d_table.transpose(1, 2)).transpose(0, 1).flatten(1)
            d_keys = (d_keys - own).mul_(keys)
            d_values = (head.by_head(keys) @ d_table).transpose(0, 1).flatten(1)
            both = torch.cat((d_keys, d_values), dim=1)
            self.d_weight[inner:].addmm_(both.t(), block)
            self.d_shift[inner:] += both.sum(dim=0)
            result = self.target[chunk].addmm_(both, w.qkv[inner:])
            plain += result.sum(dim=0)
            weighted += (result * block).sum(dim=0)
        return plain, weighted


def linear_attention(x: Tensor, weights: Weights, *, heads: int, groups: int, eps: float) -> Tensor:
    """`x + norm(out(attention(norm(x))))`, `(B, C, *S) -> (B, C, *S)`, on the CPU in float32 or float64.

    Args:
        x: feature map.
        weights: of the projections and normalisations.
        heads: number of heads, which divides `inner`.
        groups: groups of both normalisations.
        eps: constant of both.
    """
    return _LinearAttention.apply(x, heads, groups, eps, *weights)
