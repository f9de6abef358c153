"""Typed settings: a field with its docstring is the flag, the default and the documentation.

A recipe file (TOML, one table a stage) names few things. What is `None` here is derived from the sizes when the stage
starts, by the rules in `training/derive.py`, which are printed with value, reason and source, and written to the run's
own `recipe.toml`, so that a run is described completely by one file.
"""
