"""The way out for a model: GGUF files, Ollama, Hugging Face and PEFT directories, each with a model card.

Reads a model's directory and its results; trains and evaluates nothing.
"""
