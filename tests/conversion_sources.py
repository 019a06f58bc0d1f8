"""Small sources for the tests of convert."""

import torch

from tpack.layerdef import LayerDef, Param, Unspecified


def trits(*shape, seed=0):
    """Random trits, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, shape, generator=generator).float()


def noise(*shape, seed=0):
    """Weights that are not ternary."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows(report):
    """The report as name → (action, scale, method)."""
    return {t.name: (t.action, t.scale, t.method) for t in report.tensors}


def model(*more):
    params = [Param("blocks", "Layer", layer="Block", repeat=2), *more]
    return LayerDef("Model", params, [Unspecified()])
