"""From a model to text: key-value cache, sampling, stopping, and the engine that serves many requests at once."""
