"""The ternary weight that a float master stands for: what training computes with.

The methods are those of ``tpack.quantize``, which cites their sources; here they are in
torch, for any device, under autograd and ``torch.compile``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tpack.codec import Scale


@dataclass(frozen=True)
class Method:
    """The form of a quantizer for training.

    Attributes:
        choose: from |w| ``(sets, size)``, padded with zeros, and the number of weights
            in each set ``(sets, 1)``: scales ``(sets, 1)`` and which weights are kept.
        over_zeros: whether the scale is a mean over zeros too, so that it is smaller
            than that of the ternary weight it is computed from.
    """

    choose: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    over_zeros: bool = False


@dataclass(frozen=True)
class Rule:
    """How a weight becomes ternary.

    Attributes:
        method: a name of ``METHODS``.
        granularity: what shares one scale.
        shape: logical shape of the weight.
        split: leading dims that index rows.
        dtype: of the scale, and of the ternary weight.
    """

    method: str
    granularity: Scale
    shape: tuple[int, ...]
    split: int
    dtype: torch.dtype

    def quantize(self, master: Tensor) -> tuple[Tensor, Tensor]:
        """Trits int8 ``(rows…, columns)``, and the scale as it is stored."""
        trits, scale = self._fit(master.detach())
        stored = self.granularity.shape(self.shape, self.split)
        return self._rows(trits).to(torch.int8), scale.reshape(stored)

    def ternary(self, master: Tensor) -> Tensor:
        """``scale * trit`` as ``(rows…, columns)``, with the gradient of the master.

        The gradient passes unchanged (straight-through).

        Source: Bengio, Léonard and Courville 2013, arXiv:1308.3432.
        """
        trits, scale = self._fit(master.detach())
        value = self._rows(scale * trits.to(self.dtype))
        # the difference is 0: adding it leaves the value exactly ternary
        return value + (master - master.detach()).reshape(value.shape).to(self.dtype)

    def master(self, weight: Tensor) -> Tensor:
        """A master, in the logical shape, that ``ternary`` takes to a given weight.

        A method that takes the mean over zeros too needs the weight divided by the
        share of nonzeros in each set; the others leave ternary weights as they are.

        Args:
            weight: ``(rows…, columns)``.
        """
        if METHODS[self.method].over_zeros:
            sets, count = self._sets(weight)
            nonzero = (sets != 0).sum(-1, keepdim=True)
            weight = self._rows(sets * (count / nonzero.clamp(min=1)))
        return weight.reshape(self.shape).contiguous()

    def _fit(self, master: Tensor) -> tuple[Tensor, Tensor]:
        """Trits ``(sets, size)`` as floats, scales ``(sets, 1)`` in their dtype."""
        wide = master if master.dtype == torch.float64 else master.float()
        sets, count = self._sets(wide)
        scale, kept = METHODS[self.method].choose(sets.abs(), count)
        return sets.sign() * kept, scale.to(self.dtype)

    @property
    def _columns(self) -> int:
        return math.prod(self.shape[self.split :])

    def _sets(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A row for each scale, padded with zeros, and how many weights it has."""
        count = math.prod(self.shape[: self.split])
        if self.granularity.kind == "column":
            sets = weight.reshape(count, self._columns).T
            return sets, weight.new_full((1, 1), count)
        if self.granularity.kind == "tensor":
            rows, width = weight.reshape(1, -1), count * self._columns
        else:
            rows, width = weight.reshape(count, self._columns), self._columns
        # not even an empty set is without a scale, unless there are no groups
        size = max(self.granularity.group_size or width, 1)
        groups = -(-width // size) if self.granularity.kind == "group" else 1
        sets = F.pad(rows, (0, groups * size - width)).reshape(-1, size)
        starts = torch.arange(groups, device=weight.device) * size
        number = (width - starts).clamp(1, size).to(weight.dtype)
        return sets, number.repeat(len(rows) if groups > 1 else 1).unsqueeze(-1)

    def _rows(self, sets: Tensor) -> Tensor:
        """The inverse of ``_sets``: ``(rows…, columns)``."""
        rows = self.shape[: self.split]
        columns = self._columns
        if self.granularity.kind == "column":
            sets = sets.T
        elif self.granularity.kind == "tensor":
            sets = sets[:, : math.prod(rows) * columns]
        elif self.granularity.kind == "row":
            sets = sets[:, :columns]
        else:
            groups = -(-columns // self.granularity.group_size)
            size = self.granularity.group_size
            sets = sets.reshape(math.prod(rows), groups * size)[:, :columns]
        return sets.reshape(*rows, columns)


def _absmean(size: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    scale = (size.sum(-1, keepdim=True) / count).clamp(min=1e-5)
    return scale, (size * (1 / scale)).round() >= 1


def _twn(size: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    kept = size > 0.7 * size.sum(-1, keepdim=True) / count
    number = kept.sum(-1, keepdim=True)
    scale = (size * kept).sum(-1, keepdim=True) / number.clamp(min=1)
    return torch.where(number == 0, 1, scale), kept


def _mse(size: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    descending = size.sort(-1, descending=True).values
    sums = descending.cumsum(-1, dtype=torch.float64)
    number = torch.arange(1, size.shape[-1] + 1, device=size.device)
    best = (sums * sums / number).argmax(-1, keepdim=True)
    scale = (sums / number).gather(-1, best).to(size.dtype)
    least = descending.gather(-1, best)
    return torch.where(least == 0, 1, scale), (size >= least) & (size > 0)


#: The forms of ``tpack.choices.QUANTIZERS``; one that is not here is refused by name.
METHODS = {
    "absmean": Method(_absmean, over_zeros=True),
    "twn": Method(_twn),
    "mse": Method(_mse),
}
