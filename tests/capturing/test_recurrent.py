"""Recurrent networks: captured with a free length, packed, printed, read back and refused."""

import pytest
import torch
from captured_models import ternarize
from running import from_source, from_text
from torch import nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence

import tpack
from tpack import LayerDefError, UsageError
from tpack.build import build_module, program_of
from tpack.capturing import capture, trace_module
from tpack.codegen import generate_pytorch_code

FREE = {0: Dim.AUTO, 1: Dim.AUTO}


def flat(result):
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for item in result for tensor in flat(item)]


class Net(nn.Module):
    """A network between two layers; returns its states too."""

    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(6, 5, **options)
        width = options.get("proj_size") or 5
        self.head = nn.Linear(width * (1 + options.get("bidirectional", False)), 3)

    def forward(self, x):
        output, state = self.rnn(x)
        return self.head(output), state


NETS = {
    "lstm": (nn.LSTM, {}),
    "lstm, two layers both ways": (
        nn.LSTM,
        {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.3},
    ),
    "lstm without bias": (nn.LSTM, {"bias": False}),
    "lstm with projections": (nn.LSTM, {"proj_size": 4, "num_layers": 2}),
    "gru": (nn.GRU, {"batch_first": True}),
    "gru, two layers both ways": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "rnn": (nn.RNN, {"batch_first": True}),
    "rnn of relu": (nn.RNN, {"nonlinearity": "relu", "bias": False}),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", NETS)
def test_networks(name, tmp_path):
    kind, options = NETS[name]
    model = ternarize(Net(kind, **options))
    x = torch.randn(3, 4, 6)
    path = tmp_path / "m.safetensors"
    report = tpack.convert(model, path, example_args=x, dynamic_shapes={"x": FREE}, exact=True)
    packed = {row.name for row in report.tensors if row.action == "packed"}
    assert packed == {name for name, weight in model.named_parameters() if weight.dim() == 2}
    loaded = tpack.load(path)
    written = from_source(program_of(loaded), standalone=True)
    written.load_state_dict(loaded.state_dict(), strict=True)
    tpack.save(written, tmp_path / "again.safetensors")
    again = tpack.load(tmp_path / "again.safetensors")
    for size in ((3, 4), (2, 7), (5, 1)):
        given = torch.randn(*size, 6)
        expected = flat(model(given))
        for reading in (loaded, written, again):
            torch.testing.assert_close(flat(reading(given)), expected, rtol=1e-5, atol=1e-5)


class Given(nn.Module):
    """A network that takes its state, and returns it for the next call."""

    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(6, 5, 2, **options)

    def forward(self, x, state):
        return self.rnn(x, state)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_state_that_is_given(kind, batch_first):
    model = Given(kind, batch_first=batch_first).eval()

    def arguments(batch, length):
        size = (batch, length) if batch_first else (length, batch)
        states = [torch.randn(2, batch, 5) for _ in range(2)]
        return torch.randn(*size, 6), tuple(states) if kind is nn.LSTM else states[0]

    states = ({1: Dim.AUTO}, {1: Dim.AUTO}) if kind is nn.LSTM else {1: Dim.AUTO}
    # capture itself would warn that the two states of an LSTM become arguments of their own
    trace = trace_module(model, arguments(3, 4), None, {"x": FREE, "state": states})
    program = trace.program()
    built, written = build_module(program), from_source(program, standalone=True)
    for reading in (built, written):
        reading.load_state_dict(model.state_dict(), strict=True)
        for size in ((3, 4), (2, 6)):
            given = arguments(*size)
            expected = flat(model(*given))
            torch.testing.assert_close(flat(reading(*flat(given))), expected)


def test_one_sample_without_a_batch():
    model = nn.GRU(6, 5).eval()
    program = capture(model, (torch.randn(4, 6),), None, {"input": {0: Dim.AUTO}})
    built = build_module(program)
    built.load_state_dict(model.state_dict())
    x = torch.randn(7, 6)
    torch.testing.assert_close(flat(built(x)), flat(model(x)))


class Cells(nn.Module):
    """Cells, unrolled over the steps of the example."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.GRUCell(6, 5), nn.RNNCell(5, 4, bias=False)
        self.third = nn.RNNCell(4, 3, nonlinearity="relu")
        self.fourth = nn.LSTMCell(3, 2)

    def forward(self, x):
        state = [None] * 4
        for step in x.unbind(1):
            state[0] = self.first(step, state[0])
            state[1] = self.second(state[0], state[1])
            state[2] = self.third(state[1], state[2])
            state[3] = self.fourth(state[2], state[3])
        return (*state[:3], *state[3])


def test_cells():
    model = Cells().eval()
    program = capture(model, (torch.randn(3, 4, 6),))
    source = generate_pytorch_code(program)
    written = from_text(source, program.root)
    built = build_module(program)
    for reading in (built, written):
        reading.load_state_dict(model.state_dict(), strict=True)
        for batch in (3, 5):
            x = torch.randn(batch, 4, 6)
            torch.testing.assert_close(flat(reading(x)), flat(model(x)))


def test_packed_sequences_are_refused():
    class Packing(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(6, 5)

        def forward(self, x, lengths):
            return self.rnn(pack_padded_sequence(x, lengths))[1][0]

    model = Packing().eval()
    with pytest.raises(LayerDefError, match=r"packs sequences by their lengths \(PackedSequence\)"):
        capture(model, (torch.randn(4, 2, 6), torch.tensor([4, 2])))
    packed = pack_padded_sequence(torch.randn(4, 2, 6), torch.tensor([4, 2]))
    with pytest.raises(UsageError, match="example argument is a PackedSequence"):
        capture(model.rnn, (packed,))


def test_dropout_in_training_mode_is_refused():
    model = Net(nn.LSTM, num_layers=2, dropout=0.5).eval()
    model.rnn.train()
    with pytest.raises(LayerDefError, match=r"rnn: runs lstm with dropout in training mode"):
        capture(model, (torch.randn(3, 4, 6),))
    model.rnn.dropout = 0.0
    assert "train=False" in generate_pytorch_code(capture(model, (torch.randn(3, 4, 6),)))
