"""GGML's block formats, in plain numpy: what the bytes of a GGUF file's tensors mean."""
