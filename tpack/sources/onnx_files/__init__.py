"""ONNX files as a source of tensors."""
