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


def of_experts(m, x):
    """Two matrices of a stack for each x, chosen by its largest values."""
    stack = m.w.expand(3, 6, 6) + m.w.new_tensor([1.0, 2.0, 3.0])[:, None, None]
    weights, ids = torch.topk(x[..., :3], 2)
    x = x[..., None, :].expand(-1, -1, 2, -1)
    first = (stack[ids] @ x.unsqueeze(-1)).squeeze(-1)
    return (first + (x.unsqueeze(-2) @ stack[ids]).squeeze(-2)) * weights.unsqueeze(-1)


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


def changed_parts(m, x):
    y = x * 2
    y[:, 1:3] += m.v
    y[:, 0] = x[:, 1]
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
    "parts in place": changed_parts,
    "bounds that are infinite": lambda m, x: (
        x.clamp(0.1, math.inf) + x.clamp(-math.inf, math.inf) + torch.clamp(x, max=math.inf)
    ),
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
    "more sizes of new tensors": lambda m, x: x.new_zeros(
        x.size(0) ** 2, (8 - x.size(0) % 8) % 8 + 1, max(1, x.size(0))
    ),
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
    "spread": lambda m, x: x.std(-1) + sum(torch.var_mean(x, -1)) + torch.std_mean(x, 2)[1],
    "extremes": lambda m, x: torch.aminmax(x, dim=1)[0] + x.cummax(1)[0][:, 0] + x.min(1)[1],
    "orders": lambda m, x: x.sort(1)[0] + x.argsort(-1) + x.sort(dim=-1, descending=True)[1],
    "medians": lambda m, x: x.median(1)[0] + x.argmin(1) + x.argmax(1, keepdim=True)[:, 0],
    "least": lambda m, x: x.topk(2, largest=False)[0] + x.topk(2, 1)[1].sum(),
    "lengths": lambda m, x: F.normalize(x, dim=-1) + x.norm(dim=-1, keepdim=True) + x.norm(p=1),
    "likeness": lambda m, x: F.cosine_similarity(x, x + 1, dim=-1) + F.pairwise_distance(x, m.v),
    "sums in another dtype": lambda m, x: (
        x.cumsum(1, dtype=torch.float64)
        + x.sum(1, keepdim=True, dtype=torch.float64)
        + (x > 0).cumsum(1).cumprod(2)
        + (x > 0).sum(1, keepdim=True)
        + x.mean(0, dtype=torch.float32)
    ),
    "whether": lambda m, x: (x > 0).any(-1) & (x < 3).all(-1) ^ (x > 1).any() | x.isnan().any(2),
    "finite": lambda m, x: (x / 0).isfinite() | (x / 0).isinf() | (x.nan_to_num(1.0) > 0),
    "put at indices": lambda m, x: (
        torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0)
        + torch.zeros_like(x).scatter_add(1, x.argsort(1), x)
        + x.index_add(1, m.counts[:2], x[:, :2], alpha=2)
        + x.scatter_reduce(2, x.argsort(2), x, "amax")
        + x.index_copy(1, m.counts[:2], x[:, 2:]).index_fill(1, m.counts[:1], 2.0)
    ),
    "put in place": lambda m, x: torch.zeros_like(x).scatter_(1, x.argmax(1, keepdim=True), 1.0),
    "put at places": lambda m, x: (x * 2).index_put_((m.counts[:1],), x[:1]),
    "along": lambda m, x: x.gather(1, x.argsort(1)) * x[:, m.counts[:4].view(2, 2)][:, 0, :1],
    "places": lambda m, x: (
        torch.bucketize(x, m.counts.float()) + torch.searchsorted(m.v.sort()[0], x)
    ),
    "more functions of one": lambda m, x: (
        x.exp2().log1p().expm1().log2()
        + x.atan().sinh().cosh()
        + (x.tanh() / 2).asin().tan()
        + x.tanh().acos()
    ),
    "more of two": lambda m, x: (
        torch.atan2(x, m.v)
        + torch.fmod(x, 2)
        + torch.logaddexp(x, m.v)
        + torch.lerp(x, m.v, 0.3)
        + torch.true_divide(x, 3)
        + x.log10().nan_to_num()
        + torch.special.erfc(x)
        + torch.sinc(x)
    ),
    "more activations": lambda m, x: (
        F.selu(x)
        + F.celu(x, 0.5)
        + F.softshrink(x)
        + F.logsigmoid(x)
        + F.threshold(x, 0.1, 2.0)
        + F.softplus(x, 2, 1)
        + F.tanhshrink(x)
        + F.softsign(x)
        + F.softmin(x, -1)
    ),
    "products and sums": lambda m, x: (
        torch.addcmul(x, m.v, x, value=0.5)
        + torch.addcdiv(x, x, m.v)
        + torch.baddbmm(
            x, m.w.expand(x.size(0), 6, 6)[:, :4], m.w.expand(x.size(0), 6, 6), beta=0.5, alpha=2
        )
        + F.bilinear(x, x, m.w.expand(6, 6, 6), m.v)
        + torch.mv(m.w, m.v) * torch.dot(m.v, m.v)
        + torch.outer(m.v[:4], m.v)
        + torch.cdist(x, m.w)
    ),
    "moved dims": lambda m, x: x.movedim(1, 2).swapaxes(1, 2).moveaxis((1, 2), (2, 1)).mT * 2,
    "squeezed": lambda m, x: (x[:, :1, None].squeeze((1, 2)) + x[:, :1].squeeze()) * m.v,
    "stacked": lambda m, x: torch.vstack((torch.hstack((x, x)), x.tile(2, 1))) + m.v,
    "bounds": lambda m, x: x.clamp(min=m.v, max=m.v + 1) + x.round(decimals=1),
    "new grids": lambda m, x: (
        x @ torch.eye(6)
        + torch.linspace(0, 1, 6)
        + torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")[0]
        + torch.meshgrid(m.v, m.v[:4], indexing="xy")[0]
    ),
    "weight norm": lambda m, x: F.linear(x, torch._weight_norm(m.w, m.w[:, :1])),
    "experts": of_experts,
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
    "transposed": lambda m, x: (
        F.conv_transpose2d(x, m.w[:, :, None, None], m.v, 2, output_padding=1)
        + F.conv_transpose2d(x, m.w[:, :1, None, None], groups=6, stride=2, output_padding=(1, 1))
    ),
    "named padding": lambda m, x: (
        F.conv2d(x, m.w[:, :, None, None].expand(6, 6, 3, 5), padding="same")
        + F.conv2d(x, m.w[:, :, None, None], padding="valid")
    ),
    "resized": lambda m, x: (
        F.interpolate(x, scale_factor=2)
        + F.interpolate(x, size=(16, 16), mode="bilinear")
        + F.interpolate(x, scale_factor=(2, 2.1), mode="bicubic", align_corners=True)
        + F.interpolate(x, size=16, mode="bilinear", antialias=True)
        + F.interpolate(x[:, :, ::2], scale_factor=(4, 2), mode="nearest-exact")
    ),
    "shuffles": lambda m, x: (
        F.pixel_unshuffle(F.pixel_shuffle(x[:, :4], 2), 2) + F.channel_shuffle(x, 2)[:, :4]
    ),
    "folds": lambda m, x: (
        F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2)
        + F.fold(F.unfold(x, 3, padding=1), 8, 3, padding=1)
    ),
    "padding by itself": lambda m, x: (
        F.pad(x, (1, 1, 2, 2), "reflect") + F.pad(x, (2, 0, 4, 0), "replicate")
    ),
    "instance norm": lambda m, x: (
        F.instance_norm(x, weight=m.v, bias=m.v)
        + F.instance_norm(x, m.mean, m.var, use_input_stats=False)
    ),
    "sampled": lambda m, x: F.grid_sample(
        x,
        F.affine_grid(x[:, :2, 0, :3], (x.size(0), 6, 4, 4), align_corners=False),
        "nearest",
        align_corners=False,
    ),
    "adaptive": lambda m, x: F.adaptive_avg_pool2d(x, 2) + F.adaptive_max_pool2d(x, (2, 2)),
}

