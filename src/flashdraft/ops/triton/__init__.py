"""Kernels for CUDA; each is reached through the op that it is a fast form of."""
