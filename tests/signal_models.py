"""Small models of sound, signals and text, in the styles of torchaudio and of papers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm


class FeatureEncoder(nn.Module):
    """wav2vec 2.0: GroupNorm after the first convolution, and a convolution for positions."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(1, 8, 10, 5, bias=False), nn.Conv1d(8, 8, 3, 2)])
        self.norm = nn.GroupNorm(8, 8)
        self.project = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.Dropout(0.1))
        self.positions = parametrizations.weight_norm(
            nn.Conv1d(12, 12, 4, padding=2, groups=3), dim=2
        )

    def forward(self, waveforms):
        x = waveforms.unsqueeze(1)
        x = F.gelu(self.norm(self.convs[0](x)))
        x = self.project(F.gelu(self.convs[1](x)).transpose(1, 2))
        y = self.positions(x.transpose(-2, -1))[..., :-1]
        return x + F.gelu(y).transpose(-2, -1)


class ConvTasNet(nn.Module):
    """Sources from a mixture: masks on what a learned filter bank gives."""

    class Block(nn.Module):
        def __init__(self, dilation):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv1d(8, 12, 1),
                nn.PReLU(),
                nn.GroupNorm(1, 12, eps=1e-8),
                nn.Conv1d(12, 12, 3, padding=dilation, dilation=dilation, groups=12),
                nn.PReLU(),
                nn.GroupNorm(1, 12, eps=1e-8),
            )
            self.residual, self.skip = nn.Conv1d(12, 8, 1), nn.Conv1d(12, 8, 1)

        def forward(self, x):
            y = self.layers(x)
            return self.residual(y), self.skip(y)

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv1d(1, 8, 4, 2, 2, bias=False)
        self.blocks = nn.ModuleList(self.Block(2**i) for i in range(3))
        self.output = nn.Sequential(nn.PReLU(), nn.Conv1d(8, 16, 1), nn.Sigmoid())
        self.decoder = nn.ConvTranspose1d(8, 1, 4, 2, 2, bias=False)

    def forward(self, x):
        batch, frames = x.shape[0], x.shape[-1]
        features = y = self.encoder(x)
        total = 0.0
        for block in self.blocks:
            residual, skip = block(y)
            y = y + residual
            total = total + skip
        masks = self.output(total).view(batch, 2, 8, -1)
        masked = (masks * features.unsqueeze(1)).view(batch * 2, 8, -1)
        return self.decoder(masked).view(batch, 2, frames)


