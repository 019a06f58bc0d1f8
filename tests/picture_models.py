"""Small models of pictures and videos, in the styles of torchvision and timm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act=nn.ReLU):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act is not None else []))


def classifier(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride=1, groups=1):
        super().__init__()
        self.conv1 = conv(inputs, width, 1)
        self.conv2 = conv(width, width, 3, stride, groups)
        self.conv3 = conv(width, 4 * width, 1, act=None)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            self.downsample = conv(inputs, 4 * width, 1, stride, act=None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.conv3(self.conv2(self.conv1(x)))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, groups=1):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.layer1 = nn.Sequential(Bottleneck(8, 4, 1, groups), Bottleneck(16, 4, 1, groups))
        self.layer2 = nn.Sequential(Bottleneck(16, 8, 2, groups), Bottleneck(32, 8, 1, groups))
        self.head = classifier(32)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(self.stem(x))))


class SqueezeExcitation(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x):
        scale = x.mean((2, 3), keepdim=True)
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(scale), inplace=True)))


class RegNet(nn.Module):
    """RegNet-Y: groups and squeeze-excitation in each block."""

    class Block(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            self.f = nn.Sequential(
                conv(inputs, width, 1),
                conv(width, width, 3, stride, width // 4),
                SqueezeExcitation(width),
                conv(width, width, 1, act=None),
            )
            self.proj = conv(inputs, width, 1, stride, act=None)

        def forward(self, x):
            return F.relu(self.proj(x) + self.f(x))

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8, 3, 2)
        self.trunk_output = nn.Sequential(self.Block(8, 8, 2), self.Block(8, 16, 2))
        self.head = classifier(16)

    def forward(self, x):
        return self.head(self.trunk_output(self.stem(x)))


class DenseNet(nn.Module):
    class Layer(nn.Module):
        def __init__(self, inputs, growth):
            super().__init__()
            self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 8, 1, bias=False)
            self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, growth, 3, 1, 1, bias=False)

        def forward(self, features):
            x = torch.cat(features, 1)
            x = self.conv1(F.relu(self.norm1(x)))
            return self.conv2(F.relu(self.norm2(x)))

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 6)
        self.layers = nn.ModuleDict({f"denselayer{i}": self.Layer(6 + 4 * i, 4) for i in range(3)})
        self.transition = nn.Sequential(conv(18, 9, 1), nn.AvgPool2d(2, 2))
        self.head = classifier(9)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers.values():
            features.append(layer(features))
        return self.head(self.transition(torch.cat(features, 1)))


class InvertedResidual(nn.Module):
    """The block of MobileNetV3 and, with SiLU, of EfficientNet."""

    def __init__(self, inputs, outputs, stride, act, expand=3):
        super().__init__()
        width = expand * inputs
        self.block = nn.Sequential(
            conv(inputs, width, 1, act=act),
            conv(width, width, 5, stride, width, act=act),
            SqueezeExcitation(width),
            conv(width, outputs, 1, act=None),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


class MobileNet(nn.Module):
    def __init__(self, act=nn.Hardswish):
        super().__init__()
        blocks = [InvertedResidual(8, 8, 1, act), InvertedResidual(8, 12, 2, act)]
        self.features = nn.Sequential(conv(3, 8, 3, 2, act=act), *blocks, conv(12, 24, 1, act=act))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(24, 16), act(), nn.Dropout(0.2), nn.Linear(16, 5))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class ConvNeXt(nn.Module):
    class Norm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.gamma = nn.Parameter(0.1 * torch.ones(width))

        def forward(self, x):
            y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
            y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
            return x + y.permute(0, 3, 1, 2)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), self.Norm(8))
        self.stage1 = nn.Sequential(*(self.Block(8) for _ in range(3)))
        self.down = nn.Sequential(self.Norm(8), nn.Conv2d(8, 16, 2, 2))
        self.stage2 = nn.Sequential(*(self.Block(16) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


class ShuffleNet(nn.Module):
    class Unit(nn.Module):
        def __init__(self, width):
            super().__init__()
            half = width // 2
            self.branch = nn.Sequential(
                conv(half, half, 1), conv(half, half, 3, 1, half, act=None), conv(half, half, 1)
            )

        def forward(self, x):
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch(x2)), dim=1)
            n, c, h, w = out.size()
            out = out.view(n, 2, c // 2, h, w)
            return torch.transpose(out, 1, 2).contiguous().view(n, c, h, w)

    def __init__(self):
        super().__init__()
        self.conv1, self.pool = conv(3, 8, 3, 2), nn.MaxPool2d(3, 2, 1)
        self.stage = nn.Sequential(*(self.Unit(8) for _ in range(3)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.stage(self.pool(self.conv1(x))).mean([2, 3]))


class SqueezeNet(nn.Module):
    class Fire(nn.Module):
        def __init__(self, inputs, squeeze, expand):
            super().__init__()
            self.squeeze = nn.Conv2d(inputs, squeeze, 1)
            self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
            self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            x = self.act(self.squeeze(x))
            return torch.cat([self.act(self.expand1x1(x)), self.act(self.expand3x3(x))], 1)

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            self.Fire(8, 4, 8),
            self.Fire(16, 4, 8),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(16, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x):
        return torch.flatten(self.classifier(self.features(x)), 1)


class Inception(nn.Module):
    """GoogLeNet: four branches, and channels of the input scaled as ImageNet wants."""

    class Block(nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.branch1 = conv(inputs, 4, 1)
            self.branch2 = nn.Sequential(conv(inputs, 4, 1), conv(4, 6, 3))
            self.branch3 = nn.Sequential(conv(inputs, 2, 1), conv(2, 4, 5))
            self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv(inputs, 2, 1))

        def branches(self, x):
            return [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)]

        def forward(self, x):
            return torch.cat(self.branches(x), 1)

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8, 7, 2)
        self.inception3a, self.inception3b = self.Block(8), self.Block(16)
        self.fc = classifier(16)

    def forward(self, x):
        r = torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
        g = torch.unsqueeze(x[:, 1], 1) * (0.224 / 0.5) + (0.456 - 0.5) / 0.5
        b = torch.unsqueeze(x[:, 2], 1) * (0.225 / 0.5) + (0.406 - 0.5) / 0.5
        return self.fc(self.inception3b(self.inception3a(self.conv1(torch.cat((r, g, b), 1)))))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = conv(3, 4), conv(4, 8), conv(8, 16)
        self.up2, self.merge2 = nn.ConvTranspose2d(16, 8, 2, 2), conv(16, 8)
        self.merge1, self.out = conv(12, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        y = self.merge2(torch.cat([self.up2(self.bottom(F.max_pool2d(two, 2))), two], 1))
        y = F.interpolate(y, size=one.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(self.merge1(torch.cat([y, one], 1)))


class FeaturePyramid(nn.Module):
    """FPN over a backbone, with a dict of maps as its result."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList([conv(3, 4, 3, 2), conv(4, 8, 3, 2), conv(8, 12, 3, 2)])
        self.inner_blocks = nn.ModuleList(nn.Conv2d(width, 6, 1) for width in (4, 8, 12))
        self.layer_blocks = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))

    def forward(self, x) -> dict[str, Tensor]:
        maps = []
        for layer in self.body:
            x = layer(x)
            maps.append(x)
        last = self.inner_blocks[-1](maps[-1])
        results = [self.layer_blocks[-1](last)]
        for i in (1, 0):
            lateral = self.inner_blocks[i](maps[i])
            last = lateral + F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            results.insert(0, self.layer_blocks[i](last))
        results.append(F.max_pool2d(results[-1], 1, 2, 0))
        return dict(zip(("p0", "p1", "p2", "pool"), results, strict=True))


