"""ONNX models for tests, made by hand, and what ONNX Runtime makes of their weights."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(7)


def trits(*shape):
    """Random trits, each of the three among them, as int8."""
    found = RNG.integers(-1, 2, shape).astype(np.int8)
    found.reshape(-1)[:3] = -1, 0, 1
    return found


def packed(name, kind, codes):
    """An initializer of a type of less than a byte, as raw data."""
    return helper.make_tensor(name, kind, codes.shape, _bytes(codes, kind), raw=True)


def _bytes(codes, kind):
    bits = 4 if kind in (TensorProto.INT4, TensorProto.UINT4) else 2
    flat = codes.reshape(-1).astype(np.uint8) & ((1 << bits) - 1)
    flat = np.concatenate([flat, np.zeros(-len(flat) % (8 // bits), np.uint8)])
    parts = flat.reshape(-1, 8 // bits)
    return (parts << np.arange(0, 8, bits, dtype=np.uint8)).sum(1).astype(np.uint8).tobytes()


def array(name, values):
    return numpy_helper.from_array(np.ascontiguousarray(values), name)


def model(nodes, initializers, inputs=(), outputs=(), opset=25, functions=()):
    """A model of one graph; inputs and outputs are names of float tensors, or value infos."""

    def info(one):
        if not isinstance(one, str):
            return one
        return helper.make_tensor_value_info(one, TensorProto.FLOAT, None)

    graph = helper.make_graph(
        list(nodes), "g", [*map(info, inputs)], [*map(info, outputs)], list(initializers)
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=11, functions=list(functions))


def save(path, made):
    onnx.save(made, path)
    return path


def run(made, inputs=None):
    """What ONNX Runtime gives for the first output, nothing fused."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    return session.run(None, inputs or {})[0]
