"""Files for devices, made from trained models: ONNX graphs and GGUF files."""
