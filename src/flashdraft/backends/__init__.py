"""How a target's steps run: one class a way, one line of a registry."""
