"""Many requests at once: who runs, one step for all of them, and the doors to it."""
