"""Tensors in, tensors out: the networks of Hallo3 (no files, no device choice)."""
