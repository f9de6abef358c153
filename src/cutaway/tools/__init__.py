"""Tools that a model may call: typed Python functions with JSON schemas, and what they answer."""
