"""Handing a pair to another engine: folders that it loads, and the command that it is started with."""
