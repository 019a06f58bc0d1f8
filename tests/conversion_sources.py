"""Small sources for the tests of convert."""

from tpack.layerdef import LayerDef, Param, Unspecified


def rows(report):
    """The report as name → (action, scale, method)."""
    return {t.name: (t.action, t.scale, t.method) for t in report.tensors}


def model(*more):
    params = [Param("blocks", "Layer", layer="Block", repeat=2), *more]
    return LayerDef("Model", params, [Unspecified()])
