"""LiteRT: AI Edge Quantizer with its recipe of two bits, run by the interpreter on the identity."""

import tempfile

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer import recipe
from ai_edge_quantizer.quantizer import Quantizer


def tensor(name, shape, buffer):
    made = schema.TensorT()
    made.name, made.shape, made.buffer = name, np.array(shape, np.int32), buffer
    made.type = schema.TensorType.FLOAT32
    return made


def model_of(weight):
    model = schema.ModelT()
    model.version = 3
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    model.operatorCodes = [code]
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.frombuffer(weight.tobytes(), np.uint8)
    graph = schema.SubGraphT()
    rows, columns = weight.shape
    graph.tensors = [
        tensor("x", (columns, columns), 0),
        tensor("w", weight.shape, 1),
        tensor("y", (columns, rows), 0),
    ]
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0, 1, -1], [2]
    op.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    op.builtinOptions = schema.FullyConnectedOptionsT()
    graph.operators, graph.inputs, graph.outputs = [op], [0], [2]
    model.subgraphs = [graph]
    return model


def quantize(weight, mode):
    content = flatbuffer_utils.convert_object_to_bytearray(model_of(weight))
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(content)
        file.flush()
        quantizer = Quantizer(file.name)
        quantizer.load_quantization_recipe(recipe.dynamic_wi2c_afp32())
        quantized = quantizer.quantize().quantized_model
    interpreter = Interpreter(model_content=bytes(quantized))
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, np.eye(weight.shape[1], dtype=np.float32))
    interpreter.invoke()
    y = interpreter.get_output_details()[0]["index"]
    return interpreter.get_tensor(y).T, [np.frombuffer(quantized, np.uint8)]
