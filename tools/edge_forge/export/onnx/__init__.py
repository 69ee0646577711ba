"""Surgery on ONNX graphs: trace an encoder, name its linear sites, quantise, inject the adapter bank."""
