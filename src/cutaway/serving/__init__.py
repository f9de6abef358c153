"""An OpenAI-compatible server on the engine, and the chat page."""