class Segmentation(nn.Module):
    """DeepLab: dilated convolutions beside a pooled branch, grown to the size of the input."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 8, 3, 2), conv(8, 8, 3, 2))
        self.convs = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=d, dilation=d) for d in (1, 2, 3))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU())
        self.project = nn.Sequential(conv(16, 8, 1), nn.Dropout(0.5), nn.Conv2d(8, 3, 1))

    def forward(self, x):
        features = self.backbone(x)
        found = [F.relu(one(features)) for one in self.convs]
        size = features.shape[-2:]
        found.append(F.interpolate(self.pool(features), size=size, mode="bilinear"))
        y = self.project(torch.cat(found, dim=1))
        return {"out": F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)}


class SuperResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.tail = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())

    def forward(self, x):
        y = self.head(x)
        y = y + 0.1 * self.body(F.leaky_relu(y, 0.2))
        base = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
        return (self.tail(y) + base).clamp(0, 1)


class SwinBlock(nn.Module):
    def __init__(self, width, window, shift, heads=2):
        super().__init__()
        self.window, self.shift, self.heads = window, shift, heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(0.1 * torch.randn((2 * window - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(*2 * [torch.arange(window)], indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None]).permute(1, 2, 0) + window - 1
        index = apart[:, :, 0] * (2 * window - 1) + apart[:, :, 1]
        self.register_buffer("index", index.flatten())
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def attend(self, x):
        b, h, w, c = x.shape
        n = self.window
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = x.view(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, n * n, c)
        qkv = self.qkv(x).reshape(-1, n * n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        bias = self.table[self.index].view(n * n, n * n, -1).permute(2, 0, 1).unsqueeze(0)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1) + bias
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, n * n, c))
        x = x.view(b, h // n, w // n, n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(SwinBlock(8, 2, 0), SwinBlock(8, 2, 1))
        self.merge = nn.Linear(32, 16, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.blocks(self.patches(x).permute(0, 2, 3, 1))
        parts = [x[..., i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return self.head(self.merge(torch.cat(parts, -1)).mean((1, 2)))


class Mixer(nn.Module):
    class Block(nn.Module):
        def __init__(self, tokens, width):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.tokens = nn.Sequential(nn.Linear(tokens, 8), nn.GELU(), nn.Linear(8, tokens))
            self.channels = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

        def forward(self, x):
            x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.norm2(x))

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(*(self.Block(16, 8) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.blocks(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(dim=1))


class Video(nn.Module):
    """R(2+1)D: convolutions of space, then of time."""

    def __init__(self):
        super().__init__()
        self.space = nn.Conv3d(3, 6, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        self.time = nn.Conv3d(6, 8, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.norm1, self.norm2 = nn.BatchNorm3d(6), nn.BatchNorm3d(8)
        self.avgpool, self.fc = nn.AdaptiveAvgPool3d((1, 1, 1)), nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.norm1(self.space(x))), (1, 2, 2))
        x = F.relu(self.norm2(self.time(x)))
        return self.fc(self.avgpool(x).flatten(1))
