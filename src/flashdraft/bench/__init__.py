"""Measuring speculative decoding: tasks, the one-stream run, its rows and its report."""
