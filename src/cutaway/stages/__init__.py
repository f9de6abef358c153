"""The stages of a model's life, one a file, each to be read from top to bottom."""
