"""Files of TFLite, written with the schema of its own runtime."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int4": schema.TensorType.INT4,
    "int2": schema.TensorType.INT2,
    "bool": schema.TensorType.BOOL,
    "string": schema.TensorType.STRING,
}


def packed(codes, bits):
    """Codes in two's complement, low bits first, flat over the tensor."""
    per_byte = 8 // bits
    flat = codes.astype(np.int64).reshape(-1) & ((1 << bits) - 1)
    flat = np.concatenate([flat, np.zeros(-len(flat) % per_byte, np.int64)])
    shifted = flat.reshape(-1, per_byte) << np.arange(0, 8, bits)
    return shifted.sum(axis=1).astype(np.uint8).tobytes()


class Model:
    """A model of one graph, to which tensors and operators are added.

    Args:
        outside: whether the bytes of tensors follow the FlatBuffer, as those of large models do.
    """

    def __init__(self, *, outside=False):
        self.outside = outside
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.operatorCodes, self.model.buffers = [], [schema.BufferT()]
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.model.subgraphs = [self.graph]
        self.contents = []

    def tensor(self, name, shape, kind="float32", data=None, scales=None, zeros=None, axis=0):
        """Add a tensor; return its number. ``data`` is an array of codes or values, or bytes."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name.encode(), list(shape), TYPES[kind]
        if data is not None:
            tensor.buffer = len(self.model.buffers)
            bits = {"int4": 4, "int2": 2}.get(kind)
            if not isinstance(data, bytes):
                data = packed(data, bits) if bits else np.ascontiguousarray(data).tobytes()
            buffer = schema.BufferT()
            if not self.outside:
                buffer.data = list(data)
            else:
                buffer.offset, buffer.size = 2, len(data)
            self.contents.append((buffer, data))
            self.model.buffers.append(buffer)
        if scales is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = [float(s) for s in np.atleast_1d(scales)]
            points = [0] * len(tensor.quantization.scale) if zeros is None else list(zeros)
            tensor.quantization.zeroPoint = points
            tensor.quantization.quantizedDimension = axis
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, name, inputs, outputs, options=None):
        """Add an operator."""
        number = getattr(schema.BuiltinOperator, name)
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        self.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = inputs, outputs
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self.graph.operators.append(operator)

    def fully_connected(self, weight, inputs, outputs):
        """Make a model of one layer of a weight that was added."""
        x = self.tensor("x", (1, inputs))
        y = self.tensor("y", (1, outputs))
        self.graph.inputs, self.graph.outputs = [x], [y]
        self.operator("FULLY_CONNECTED", [x, weight, -1], [y], schema.FullyConnectedOptionsT())

    def content(self):
        """Return the bytes of the file."""
        data = self._packed()
        if self.outside:
            at = len(data)
            for buffer, content in self.contents:
                at += -at % 16
                buffer.offset = at
                at += len(content)
            data = bytearray(self._packed())
            for buffer, content in self.contents:
                data += bytes(buffer.offset - len(data)) + content
        return bytes(data)

    def _packed(self):
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return builder.Output()
