"""A command's help with its options in groups, by the panel that each of them names."""

from typing import Any

from typer.core import TyperCommand


class GroupedCommand(TyperCommand):
    """Options without a panel come first, the others under its name, in the order in which they are declared."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """See typer's TyperCommand."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if (row := parameter.get_help_record(ctx)) is None:
                continue
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            groups.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(row)
        for name, rows in groups.items():
            if rows:
                with formatter.section(name):
                    formatter.write_dl(rows)