class DeepSpeech(nn.Module):
    """Convolutions over a spectrogram, then recurrent layers over its frames."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 4, (5, 3), (2, 1), (2, 1)), nn.BatchNorm2d(4), nn.Hardtanh(0, 20)
        )
        self.rnns = nn.ModuleList(
            [nn.GRU(32, 6, bidirectional=True), nn.GRU(12, 6, bidirectional=True)]
        )
        self.norm, self.fc = nn.BatchNorm1d(12), nn.Linear(12, 9, bias=False)

    def forward(self, x):
        x = self.conv(x)
        b, c, f, t = x.size()
        x = x.view(b, c * f, t).permute(2, 0, 1).contiguous()
        for rnn in self.rnns:
            x, _ = rnn(x)
        t, b = x.size(0), x.size(1)
        x = self.norm(x.view(t * b, -1)).view(t, b, -1)
        return F.log_softmax(self.fc(x), -1).transpose(0, 1)


class Crnn(nn.Module):
    """Text in a picture: convolutions, then a bidirectional LSTM over columns."""

    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(6, 8, (8, 3), padding=(0, 1)),
            nn.ReLU(True),
        )
        self.rnn = nn.LSTM(8, 5, num_layers=2, bidirectional=True, dropout=0.2)
        self.embedding = nn.Linear(10, 7)

    def forward(self, x):
        x = self.cnn(x).squeeze(2).permute(2, 0, 1)
        recurrent, _ = self.rnn(x)
        t, b, h = recurrent.size()
        return self.embedding(recurrent.view(t * b, h)).view(t, b, -1)


class Conformer(nn.Module):
    class Convolution(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.layers = nn.Sequential(
                nn.Conv1d(width, 2 * width, 1),
                nn.GLU(dim=1),
                nn.Conv1d(width, width, 7, padding=3, groups=width),
                nn.BatchNorm1d(width),
                nn.SiLU(),
                nn.Conv1d(width, width, 1),
            )

        def forward(self, x):
            return self.layers(self.norm(x).transpose(1, 2)).transpose(1, 2)

    def __init__(self, width=8):
        super().__init__()
        feed = [nn.LayerNorm(width), nn.Linear(width, 16), nn.SiLU(), nn.Linear(16, width)]
        self.feed1 = nn.Sequential(*feed)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.conv = self.Convolution(width)
        self.feed2 = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU())
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        x = x + 0.5 * self.feed1(x)
        y = self.attention_norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.conv(x)
        return self.norm(x + 0.5 * self.feed2(x))


class WaveNet(nn.Module):
    class Layer(nn.Module):
        def __init__(self, dilation):
            super().__init__()
            self.dilation = dilation
            self.filter = nn.Conv1d(6, 6, 2, dilation=dilation)
            self.gate = nn.Conv1d(6, 6, 2, dilation=dilation)
            self.out, self.skip = nn.Conv1d(6, 6, 1), nn.Conv1d(6, 8, 1)

        def forward(self, x):
            y = F.pad(x, (self.dilation, 0))
            y = torch.tanh(self.filter(y)) * torch.sigmoid(self.gate(y))
            return x + self.out(y), self.skip(y)

    def __init__(self):
        super().__init__()
        self.start = nn.Embedding(32, 6)
        self.layers = nn.ModuleList(self.Layer(2**i) for i in range(4))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(8, 8, 1), nn.ReLU(), nn.Conv1d(8, 32, 1))

    def forward(self, samples):
        x = self.start(samples).transpose(1, 2)
        skips = []
        for layer in self.layers:
            x, skip = layer(x)
            skips.append(skip)
        return self.end(sum(skips))


class Tacotron(nn.Module):
    """The encoder of Tacotron: prenet, highway layers, a bidirectional GRU."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8, padding_idx=0)
        self.prenet = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 6)])
        self.bank = nn.ModuleList(nn.Conv1d(6, 6, k, padding=k // 2) for k in (1, 2, 3))
        self.project = weight_norm(nn.Conv1d(18, 6, 3, padding=1))
        self.highway_h, self.highway_t = nn.Linear(6, 6), nn.Linear(6, 6)
        self.gru = nn.GRU(6, 4, 1, batch_first=True, bidirectional=True)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.prenet:
            x = F.dropout(F.relu(layer(x)), 0.5, training=self.training)
        y, length = x.transpose(1, 2), x.size(1)
        y = torch.cat([one(y)[:, :, :length] for one in self.bank], dim=1)
        y = self.project(F.max_pool1d(y, 2, 1, 1)[:, :, :length]).transpose(1, 2) + x
        t = torch.sigmoid(self.highway_t(y))
        y = F.relu(self.highway_h(y)) * t + y * (1.0 - t)
        return self.gru(y)[0]


class EegNet(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, (1, 16), padding="same", bias=False)
        self.depthwise = nn.Conv2d(4, 8, (channels, 1), groups=4, bias=False)
        self.separable = nn.Sequential(
            nn.Conv2d(8, 8, (1, 8), padding=(0, 4), groups=8, bias=False), nn.Conv2d(8, 8, 1)
        )
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(n) for n in (4, 8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm1(self.conv1(x.unsqueeze(1)))
        x = F.avg_pool2d(F.elu(self.norm2(self.depthwise(x))), (1, 4))
        x = F.elu(self.norm3(self.separable(x))).mean(dim=(2, 3))
        return self.head(x)


class Translator(nn.Module):
    """Sequence to sequence by GRUs, the decoder with additive attention to the encoder."""

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(15, 6), nn.Embedding(17, 6)
        self.encoder = nn.GRU(6, 5, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(10, 8)
        self.decoder = nn.GRU(6, 8, batch_first=True)
        self.keys, self.queries, self.energy = nn.Linear(10, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.out = nn.Linear(18, 17)

    def forward(self, source, target):
        memory, last = self.encoder(self.source(source))
        state = torch.tanh(self.bridge(torch.cat((last[-2], last[-1]), dim=1)))
        hidden, _ = self.decoder(self.target(target), state.unsqueeze(0))
        scores = torch.tanh(self.queries(hidden).unsqueeze(2) + self.keys(memory).unsqueeze(1))
        weights = F.softmax(self.energy(scores).squeeze(-1), dim=-1)
        return self.out(torch.cat((hidden, torch.bmm(weights, memory)), dim=-1))


class LanguageModel(nn.Module):
    """An LSTM over tokens that takes and gives its state; the head is tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Embedding(19, 8)
        self.drop = nn.Dropout(0.3)
        self.rnn = nn.LSTM(8, 8, num_layers=2, dropout=0.3)
        self.decoder = nn.Linear(8, 19)
        self.decoder.weight = self.encoder.weight

    def forward(self, input, hidden):  # noqa: A002
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        return F.log_softmax(self.decoder(self.drop(output)).view(-1, 19), dim=1), hidden


class Spectrum(nn.Module):
    """A mel spectrogram by convolutions with fixed filters, and a classifier of its frames."""

    def __init__(self, size=16, mels=6):
        super().__init__()
        n, k = torch.arange(size), torch.arange(size // 2 + 1)[:, None]
        window = torch.hann_window(size)
        angle = 2 * math.pi * n * k / size
        filters = torch.cat((torch.cos(angle), torch.sin(angle))) * window
        self.register_buffer("filters", filters[:, None])
        self.register_buffer("bank", torch.rand(mels, size // 2 + 1))
        self.classify = nn.Conv1d(mels, 4, 3, padding=1)

    def forward(self, waveform):
        x = F.pad(waveform.unsqueeze(1), (8, 8), mode="reflect")
        real, imaginary = F.conv1d(x, self.filters, stride=8).chunk(2, dim=1)
        power = real.pow(2) + imaginary.pow(2)
        mel = torch.log(torch.clamp(torch.matmul(self.bank, power), min=1e-5))
        mel = (mel - mel.mean(-1, keepdim=True)) / (mel.std(-1, keepdim=True) + 1e-5)
        return self.classify(mel).max(dim=-1).values
