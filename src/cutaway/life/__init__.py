"""The whole life of a model, stage after stage: `steps.py` is the table, `parts.py` goes through it."""
