"""``flashdraft setup``: fetch and build now what the first use would wait for."""

import typer


def setup() -> None:
    """Fetch the embedded pair and compile the C++ layers now, so that nothing waits for them later.

    Both happen by themselves when they are first needed. Run again, it checks what is there.

    \b
    Examples:
      flashdraft setup
    """
    from flashdraft.checkpoint.embedded import embedded_drafter, embedded_mtp, embedded_target
    from flashdraft.native.library import library

    typer.echo(f"target    {embedded_target()}")
    typer.echo(f"drafter   {embedded_drafter()}")
    typer.echo(f"MTP head  {embedded_mtp()}")
    compiled = library()
    typer.echo(f"layers    {'C++, compiled for this CPU' if compiled else 'PyTorch'}")
