"""Models of pictures, sound and text in the styles of well-known libraries, at three sizes each."""

import picture_models as pictures
import pytest
import signal_models as signals
import torch
from captured_models import ternarize
from running import from_source
from torch.export import Dim

import tpack
from tpack.build import program_of

FREE = Dim.AUTO
#: The free sizes of a picture.
AREA = {0: FREE, 2: FREE, 3: FREE}


def floats(*sizes):
    """Makes an input of a batch and a length; a size in brackets grows with the length."""
    return lambda batch, length: (
        torch.randn(
            batch, *(size[0] * length if isinstance(size, list) else size for size in sizes)
        ),
    )


def ids(batch, length):
    return (torch.randint(0, 15, (batch, length)),)


PICTURE, WAVE = floats(3, [8], [8]), floats([40])
MODELS = {
    "resnet": (pictures.ResNet, PICTURE, {"x": AREA}),
    "resnext": (lambda: pictures.ResNet(groups=2), PICTURE, {"x": AREA}),
    "regnet": (pictures.RegNet, PICTURE, {"x": AREA}),
    "densenet": (pictures.DenseNet, PICTURE, {"x": AREA}),
    "mobilenet": (pictures.MobileNet, PICTURE, {"x": AREA}),
    "efficientnet": (lambda: pictures.MobileNet(torch.nn.SiLU), PICTURE, {"x": AREA}),
    "convnext": (pictures.ConvNeXt, PICTURE, {"x": AREA}),
    "shufflenet": (pictures.ShuffleNet, PICTURE, {"x": AREA}),
    "squeezenet": (pictures.SqueezeNet, PICTURE, {"x": AREA}),
    "inception": (pictures.Inception, PICTURE, {"x": AREA}),
    "unet": (pictures.UNet, PICTURE, {"x": AREA}),
    "feature pyramid": (pictures.FeaturePyramid, PICTURE, {"x": AREA}),
    "segmentation": (pictures.Segmentation, PICTURE, {"x": AREA}),
    "super-resolution": (pictures.SuperResolution, PICTURE, {"x": AREA}),
    "swin": (pictures.Swin, floats(3, [16], [16]), {"x": AREA}),
    "mixer": (pictures.Mixer, floats(3, 16, 16), None),
    "video": (pictures.Video, floats(3, [2], [8], [8]), {"x": AREA | {4: FREE}}),
    "wav2vec": (signals.FeatureEncoder, WAVE, {"waveforms": {0: FREE, 1: FREE}}),
    "conv-tasnet": (signals.ConvTasNet, floats(1, [8]), {"x": {0: FREE, 2: FREE}}),
    "deepspeech": (signals.DeepSpeech, floats(1, 16, [5]), {"x": {0: FREE, 3: FREE}}),
    "crnn": (signals.Crnn, floats(1, 16, [6]), {"x": {0: FREE, 3: FREE}}),
    "conformer": (signals.Conformer, floats([5], 8), {"x": {0: FREE, 1: FREE}}),
    "wavenet": (signals.WaveNet, ids, None),
    "tacotron": (signals.Tacotron, ids, None),
    "eegnet": (signals.EegNet, floats(4, [16]), {"x": {0: FREE, 2: FREE}}),
    "spectrum": (signals.Spectrum, WAVE, {"waveform": {0: FREE, 1: FREE}}),
    "translator": (signals.Translator, lambda b, n: (*ids(b, n), *ids(b, n + 2)), None),
    "language model": (
        signals.LanguageModel,
        lambda b, n: (*ids(n, b), (torch.randn(2, b, 8), torch.randn(2, b, 8))),
        {"input": {0: FREE, 1: FREE}, "hidden": ({1: FREE}, {1: FREE})},
    ),
}
#: Those of ops that no other test of capture has.
QUICK = ("wav2vec", "tacotron", "language model", "video")


def flat(result):
    if isinstance(result, torch.Tensor):
        return [result]
    items = result.values() if isinstance(result, dict) else result
    return [tensor for item in items for tensor in flat(item)]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in MODELS]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of weight_norm, which models still use
@torch.no_grad()
def test_styles(name, tmp_path):
    make, inputs, shapes = MODELS[name]
    torch.manual_seed(0)
    model = ternarize(make())
    path = tmp_path / "m.safetensors"
    report = tpack.convert(model, path, example_args=inputs(2, 4), dynamic_shapes=shapes)
    assert not [note for note in report.notes if "in all that was captured" in note]
    loaded = tpack.load(path)
    written = from_source(program_of(loaded), standalone=True)
    written.load_state_dict(loaded.state_dict(), strict=True)
    for size in ((2, 4), (3, 6), (5, 3)):
        given = inputs(*size)
        expected = flat(model(*given))
        for reading in (loaded, written):
            torch.testing.assert_close(flat(reading(*flat(given))), expected, rtol=1e-4, atol=1e-5)
