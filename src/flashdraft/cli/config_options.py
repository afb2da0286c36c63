"""Options of a command that are the fields of a config: declared, explained and defaulted where the config is."""

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any, get_type_hints

import typer


def help_of(text: str) -> dict[str, Any]:
    """typer's keywords for a help text that may end with its default in words: "Width.  [default: the target's]"."""
    told, _, default = text.partition("  [default: ")
    return {"help": told, "show_default": default.removesuffix("]") or True}


def with_config(
    config_type: type[Any], panel: str, parameter: str = "config"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each field of ``config_type``, in place of its ``parameter``.

    A field's help is its metadata, and where it has one its flag and environment variable; types are typer's own. The
    command gets the config built.
    """
    hints = get_type_hints(config_type)
    described = [one for one in fields(config_type) if "help" in one.metadata]

    def option(one: Field[Any]) -> inspect.Parameter:
        name = one.name.replace("_", "-")
        flag = one.metadata.get("flag", f"--{name}/--no-{name}" if one.default is True else f"--{name}")
        envvar = one.metadata.get("envvar")
        info = typer.Option(flag, **help_of(one.metadata["help"]), rich_help_panel=panel, envvar=envvar)
        return inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=one.default,
            annotation=Annotated[hints[one.name], info],
        )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            config = config_type(**{one.name: values.pop(one.name) for one in described})
            command(**{parameter: config}, **values)

        own = [p for p in inspect.signature(command).parameters.values() if p.name != parameter]
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        run.__signature__ = inspect.Signature([*own, *map(option, described)])  # type: ignore[attr-defined]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def with_options(options_type: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, whose one parameter is ``options``, an option for each field of ``options_type``.

    A field's annotation says how it is asked for, as typer's do for parameters of functions.
    """
    hints = get_type_hints(options_type, include_extras=True)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            command(options_type(**values))

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=hints[field.name],
                )
                for field in fields(options_type)
            ]
        )
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate
