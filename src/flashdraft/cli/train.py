"""``flashdraft train``: from prompts to a drafter that `--draft` takes."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flashdraft.cli.config_options import with_config
from flashdraft.cli.options import DeviceOption, DtypeOption, ModelOption
from flashdraft.cli.train_data import TrainData, num_answers, show_answers
from flashdraft.cli.train_forecast import DryRun
from flashdraft.train.config import TrainConfig
from flashdraft.train.log_file import read_log

Features = Annotated[
    Literal["auto", "fly", "cache"],
    typer.Option(
        "--features",
        help="The target's features: computed at every step, kept in OUT/features, or what is cheaper here.",
        rich_help_panel="Training",
    ),
]


Wandb = Annotated[str | None, typer.Option("--wandb", help="Tell wandb too, in this project.")]
Trackio = Annotated[str | None, typer.Option("--trackio", help="Tell trackio too, in this project.")]
Pause = Annotated[
    float, typer.Option("--pause-minutes", help="Stop after this long; run again to resume.", min=0)
]


@with_config(TrainConfig, panel="Training")
@with_config(TrainData, panel="Data", parameter="data")
@with_config(DryRun, panel="Before it starts", parameter="before")
def train(
    config: TrainConfig,
    data: TrainData,
    before: DryRun,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; running again resumes it.")],
    target: ModelOption = "embedded",
    init: Annotated[str | None, typer.Option("--init", help="Start from this drafter's weights.")] = None,
    pause_minutes: Pause = float("inf"),
    features: Features = "fly",
    tensorboard: Annotated[bool, typer.Option(help="Write OUT/tensorboard too.")] = False,
    wandb: Wandb = None,
    trackio: Trackio = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
) -> None:
    """Train a drafter, DFlash or an MTP head: the target answers the prompts, the drafter learns from the answers.

    \b
    Examples:
      flashdraft train --prompts prompts/ --limit 2000 --max-minutes 60 --out runs/first
      flashdraft train --prompts ultrachat_200k/ --split train_sft --dry-run --gpu H200 --gpus 8 --out runs/chat
      flashdraft train --prompts prompts/ --out runs/big --device cuda --dtype bfloat16 \\
          --answer-rows 4096 --rows-per-step 48 --blocks-per-row 128 --total-blocks 100000000
      torchrun --nproc-per-node 8 -m flashdraft train --answers runs/big/answers --out runs/eight \\
          --device cuda --dtype bfloat16 --rows-per-step 64
    """
    from flashdraft.cli.train_screen import STOPPED, asked_to_stop, interruptible, outcome, watched
    from flashdraft.train.ranks import ranks_of_launch
    from flashdraft.train.run import check_shape, make_answers, train_drafter

    data.check()
    folders = list(data.answers or [])
    if init is None and not data.answers_only:
        check_shape(target, config)
    if before.dry_run:
        before.show(target, config, data, features)
        return
    if data.prompts is not None:
        answering = data.on_policy(target, config.seed)
        asked, _ = data.report(answering)
        data.check_validation(asked, answering)
        folders.append(out / "answers")
        with interruptible(lambda: num_answers(out / "answers")):
            make_answers(answering, asked, out / "answers", device, dtype, init, data.rollout())
        show_answers(out / "answers", data.max_new_tokens)
    if data.answers_only:
        return
    with (
        ranks_of_launch(device) as (ranks, device),
        interruptible(lambda: f"the state of the last checkpoint is in {out}"),
        watched(out, ranks.is_first, tensorboard, {"wandb": wandb, "trackio": trackio}) as tell,
        asked_to_stop(ranks.count == 1) as stop,
    ):
        places = target, folders, out, config, device, dtype, init
        drafter = train_drafter(*places, tell, pause_minutes, features, ranks, stop)
    if stop():
        typer.echo(f"stopped: state and drafter are saved in {out}; the same command goes on from there")
        raise typer.Exit(STOPPED)
    if ranks.is_first:
        typer.echo(outcome(drafter, read_log(out), config.total_blocks))
