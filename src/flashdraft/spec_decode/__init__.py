"""Drafters behind one protocol, and the rule that decides what is kept."""
