"""The numerics of each op in plain PyTorch: the specification, and what CPU tensors run."""
