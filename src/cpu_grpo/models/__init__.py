"""Models on disk: any source becomes a directory of safetensors and tokenizer, which is checked before it is read.

Knows nothing of what a model is used for.
"""
