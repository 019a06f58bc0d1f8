"""ONNX Runtime: ``MatMulNBitsQuantizer`` with two bits and blocks of 128; run on the identity."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

BLOCK = 128


def model_of(node, initializers, columns, rows):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, columns])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, rows])
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = helper.make_graph([node], "matrix", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(model, columns):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": np.eye(columns, dtype=np.float32)})[0].T


def quantize(weight, mode):
    rows, columns = weight.shape
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of(node, {"w": np.ascontiguousarray(weight.T)}, columns, rows)
    quantizer = MatMulNBitsQuantizer(
        model, bits=2, block_size=BLOCK, is_symmetric=mode == "symmetric"
    )
    quantizer.process()
    model = quantizer.model.model
    return run(model, columns), [numpy_helper.to_array(t) for t in model.graph.initializer]


def by_hand(trits, scale):
    rows, columns = trits.shape
    codes = (trits + 1).astype(np.uint8).reshape(rows, columns // BLOCK, BLOCK // 4, 4)
    initializers = {
        "b": (codes << np.array([0, 2, 4, 6], np.uint8)).sum(-1, dtype=np.uint8),
        "s": np.full((rows, columns // BLOCK), scale, np.float32),
        "z": np.full((rows, columns // BLOCK // 4), 0x55, np.uint8),
    }
    sizes = {"K": columns, "N": rows, "bits": 2, "block_size": BLOCK}
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s", "z"], ["y"], domain="com.microsoft", **sizes
    )
    return run(model_of(node, initializers, columns, rows), columns)
