"""Files for other runtimes: GGUF for llama.cpp and Ollama, a Modelfile, ONNX."""
