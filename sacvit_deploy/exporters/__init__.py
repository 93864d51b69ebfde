"""From a torch model to a bundle of ONNX graphs."""
