"""``flashdraft serve``: the OpenAI-compatible server and its playground."""

from contextlib import nullcontext

from flashdraft.cli.config_options import with_options
from flashdraft.cli.options import check_paths
from flashdraft.cli.serve_options import ServeOptions
from flashdraft.server.listening import listen_on


@with_options(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve a model with OpenAI's API; a playground is at /.

    \b
    Examples:
      flashdraft serve
      flashdraft serve path/to/model --draft path/to/drafter --block-size 8 --port 8000
      flashdraft serve --config server.yaml --dry-run
    """
    check_paths(options.model_name, options.draft)
    # The address before what takes long: the model, and the imports too.
    with nullcontext() if options.dry_run else listen_on(options.host, options.port) as listening:
        from flashdraft.cli.serve_run import run_serve

        run_serve(options, listening)
