"""Torch models of ordinary kinds as ONNX files, by both exporters, with ternary weights."""

import contextlib
import inspect
import io
import math
import warnings

import torch
from torch import nn
from torch.nn import functional as F


class MLP3(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8, bias=False)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x + self.down(F.gelu(self.up(x))))


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pw = nn.Conv2d(8, 16, 1)
        self.bn2 = nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.fc = nn.Linear(16, 5)
        for b in (self.bn, self.bn2):
            b.running_mean.normal_()
            b.running_var.uniform_(0.5, 2)
            nn.init.normal_(b.weight)
            nn.init.normal_(b.bias)

    def forward(self, x):
        x = self.pool(F.relu6(self.bn(self.stem(x))))
        x = F.hardswish(self.bn2(self.pw(F.silu(self.dw(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Attn(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.h = h
        self.q = nn.Linear(d, d)
        self.k = nn.Linear(d, d)
        self.v = nn.Linear(d, d)
        self.o = nn.Linear(d, d)

    def forward(self, x, mask=None):
        b, t, d = x.shape
        q, k, v = (
            one(x).view(b, t, self.h, d // self.h).transpose(1, 2)
            for one in (self.q, self.k, self.v)
        )
        w = q @ k.transpose(-1, -2) / math.sqrt(d // self.h)
        if mask is not None:
            w = w + mask
        return self.o((torch.softmax(w, -1) @ v).transpose(1, 2).reshape(b, t, d))


class Layer(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.attn = Attn(d, h)
        self.n1 = nn.LayerNorm(d)
        self.n2 = nn.LayerNorm(d)
        self.up = nn.Linear(d, 2 * d)
        self.down = nn.Linear(2 * d, d)

    def forward(self, x, m=None):
        x = self.n1(x + self.attn(x, m))
        return self.n2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        d = 16
        self.tok = nn.Embedding(50, d)
        self.pos = nn.Embedding(64, d)
        self.norm = nn.LayerNorm(d)
        self.layers = nn.ModuleList(Layer(d, 4) for _ in range(2))
        self.pooler = nn.Linear(d, d)
        self.head = nn.Linear(d, 3)
        self.register_buffer("position_ids", torch.arange(64)[None])

    def forward(self, input_ids, attention_mask):
        x = self.norm(self.tok(input_ids) + self.pos(self.position_ids[:, : input_ids.shape[1]]))
        m = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, m)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        d = 16
        self.patch = nn.Conv2d(3, d, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, d))
        self.pos = nn.Parameter(torch.randn(1, 17, d))
        self.blocks = nn.ModuleList(Layer(d, 4) for _ in range(2))
        self.head = nn.Linear(d, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        for b in self.blocks:
            x = b(x)
        return self.head(x[:, 0])


class GAttn(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.h = h
        self.c_attn = nn.Linear(d, 3 * d)
        self.c_proj = nn.Linear(d, d)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = [y.view(b, t, self.h, -1).transpose(1, 2) for y in self.c_attn(x).split(d, 2)]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, d))


class GBlock(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.ln_1 = nn.LayerNorm(d)
        self.attn = GAttn(d, h)
        self.ln_2 = nn.LayerNorm(d)
        self.fc = nn.Linear(d, 4 * d)
        self.proj = nn.Linear(4 * d, d)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self):
        super().__init__()
        d = 16
        self.wte = nn.Embedding(40, d)
        self.wpe = nn.Embedding(32, d)
        self.h = nn.ModuleList(GBlock(d, 2) for _ in range(2))
        self.ln_f = nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, 40, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for b in self.h:
            x = b(x)
        return self.lm_head(self.ln_f(x))


class RMS(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(d))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rot(x):
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


class LAttn(nn.Module):
    def __init__(self, d, h, kv):
        super().__init__()
        self.h, self.kv = h, kv
        e = d // h
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, kv * e, bias=False)
        self.v_proj = nn.Linear(d, kv * e, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        e = d // self.h
        q = self.q_proj(x).view(b, t, self.h, e).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv, e).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv, e).transpose(1, 2)
        q = q * cos + rot(q) * sin
        k = k * cos + rot(k) * sin
        k = k.repeat_interleave(self.h // self.kv, 1)
        v = v.repeat_interleave(self.h // self.kv, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, d))


class LBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.input_layernorm = RMS(d)
        self.self_attn = LAttn(d, 4, 2)
        self.post = RMS(d)
        self.gate = nn.Linear(d, 32, bias=False)
        self.up = nn.Linear(d, 32, bias=False)
        self.down = nn.Linear(32, d, bias=False)

    def forward(self, x, c, n):
        x = x + self.self_attn(self.input_layernorm(x), c, n)
        y = self.post(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        d = 16
        self.embed_tokens = nn.Embedding(40, d)
        self.layers = nn.ModuleList(LBlock(d) for _ in range(2))
        self.norm = RMS(d)
        self.lm_head = nn.Linear(d, 40, bias=False)
        self.register_buffer(
            "inv_freq", 1 / 10000 ** (torch.arange(0, 4, 2).float() / 4), persistent=False
        )

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        t = torch.arange(x.shape[1]).float()
        f = torch.outer(t, self.inv_freq)
        e = torch.cat([f, f], -1)
        c, n = e.cos(), e.sin()
        for layer in self.layers:
            x = layer(x, c, n)
        return self.lm_head(self.norm(x))


class Enc(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.enc(x).mean(1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.g = nn.GroupNorm(2, 8)
        self.b = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.c = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x):
        y = F.silu(self.g(self.a(x)))
        z = F.interpolate(F.leaky_relu(self.b(y)), scale_factor=2, mode="nearest")
        return torch.sigmoid(self.c(torch.cat([y, z], 1)))


IDS = torch.arange(18).reshape(2, 9)
#: Class, example arguments, and the free dims of the first of them.
MODELS = {
    "mlp": (MLP3, (torch.randn(2, 8),), {0: "batch"}),
    "cnn": (CNN, (torch.randn(2, 3, 32, 32),), {0: "batch"}),
    "unet": (UNet, (torch.randn(2, 3, 16, 16),), {0: "batch"}),
    "vit": (ViT, (torch.randn(2, 3, 16, 16),), {0: "batch"}),
    "bert": (Bert, (IDS, torch.ones(2, 9, dtype=torch.long)), {0: "batch", 1: "seq"}),
    "encoder": (Enc, (torch.randn(2, 7, 16),), {0: "batch"}),
    "gpt2": (GPT2, (IDS,), {0: "batch", 1: "seq"}),
    "llama": (Llama, (IDS,), {0: "batch", 1: "seq"}),
}


def export(name, path, *, dynamo):
    """Export a model whose matrices are ternary; return it."""
    kind, args, dims = MODELS[name]
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() in (2, 4):
                param.copy_(torch.randint(-1, 2, param.shape) * 0.125)
            else:
                param.add_(torch.randn_like(param) * 0.1)
    names = list(inspect.signature(model.forward).parameters)
    if dynamo:
        shapes = {one: dict.fromkeys(dims, torch.export.Dim.AUTO) for one in names}
        options = {"dynamo": True, "dynamic_shapes": shapes}
    else:
        options = {"dynamo": False, "dynamic_axes": dict.fromkeys(names, dims)}
    quiet = io.StringIO()
    with (
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, args, str(path), input_names=names, **options)
    return model
