"""The architectures: one file each, config and tensors in, ONNX nodes out."""
