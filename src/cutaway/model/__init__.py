"""The network: Llama and Qwen3 decoders in plain PyTorch, with their names, so that every checkpoint is theirs too."""
