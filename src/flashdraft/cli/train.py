"""``flashdraft train``: from prompts to a drafter that `--draft` takes."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flashdraft.cli.config_options import with_config
from flashdraft.cli.options import DeviceOption, DtypeOption
from flashdraft.errors import UsageError
from flashdraft.train.config import TrainConfig


def _data_option(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, rich_help_panel="Data")


Prompts = Annotated[Path | None, _data_option("--prompts", "JSON lines of prompts, a file or a folder.")]
Answers = Annotated[
    list[Path] | None, _data_option("--answers", "Folder of answers already made; may be repeated.")
]
Temperatures = Annotated[
    list[float] | None,
    _data_option(
        "--temperature", "Answer every prompt at this temperature; repeatable.  [default: 0 and 0.7]"
    ),
]
MaxPromptLen = Annotated[int, _data_option("--max-prompt-len", "Leave out longer prompts (tokens).")]
RolloutUrl = Annotated[
    str | None,
    _data_option(
        "--rollout-url", "A server that answers in place of a target here (vLLM, SGLang, flashdraft)."
    ),
]
RolloutModel = Annotated[
    str | None, _data_option("--rollout-model", "The target's name there.  [default: the first it lists]")
]
RolloutKey = Annotated[
    str | None,
    typer.Option(envvar="FLASHDRAFT_ROLLOUT_KEY", help="Its API key.", rich_help_panel="Data"),
]
Thinking = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking",
        help="The chat template's enable_thinking; noted in the drafter.  [default: not said]",
        rich_help_panel="Data",
    ),
]


Features = Annotated[
    Literal["auto", "fly", "cache"],
    typer.Option(
        "--features",
        help="The target's features: computed at every step, kept in OUT/features, or what is cheaper here.",
        rich_help_panel="Training",
    ),
]


@with_config(TrainConfig, panel="Training")
def train(
    config: TrainConfig,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; running again resumes it.")],
    target: Annotated[str, typer.Option("--target", help="Target, as --model elsewhere.")] = "embedded",
    init: Annotated[str | None, typer.Option("--init", help="Start from this drafter's weights.")] = None,
    pause_minutes: Annotated[
        float, typer.Option("--pause-minutes", help="Stop after this long; run again to resume.")
    ] = float("inf"),
    prompts: Prompts = None,
    answers: Answers = None,
    answers_only: Annotated[bool, _data_option("--answers-only", "Stop when the answers are made.")] = False,
    limit: Annotated[int | None, _data_option("--limit", "Use this many of the prompts.")] = None,
    temperature: Temperatures = None,
    max_prompt_len: MaxPromptLen = 512,
    max_new_tokens: Annotated[int, _data_option("--max-new-tokens", "The longest answer.")] = 384,
    answer_rows: Annotated[int, _data_option("--answer-rows", "Answers made at a time.")] = 32,
    rollout_url: RolloutUrl = None,
    rollout_model: RolloutModel = None,
    rollout_key: RolloutKey = None,
    thinking: Thinking = None,
    features: Features = "fly",
    tensorboard: Annotated[bool, typer.Option(help="Write OUT/tensorboard too.")] = False,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
) -> None:
    """Train a drafter, DFlash or an MTP head: the target answers the prompts, the drafter learns from the answers.

    \b
    Examples:
      flashdraft train --prompts prompts/ --limit 2000 --max-minutes 60 --out runs/first
      flashdraft train --prompts prompts/ --out runs/big --device cuda --dtype bfloat16 \\
          --answer-rows 4096 --rows-per-step 48 --blocks-per-row 128 --total-blocks 100000000
      torchrun --nproc-per-node 8 -m flashdraft train --answers runs/big/answers --out runs/eight \\
          --device cuda --dtype bfloat16 --rows-per-step 64
      flashdraft generate --draft runs/first/drafter "Why is the sky blue?"
    """
    from flashdraft.cli.train_screen import watched
    from flashdraft.data.on_policy import OnPolicyConfig
    from flashdraft.train.ranks import ranks_of_launch
    from flashdraft.train.run import Rollout, check_shape, make_answers, some_prompts, train_drafter

    folders = list(answers or [])
    _check_sources(prompts, folders)
    if init is None and not answers_only:
        check_shape(target, config)
    if prompts is not None:
        template = json.dumps({} if thinking is None else {"enable_thinking": thinking})
        sizes = max_prompt_len, max_new_tokens, answer_rows
        data = OnPolicyConfig(target, tuple(temperature or (0.0, 0.7)), *sizes, config.seed, template)
        server = Rollout(rollout_url, rollout_model, rollout_key) if rollout_url else None
        make_answers(data, some_prompts(prompts, limit), out / "answers", device, dtype, init, server)
        folders.append(out / "answers")
    if answers_only:
        return
    with ranks_of_launch(device) as (ranks, device), watched(out, tensorboard, ranks.is_first) as tell:
        drafter = train_drafter(
            target, folders, out, config, device, dtype, init, tell, pause_minutes, features, ranks
        )
    if ranks.is_first:
        typer.echo(f"the drafter is in {drafter}")


def _check_sources(prompts: Path | None, answers: list[Path]) -> None:
    from flashdraft.train.ranks import launched_count

    if prompts is None and not answers:
        raise UsageError(
            "there is nothing to train on; give --prompts (to be answered) or --answers (made before)"
        )
    if prompts is not None and launched_count() > 1:
        raise UsageError("--prompts are answered by one process; make --answers first (--answers-only)")
