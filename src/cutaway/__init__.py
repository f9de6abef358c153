"""Cutaway: a small GPT from raw text to a chat model, with the covers off."""

__version__ = "0.1.0"
