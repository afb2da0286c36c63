"""The ``flashdraft`` command: one file a command; parse, call and show, nothing else."""
