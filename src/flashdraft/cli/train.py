"""``flashdraft train``: from prompts to a drafter that `--draft` takes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flashdraft.cli.options import DeviceOption, DtypeOption

_DATA = "Data"
_NETWORK = "Network"
_SCHEDULE = "Schedule"


def train(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; running again resumes it.")],
    target: Annotated[str, typer.Option("--target", help="Target, as --model elsewhere.")] = "embedded",
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="JSON lines of prompts, a file or a folder.", rich_help_panel=_DATA),
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(
            "--answers", help="Folder of answers already made; may be repeated.", rich_help_panel=_DATA
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Use this many of the prompts.", rich_help_panel=_DATA)
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            "--temperature",
            help="Answer every prompt at this temperature; may be repeated.  [default: 0 and 0.7]",
            rich_help_panel=_DATA,
        ),
    ] = None,
    max_prompt_len: Annotated[
        int,
        typer.Option("--max-prompt-len", help="Leave out longer prompts (tokens).", rich_help_panel=_DATA),
    ] = 512,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="The longest answer.", rich_help_panel=_DATA)
    ] = 384,
    answer_rows: Annotated[
        int, typer.Option("--answer-rows", help="Answers made at a time.", rich_help_panel=_DATA)
    ] = 32,
    answers_only: Annotated[
        bool, typer.Option("--answers-only", help="Stop when the answers are made.", rich_help_panel=_DATA)
    ] = False,
    layers: Annotated[
        int, typer.Option("--layers", help="Layers of the drafter.", rich_help_panel=_NETWORK)
    ] = 5,
    features: Annotated[
        int, typer.Option("--features", help="Target layers it is conditioned on.", rich_help_panel=_NETWORK)
    ] = 5,
    block_size: Annotated[
        int,
        typer.Option("--block-size", help="Tokens of a block, anchor included.", rich_help_panel=_NETWORK),
    ] = 16,
    mask_token_id: Annotated[
        int | None,
        typer.Option(
            "--mask-token-id",
            help="Token for MASK.  [default: a spare special token]",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option("--init", help="Start from this drafter's weights.", rich_help_panel=_NETWORK),
    ] = None,
    blocks: Annotated[
        float, typer.Option("--blocks", help="Blocks to train on.", rich_help_panel=_SCHEDULE)
    ] = 2e6,
    minutes: Annotated[
        float,
        typer.Option(
            "--minutes", help="End by then (the schedule adapts); 0: no limit.", rich_help_panel=_SCHEDULE
        ),
    ] = 0.0,
    pause_minutes: Annotated[
        float,
        typer.Option(
            "--pause-minutes", help="Stop after this long; run again to resume.", rich_help_panel=_SCHEDULE
        ),
    ] = float("inf"),
    rows_per_step: Annotated[
        int, typer.Option("--rows-per-step", help="Packed rows in a step.", rich_help_panel=_SCHEDULE)
    ] = 4,
    blocks_per_row: Annotated[
        int, typer.Option("--blocks-per-row", help="Anchors drawn in a row.", rich_help_panel=_SCHEDULE)
    ] = 64,
    seq_len: Annotated[
        int, typer.Option("--seq-len", help="Tokens of a packed row.", rich_help_panel=_SCHEDULE)
    ] = 1024,
    optimizer: Annotated[
        str, typer.Option("--optimizer", help="muon or adamw.", rich_help_panel=_SCHEDULE)
    ] = "muon",
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.", rich_help_panel=_SCHEDULE)] = 2e-3,
    gamma: Annotated[
        float,
        typer.Option("--gamma", help="Decay of the loss over a block's slots.", rich_help_panel=_SCHEDULE),
    ] = 4.0,
    seed: Annotated[
        int, typer.Option("--seed", help="Of weights, rows and anchors.", rich_help_panel=_SCHEDULE)
    ] = 0,
    eval_minutes: Annotated[
        float, typer.Option("--eval-minutes", help="Between evaluations.", rich_help_panel=_SCHEDULE)
    ] = 10.0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
) -> None:
    """Train a DFlash drafter: the target answers the prompts, the drafter learns from the answers.

    \b
    Examples:
      flashdraft train --prompts prompts/ --limit 2000 --minutes 60 --out runs/first
      flashdraft train --prompts prompts/ --out runs/big --device cuda --dtype bfloat16 \\
          --answer-rows 4096 --rows-per-step 32 --blocks-per-row 256 --blocks 1e8
      flashdraft generate --draft runs/first/drafter "Why is the sky blue?"
    """
    from flashdraft.data.on_policy import OnPolicyConfig
    from flashdraft.errors import UsageError
    from flashdraft.train.config import TrainConfig
    from flashdraft.train.run import make_answers, train_drafter

    config = TrainConfig(
        num_layers=layers,
        num_features=features,
        block_size=block_size,
        mask_token_id=mask_token_id,
        seq_len=seq_len,
        rows_per_step=rows_per_step,
        blocks_per_row=blocks_per_row,
        gamma=gamma,
        optimizer=optimizer,
        lr=lr,
        total_blocks=int(blocks),
        max_minutes=minutes,
        eval_minutes=eval_minutes,
        seed=seed,
    )
    folders = list(answers or [])
    if prompts is None and not folders:
        raise UsageError(
            "there is nothing to train on; give --prompts (to be answered) or --answers (made before)"
        )
    if prompts is not None:
        data = OnPolicyConfig(
            target, tuple(temperature or (0.0, 0.7)), max_prompt_len, max_new_tokens, answer_rows, seed
        )
        make_answers(data, prompts, out / "answers", device, dtype, limit)
        folders.append(out / "answers")
    if answers_only:
        return
    drafter = train_drafter(target, folders, out, config, device, dtype, init, _show, pause_minutes)
    typer.echo(f"the drafter is in {drafter}")


def _show(line: dict[str, Any]) -> None:
    typer.echo("  ".join(f"{name} {_short(value)}" for name, value in line.items()))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
