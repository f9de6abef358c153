"""Pure functions, tensors in, tensors out: what each stage optimises. They import torch and jaxtyping only."""
