"""Functions of one tensor, with modules they own: each is captured, built and generated."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Function(nn.Module):
    """A module of one function, with a matrix, a vector and buffers to use."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(6, 6, generator=generator))
        self.v = nn.Parameter(torch.randn(6, generator=generator))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))
        self.register_buffer("counts", torch.arange(6), persistent=False)
        self.register_buffer("odd", torch.tensor([0.5, 3.0, 0.25, 1, 2, 7]), persistent=False)

    def forward(self, x):
        return self.function(self, x)


def gelu_by_tanh(x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3.0)))


def rms_norm(m, x):
    return m.v * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotated(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def grouped(x):
    q = x.unflatten(-1, (6, 1)).transpose(1, 2)
    k = q[:, :2]
    k = k[:, :, None].expand(-1, -1, 3, -1, -1).flatten(1, 2)
    return F.scaled_dot_product_attention(q, k, k)


def changed(m, x):
    y = x * 2
    y.add_(1)
    y.mul_(x)
    y.clamp_(min=0.1)
    return y


FUNCTIONS = {
    "operators": lambda m, x: (x + 1 - m.v) * m.v / 2 + (1 - x) - (x // 2) % 3 + (-x) ** 2,
    "comparisons": lambda m, x: (x > 0) & (x < m.v) | ~(x >= 1) & (x != m.v) | (x <= -2) | (x == 0),
    "functions": lambda m, x: x.abs().add(1).log().sqrt().exp().sin().cos().round().floor().ceil(),
    "more functions": lambda m, x: torch.erf(x).sign() + torch.reciprocal(x.abs() + 1).square(),
    "activations": lambda m, x: F.elu(F.mish(F.leaky_relu(F.softplus(F.silu(F.hardswish(x)))))),
    "hardtanh": lambda m, x: (
        F.hardtanh(x) + F.relu6(x) + F.hardsigmoid(x) + F.glu(x).repeat(1, 1, 2)
    ),
    "prelu": lambda m, x: F.prelu(x, m.v[:1]) + x.clamp_min(0.1) + x.clamp_max(0.2),
    "silu": lambda m, x: x * torch.sigmoid(x),
    "relu squared": lambda m, x: F.relu(x) ** 2 + torch.square(torch.relu(x)),
    "gelu by tanh": lambda m, x: gelu_by_tanh(x),
    "softmax": lambda m, x: x.softmax(-1) + x.log_softmax(1) + F.softmax(x, 2, dtype=torch.float32),
    "rms norm": rms_norm,
    "rms norm of a product": lambda m, x: x * torch.rsqrt((x * x).mean(-1, True) + 0.1) * m.v,
    "rms norm of squares": lambda m, x: x * torch.rsqrt(x.square().mean(2, keepdim=True) + 0.1),
    "built-in rms norm": lambda m, x: F.rms_norm(x, (6,), m.v, 0.1),
    "layer norm": lambda m, x: F.layer_norm(x, (6,), m.v) + F.layer_norm(x, (6,)),
    "products": lambda m, x: x @ m.w + torch.bmm(x, m.w.expand(x.size(0), 6, 6)) + F.linear(x, m.w),
    "addmm": lambda m, x: torch.addmm(m.v, x.view(-1, 6), m.w).view(x.shape),
    "mm": lambda m, x: torch.mm(x.flatten(0, 1), m.w.t()),
    "einsum": lambda m, x: torch.einsum("b s d, d e -> b s e", x, m.w),
    "where": lambda m, x: torch.where(x > 0, x, 0.0) + torch.where(x > 0, 1.0, 2.0),
    "filled": lambda m, x: x.masked_fill(x > 0, float("-inf")).masked_fill(x < 0, 2.5),
    "maxima": lambda m, x: torch.maximum(x, m.v) + torch.minimum(x, -x) + x.max(-1, True).values,
    "minima": lambda m, x: x.min(1, keepdim=True)[0] + x.amin(-1, True) + x.max(1)[1][:, None],
    "largest": lambda m, x: x.max(dim=-1).indices,
    "indices": lambda m, x: x.max(dim=-1, keepdim=True)[1],
    "dtypes": lambda m, x: x.to(torch.float64).float().half().to(x.dtype).type_as(x).double(),
    "copies": lambda m, x: x.clone().contiguous().detach() * x.to(x.device),
    "in place": changed,
    "transposes": lambda m, x: x.transpose(1, 2).permute(0, 2, 1).flip(1).roll(1, 2) @ m.w.T,
    "views": lambda m, x: (
        x.view(x.size(0), 24).view_as(x).reshape(-1, 3).view(-1, 4, 2, 3).flatten(2)
    ),
    "odd views": lambda m, x: x.reshape(x.size(0), 3, 8) * 2,
    "ones in views": lambda m, x: x.reshape(x.size(0), 1, 4, 6).squeeze(1).view(-1, 4, 1, 1, 6),
    "squeezed views": lambda m, x: (x[:, :1] * 2).reshape(x.size(0), 6),
    "expansions": lambda m, x: m.v.expand_as(x) + m.v.expand(x.size(0), 4, 6).expand(-1, -1, -1),
    "repetitions": lambda m, x: x.repeat(1, 2, 1).repeat_interleave(2, dim=1),
    "slices": lambda m, x: x[:, 1:3] + x[..., ::2, :] + x[:, -2:] + x.narrow(1, 1, 2) + x[:, :2],
    "selections": lambda m, x: x[:, 0] + x.select(1, -1) + x[0, 0],
    "chunks": lambda m, x: torch.cat(x.chunk(2, -1)[::-1], -1) + torch.cat(x.split([2, 4], 2), 2),
    "splits": lambda m, x: sum(x.split(2, dim=1)) + torch.stack(x.unbind(1), 2)[:, :, :2].mT,
    "padding": lambda m, x: F.pad(x, (1, 2)) + F.pad(F.pad(x, (0, 3), value=1.5), (0, 0)),
    "triangles": lambda m, x: x @ (m.w.tril() + m.w.triu(1)),
    "means": lambda m, x: x.mean((0, 1)) + x.sum(0).sum(0, keepdim=True) + x.mean() + x.sum(),
    "statistics": lambda m, x: (
        x.var(-1) + x.var(2, unbiased=False) + x.logsumexp(-1) + x.argmax(1)[:, :4]
    ),
    "cumulative": lambda m, x: x.cumsum(1) + x.topk(2)[0][..., :1],
    "new tensors": lambda m, x: x + x.new_zeros(6) + x.new_ones(6) + torch.full_like(x, 2) * 1,
    "more new tensors": lambda m, x: (
        x + torch.zeros_like(x) + torch.full((6,), 3.0) + torch.ones(x.size(0), 1, 1) * m.v
    ),
    "ranges": lambda m, x: x + torch.arange(1, 7) + torch.arange(0, 12, 2) + torch.arange(6.0),
    "sizes": lambda m, x: x.reshape(x.size(0) * 2, 12) * x.size(0) + x.size(0) // 2 - x.size(0),
    "sizes of new tensors": lambda m, x: torch.zeros(x.size(0) * 2 + 1, x.size(0) + 3) + x.size(0),
    "sizes of parts": lambda m, x: x[: x.size(0) - 1].sum() + torch.ones((x.size(0) + 1) // 2),
    "positions": lambda m, x: (
        -torch.arange(x.size(0))[:, None].T + 2 * torch.arange(x.size(0))[1:, None].squeeze(1)[:1]
    ),
    "more positions": lambda m, x: torch.arange(x.size(0)).flip(0) + torch.arange(x.size(0))[0],
    "constants": lambda m, x: x * m.odd + m.counts + torch.tensor([1.0, 2, 3, 4, 5, 6]),
    "identities": lambda m, x: ((x + 0) * 1 / 1 - 0) ** 1 + F.dropout(x, training=False),
    "scaled": lambda m, x: F.scaled_dot_product_attention(x, x, x, scale=0.3),
    "causal": lambda m, x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "grouped": lambda m, x: grouped(x),
    "rotated": lambda m, x: rotated(x) + torch.cat((-x[..., 3:], x[..., :3]), -1),
    "not rotated": lambda m, x: (
        torch.cat((-x[..., 2:], x[..., :2]), -1) + torch.cat((x, -x), 0)[:1]
    ),
    "gathered": lambda m, x: x.gather(2, (x > 0).long()) + x.index_select(1, m.counts[:1]),
    "several results": lambda m, x: (x * 2, x + 1),
}

IMAGES = {
    "conv": lambda m, x: F.conv2d(x, m.w[:, :, None, None], m.v, stride=(2, 1), padding=1),
    "groups": lambda m, x: F.conv2d(x, m.w[:, :1, None, None], groups=6),
    "batch norm": lambda m, x: F.batch_norm(x, m.mean, m.var, m.v, m.v),
    "group norm": lambda m, x: F.group_norm(x, 2, m.v, m.v) + F.group_norm(x, 3),
    "pools": lambda m, x: F.max_pool2d(x, 2) + F.avg_pool2d(x, (2, 2)) + F.max_pool2d(x, 2, 2, 0),
    "odd pools": lambda m, x: (
        F.max_pool2d(x, 3, 2, 1, ceil_mode=True)[:, :, :4, :4]
        + F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    ),
    "adaptive": lambda m, x: F.adaptive_avg_pool2d(x, 2) + F.adaptive_max_pool2d(x, (2, 2)),
}

LINES = {
    "conv": lambda m, x: F.conv1d(x, m.w[:, :, None], m.v, dilation=2),
    "pools": lambda m, x: F.max_pool1d(x, 3) + F.avg_pool1d(x, 3) + F.adaptive_avg_pool1d(x, 3),
    "batch norm": lambda m, x: F.batch_norm(x, m.mean, m.var),
}
