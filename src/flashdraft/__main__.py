"""``python -m flashdraft``, the way torchrun starts it."""

from flashdraft.cli.main import main

main()
