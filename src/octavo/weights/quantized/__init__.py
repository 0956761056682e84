"""Quantized checkpoints in Hugging Face folders: AWQ, GPTQ, FP8, compressed-tensors.

``scheme`` reads a configuration's word on it; one file a method knows which tensors stand for a matrix and how; and
``tensor`` puts them together to one `LazyTensor` under the matrix' own name, so that nobody outside this folder hears
of scales and zeros.
"""
