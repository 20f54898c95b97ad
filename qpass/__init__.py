"""qpass: a PyTorch 2 compiler pass for transformer quantization."""
