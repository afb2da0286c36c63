"""``flashdraft improve``: find where drafts are rejected on logged requests, and train on just that."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashdraft.cli.config_options import with_config
from flashdraft.cli.options import DeviceOption, DtypeOption, ModelOption
from flashdraft.cli.tune import account, other_prompts
from flashdraft.train.tune_config import TuneConfig

if TYPE_CHECKING:
    from flashdraft.train.lost import Counts, Lost


@with_config(TuneConfig, panel="Tuning")
def improve(
    config: TuneConfig,
    requests: Annotated[
        Path, typer.Option("--from", help="Logged requests, JSON lines (flashdraft serve --log-requests).")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the drafter and the account of it.")],
    draft: Annotated[str, typer.Option("--draft", help="The drafter to start from.")] = "embedded",
    target: ModelOption = "embedded",
    general: Annotated[
        list[Path] | None,
        typer.Option("--general", help="Folder of other answers (flashdraft train), mixed in; repeatable."),
    ] = None,
    per_task: Annotated[
        int, typer.Option("--per-task", help="Prompts of each of the five tasks that tell what else changes.")
    ] = 6,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
) -> None:
    """Tune a drafter on what it gets wrong: half of the steps draw blocks that were accepted less than usual.

    The log is read as by tune. What is rejected is told by kind of token, place in the answer and slot, before and
    after, on requests that were held back; the drafter is kept only when it got better on them. Exit code 1: it did
    not.

    \b
    Examples:
      flashdraft serve --log-requests requests.jsonl
      flashdraft improve --from requests.jsonl --out improved
      flashdraft serve --draft improved/drafter
    """
    from flashdraft.cli.train_screen import TrainScreen
    from flashdraft.train.tune import tune_drafter

    places = target, draft, requests, out, config, other_prompts(per_task), list(general or []), device, dtype
    with TrainScreen() as screen:
        tuned = tune_drafter(*places, screen, replays=True)
    assert tuned.lost is not None
    assert tuned.share_looked is not None
    typer.echo(lost_table(*tuned.lost))
    typer.echo(
        f"\ntrained twice on lost drafts of {tuned.share_looked:.0%} of the log, as far as time let it look"
    )
    typer.echo(account(tuned))
    if tuned.drafter is None:
        raise typer.Exit(1)


def lost_table(before: "Lost", after: "Lost") -> str:
    """Where drafts are rejected, before and after: the parts with most rejections first."""
    lines = [
        "",
        f"{'rejected on held-back requests':<32} {'looked at':>9} {'before':>8} {'after':>8} {'of all':>8}",
    ]
    for name in ("by_kind", "by_place", "by_slot"):
        lines += _part(getattr(before, name), getattr(after, name), by_name=name == "by_slot")
        lines.append("")
    return "\n".join(lines[:-1])


def _part(before: "Counts", after: "Counts", by_name: bool) -> Sequence[str]:
    total = max(sum(one.lost for one in before.values()), 1)
    names = sorted(before, key=lambda name: int(name.split()[1]) if by_name else -before[name].lost)
    return [
        f"  {name:<30} {before[name].seen:>9,} {before[name].rate:>8.1%}"
        f" {f'{after[name].rate:.1%}' if name in after else '–':>8} {before[name].lost / total:>8.0%}"
        for name in names
    ]
