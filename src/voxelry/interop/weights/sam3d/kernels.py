"""Kernels of sparse convolutions, theirs `[O, k, k, k, I]` or, of older files, `[k, k, k, I, O]`; ours `[k³, I, O]`.

What the axes mean is settled by their sizes, which must show one of the two; axes of space are x, y, z.
"""

from __future__ import annotations

from torch import Tensor

from voxelry.core.errors import CheckpointError
from voxelry.interop.weights.sam3d.part import Kernel

__all__ = ["LAYOUTS", "decoder_kernel", "in_layout", "layout_of", "sparse_kernel"]

RANK = 3
SIDES = (1, 3)
LAYOUTS = ("[O, k, k, k, I]", "[k, k, k, I, O]")


def outputs_first(kernel: Tensor) -> Tensor:
    """A kernel as `[O, k, k, k, I]`.

    Raises:
        CheckpointError: sizes that show neither layout.
    """
    return kernel if layout_of(kernel) == LAYOUTS[0] else kernel.permute(4, 0, 1, 2, 3)


def layout_of(kernel: Tensor) -> str:
    """Which of `LAYOUTS` a kernel has, by its sizes.

    Raises:
        CheckpointError: neither.
    """
    shape = tuple(kernel.shape)
    if len(shape) == RANK + 2:
        for start, layout in zip((1, 0), LAYOUTS, strict=True):
            sides = shape[start : start + RANK]
            if len(set(sides)) == 1 and sides[0] in SIDES:
                return layout
    raise CheckpointError(
        f"kernel of a sparse convolution: expected {' or '.join(LAYOUTS)} with k 1 or 3, got {list(shape)}"
    )


def in_layout(kernel: Tensor, layout: str) -> Tensor:
    """A kernel `[O, k, k, k, I]` in one of `LAYOUTS`."""
    return kernel if layout == LAYOUTS[0] else kernel.permute(1, 2, 3, 4, 0)


def sparse_kernel(name: str, tensor: Tensor) -> Kernel | None:
    """How the weight of a 3-wide convolution goes over; None for what is none.

    Raises:
        CheckpointError: see `outputs_first`.
    """
    return THREE_WIDE if tensor.ndim > 2 or (".conv" in name and tensor.ndim > 1) else None


def decoder_kernel(name: str, tensor: Tensor) -> Kernel | None:
    """As `sparse_kernel`, with 1-wide convolutions as skips."""
    return ONE_WIDE if name.endswith(".skip.weight") else sparse_kernel(name, tensor)


def _ours(kernel: Tensor) -> Tensor:
    return outputs_first(kernel).permute(1, 2, 3, 4, 0).flatten(0, 2).contiguous()


def _theirs(kernel: Tensor) -> Tensor:
    side = round(len(kernel) ** (1 / RANK))
    return kernel.unflatten(0, (side,) * RANK).permute(4, 0, 1, 2, 3)


def _skip_ours(kernel: Tensor) -> Tensor:
    whole = outputs_first(kernel)
    # the original multiplies features by the memory of the kernel read as [I, O]: a reshape, not a transpose
    return whole.reshape(whole.shape[-1], whole.shape[0]).mT.contiguous()


def _skip_theirs(weight: Tensor) -> Tensor:
    outputs, inputs = weight.shape
    return weight.mT.reshape(outputs, *(1,) * RANK, inputs)


THREE_WIDE = Kernel(_ours, _theirs)
ONE_WIDE = Kernel(_skip_ours, _skip_theirs)
