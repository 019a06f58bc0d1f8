"""Constants of an ONNX graph, as exporters write them that know no initializers."""

import numpy as np
import onnx_models
from onnx import helper
from onnx_models import array

from tpack.sources import open_source


def constant(name, values):
    return helper.make_node("Constant", [], [name], value=array(name, values))


def test_constants_of_several_floats_are_tensors_of_the_model_whatever_they_are_used_for(tmp_path):
    values = {
        "conv.weight": np.ones((4, 3, 1, 1), np.float32),
        "conv.bias": np.arange(4, dtype=np.float32),
        "norm.scale": np.arange(1, 5, dtype=np.float32),
        "shift": np.ones((1, 4, 1, 1), np.float32),
        "six": np.array(6, np.float32),
        "shape": np.array([1, 4, -1], np.int64),
    }
    norm = ["norm.scale", "conv.bias", "conv.bias", "norm.scale"]
    nodes = [
        *(constant(name, one) for name, one in values.items()),
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"]),
        helper.make_node("BatchNormalization", ["a", *norm], ["b"]),
        helper.make_node("Add", ["b", "shift"], ["c"]),
        helper.make_node("Min", ["c", "six"], ["d"]),
        helper.make_node("Reshape", ["d", "shape"], ["y"]),
    ]
    path = onnx_models.save(tmp_path / "m.onnx", onnx_models.model(nodes, [], ["x"], ["y"]))
    with open_source(path) as source:
        assert source.tensors.keys() == values.keys() - {"six", "shape"}
        for name, tensor in source.tensors.items():
            stored = tensor.read(0, tensor.numel).reshape(tensor.shape)
            assert np.array_equal(stored, values[name])
