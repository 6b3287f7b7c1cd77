"""DeepSeek-V3 in plain PyTorch: configuration, layers, checkpoints, generation."""