VIDEOS = {
    "conv": lambda m, x: F.conv3d(x, m.w[:, :, None, None, None], m.v, stride=(2, 1, 1), padding=1),
    "transposed": lambda m, x: F.conv_transpose3d(x, m.w[:, :, None, None, None], m.v, stride=2),
    "batch norm": lambda m, x: F.batch_norm(x, m.mean, m.var, m.v),
    "pools": lambda m, x: F.max_pool3d(x, 2) + F.avg_pool3d(x, 2) + F.adaptive_avg_pool3d(x, 1),
    "adaptive": lambda m, x: F.adaptive_max_pool3d(x, 2),
    "resized": lambda m, x: F.interpolate(x, scale_factor=2, mode="trilinear"),
}

LINES = {
    "conv": lambda m, x: F.conv1d(x, m.w[:, :, None], m.v, dilation=2),
    "pools": lambda m, x: F.max_pool1d(x, 3) + F.avg_pool1d(x, 3) + F.adaptive_avg_pool1d(x, 3),
    "windows": lambda m, x: x.unfold(2, 3, 2)[:, :, :3] + F.adaptive_max_pool1d(x, 3)[..., None],
    "transposed": lambda m, x: F.conv_transpose1d(
        x, m.w[:, :2, None].expand(6, 2, 3), m.v, stride=2, padding=1, dilation=2, groups=3
    ),
    "resized": lambda m, x: (
        F.interpolate(x, scale_factor=2, mode="linear") + F.interpolate(x, size=x.size(2) * 2)
    ),
    "padding": lambda m, x: F.pad(x, (1, 2), "circular"),
    "batch norm": lambda m, x: F.batch_norm(x, m.mean, m.var),
}
