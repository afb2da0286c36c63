"""``flashdraft tune``: a drafter fitted to one's own logged requests."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashdraft.cli.config_options import with_config
from flashdraft.cli.options import DeviceOption, DtypeOption, ModelOption
from flashdraft.train.tune_config import TuneConfig

if TYPE_CHECKING:
    from flashdraft.data.prompts import Prompt
    from flashdraft.train.tune import Compared, Tuned

_NOTABLE_LOSS = 0.03


@with_config(TuneConfig, panel="Tuning")
def tune(
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
    """Fit a drafter to a domain in minutes, from requests that were logged there; nothing leaves the machine.

    A line of the file holds prompt_token_ids and answer_token_ids, or messages or a prompt, with the answer or without
    (the target then gives it). Some requests are held back: the drafter is kept only when it got better on them.
    Exit code 1: it did not.

    \b
    Examples:
      flashdraft serve --log-requests requests.jsonl
      flashdraft tune --from requests.jsonl --out tuned
      flashdraft serve --draft tuned/drafter
    """
    from flashdraft.cli.train_screen import TrainScreen
    from flashdraft.train.tune import tune_drafter

    prompts, folders = other_prompts(per_task), list(general or [])
    with TrainScreen() as screen:
        tuned = tune_drafter(target, draft, requests, out, config, prompts, folders, device, dtype, screen)
    typer.echo(account(tuned))
    if tuned.drafter is None:
        raise typer.Exit(1)


def other_prompts(per_task: int) -> "list[Prompt]":
    """The first prompts of the five tasks, for measuring only."""
    from flashdraft.bench.tasks import TASKS, load_task
    from flashdraft.data.prompts import Prompt

    return [
        Prompt(f"{task}/{one.id}", task, ({"role": "user", "content": one.turns[0]},))
        for task in TASKS
        for one in (load_task(task, per_task) if per_task else ())
    ]


def account(tuned: "Tuned") -> str:
    """What came of it, for people."""
    lines = ["", f"{'simulated acceptance length':<28}  before   after    change   95 % of the ratio  texts"]
    lines += [
        f"{name:<28}  {one.before:6.2f}  {one.after:6.2f}  {one.gain:+8.1%}   {_ratio(one):<17}  {one.num_texts:5d}"
        for name, one in (("held-back requests", tuned.domain), *tuned.others.items())
    ]
    lines += [
        "",
        f"{tuned.num_blocks} blocks, {tuned.num_requests} requests, {tuned.seconds / 60:.1f} minutes",
    ]
    worse = [name for name, one in tuned.others.items() if one.gain < -_NOTABLE_LOSS]
    if worse:
        lines.append(f"it got worse on {', '.join(worse)}: serve it for this domain, or mix in --general")
    if tuned.drafter is None:
        lines.append(
            f"not better: the change on held-back requests may be chance ({_interval(tuned.domain)}); keep the drafter"
            " that you have, or give more requests or --max-minutes"
        )
    else:
        lines.append(
            f"better on held-back requests ({_interval(tuned.domain)}); the drafter is in {tuned.drafter}"
        )
    return "\n".join(lines)


def _ratio(one: "Compared") -> str:
    return "–" if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"


def _interval(one: "Compared") -> str:
    if one.low is None or one.high is None:
        return f"{one.gain:+.1%}, of one text"
    return f"{one.gain:+.1%}, 95 % interval {one.low - 1:+.1%} to {one.high - 1:+.1%}"
