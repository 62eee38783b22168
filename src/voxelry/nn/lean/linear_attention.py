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
from voxelry.nn.lean.folded import fold_norm, norm_gradients
from voxelry.nn.recipes import recipe_of

__all__ = ["linear_attention"]


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


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, qkv: Tensor, bias: Any, out: Tensor, out_bias: Tensor,
        out_gamma: Tensor, out_beta: Tensor, heads: int, groups: int, eps: float,
    ) -> Tensor:  # fmt: skip
        recipe = recipe_of(x)
        x = rows.dense(x)
        factor, offset, centre, rstd = fold_norm(x, gamma, beta, None, None, groups, eps)
        result = rows.empty_like_rows(x)
        tables = []
        for source, target, *fold in zip(rows.as_rows(x), rows.as_rows(result), factor, offset, strict=True):
            head = make_head(qkv, bias, heads, *fold)
            highest, total, table = summarise(head, source)
            read = reading(table, out)
            for chunk in rows.row_chunks(source.shape[0], head.inner):
                torch.addmm(out_bias, head.queries(source[chunk]), read, out=target[chunk])
            tables.append((highest, total, table))
        after = fold_norm(result, out_gamma, out_beta, None, None, groups, eps)
        for source, target, scale, shift in zip(rows.as_rows(x), rows.as_rows(result), *after[:2], strict=True):
            for chunk in rows.row_chunks(*source.shape):
                target[chunk].mul_(scale).add_(shift).add_(source[chunk])
        ctx.how = heads
        ctx.make = recipe.make
        ctx.save_for_backward(
            gamma, beta, qkv, bias, out, out_bias, out_gamma, out_beta, factor, offset, centre, rstd, *after,
            *(torch.stack(values) for values in zip(*tables, strict=True)), *recipe.parts,
        )  # fmt: skip
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gamma, beta, qkv, bias, out, out_bias, out_gamma, out_beta, factor, offset, centre, rstd,
         out_factor, _, out_centre, out_rstd, highest, total, table, *parts) = ctx.saved_tensors  # fmt: skip
        x = rows.dense(ctx.make(parts))
        heads, inner, voxels = ctx.how, out.shape[1], x[0, 0].numel()
        grad = rows.dense(grad)
        folded = [make_head(qkv, bias, heads, *fold) for fold in zip(factor, offset, strict=True)]
        reads = [reading(each, out) for each in table]

        # 1. sums for the normalisation at the end, from its input made again
        plain, weighted = (torch.zeros(x.shape[:2], dtype=torch.float64) for _ in range(2))
        for sample, (source, given) in enumerate(zip(rows.as_rows(x), rows.as_rows(grad), strict=True)):
            for chunk in rows.row_chunks(voxels, inner):
                mixed = torch.addmm(out_bias, folded[sample].queries(source[chunk]), reads[sample])
                plain[sample] += given[chunk].sum(dim=0)
                weighted[sample] += mixed.mul_(given[chunk]).sum(dim=0)
        slope, constant, (d_out_gamma, d_out_beta, _, _) = norm_gradients(
            plain, weighted, voxels, out_gamma, out_beta, None, None, out_centre, out_rstd
        )

        d_x = rows.empty_like_rows(x)
        d_qkv, d_out = torch.zeros_like(qkv), torch.zeros_like(out)
        d_bias, d_out_bias = qkv.new_zeros(3 * inner), torch.zeros_like(out_bias)
        sums = torch.zeros(2, *x.shape[:2], dtype=torch.float64)
        for sample, (source, given, target) in enumerate(
            zip(rows.as_rows(x), rows.as_rows(grad), rows.as_rows(d_x), strict=True)
        ):
            head, read = folded[sample], reads[sample]
            # gradients of the folded weights; unfolded at the end of the sample
            d_weight, d_shift = torch.zeros_like(qkv), qkv.new_zeros(3 * inner)
            d_read = torch.zeros_like(read)
            # 2. back through the output projection and the queries
            for chunk in rows.row_chunks(voxels, inner):
                block = source[chunk]
                query = head.queries(block)
                d_mixed = torch.addmm(out_bias, query, read).mul_(slope[sample]).add_(constant[sample])
                d_mixed.addcmul_(given[chunk], out_factor[sample])
                d_out_bias += d_mixed.sum(dim=0)
                d_read.addmm_(query.t(), d_mixed)
                d_query = (d_mixed @ read.t()).unflatten(1, (heads, -1))
                split = query.unflatten(1, (heads, -1))
                d_query = (d_query - (d_query * split).sum(dim=2, keepdim=True)).mul_(split).flatten(1)
                d_weight[:inner].addmm_(d_query.t(), block)
                d_shift[:inner] += d_query.sum(dim=0)
                torch.mm(d_query, qkv[:inner], out=target[chunk])
            size = head.head_dim
            d_read = d_read.view(heads, size, -1) * size**-0.5
            d_table = d_read @ out.t().reshape(heads, size, -1).transpose(1, 2)
            d_out += (table[sample].transpose(1, 2) @ d_read).flatten(0, 1).t()
            # 3. back through keys and values; the softmax's own term has a closed form
            own = (table[sample] * d_table).sum(dim=2).flatten()
            for chunk in rows.row_chunks(voxels, 2 * inner):
                block = source[chunk]
                keys, values = head.keys_values(block)
                keys = (keys - highest[sample]).exp_().div_(total[sample])
                d_keys = (head.by_head(values) @ d_table.transpose(1, 2)).transpose(0, 1).flatten(1)
                d_keys = (d_keys - own).mul_(keys)
                d_values = (head.by_head(keys) @ d_table).transpose(0, 1).flatten(1)
                both = torch.cat((d_keys, d_values), dim=1)
                d_weight[inner:].addmm_(both.t(), block)
                d_shift[inner:] += both.sum(dim=0)
                result = target[chunk].addmm_(both, qkv[inner:])
                sums[0, sample] += result.sum(dim=0)
                sums[1, sample] += (result * block).sum(dim=0)
            d_qkv += d_weight * factor[sample] + d_shift[:, None] * offset[sample]
            d_bias += d_shift

        # 4. back through the normalisation at the start, and the residual
        slope, constant, (d_gamma, d_beta, _, _) = norm_gradients(
            sums[0], sums[1], voxels, gamma, beta, None, None, centre, rstd
        )
        d_x = rows.affine_backward(d_x, x, factor, slope, constant)
        d_x += grad
        d_bias = d_bias if bias is not None else None
        return d_x, d_gamma, d_beta, d_qkv, d_bias, d_out, d_out_bias, d_out_gamma, d_out_beta, None, None, None


def linear_attention(
    x: Tensor, gamma: Tensor, beta: Tensor, qkv: Tensor, bias: Tensor | None, out: Tensor, out_bias: Tensor,
    out_gamma: Tensor, out_beta: Tensor, *, heads: int, groups: int, eps: float,
) -> Tensor:  # fmt: skip
    """`x + norm(out(attention(norm(x))))`, `(B, C, *S) -> (B, C, *S)`, on the CPU in float32 or float64.

    Args:
        x: feature map.
        gamma: scale of the first normalisation, `(C,)`.
        beta: its shift.
        qkv: projection to queries, keys and values, `(3 * inner, C)`, heads outermost in each third.
        bias: its bias, or None.
        out: projection back, `(C, inner)`.
        out_bias: its bias.
        out_gamma: scale of the last normalisation, `(C,)`.
        out_beta: its shift.
        heads: number of heads, which divides `inner`.
        groups: groups of both normalisations.
        eps: constant of both.
    """
    return _LinearAttention.apply(x, gamma, beta, qkv, bias, out, out_bias, out_gamma, out_beta, heads, groups, eps)
