"""DFlash 2 from the shipped drafter within minutes of one CUDA GPU: the target's answers, training, figures.

    python recipes/smollm2-135m/dflash2_prompts.py --prompts prompts/ --run runs/dflash2      # once, on any machine
    python recipes/smollm2-135m/dflash2.py --run runs/dflash2 --out weights/ --minutes 9

It answers as long as --answer-seconds lets it, trains from the shipped weights until the minutes are over, and writes
rows of figures, the shipped drafter's first, and weights: on the way a mean of the last steps', as the rate is high
there, at the end those that were reached. A later call that finds answers in --run does not answer again.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from dflash2_answers import save_answers, saved_answers
from dflash2_conversations import saved_conversations
from dflash2_data import Data, FeaturesOnDevice, Sizes, answered, fitting, rows_of
from dflash2_objective import OBJECTIVES, SampledTrainer
from dflash2_prompts import GREEDY, read_prepared
from torch import Tensor

from flashdraft.checkpoint.load import load_drafter, load_target
from flashdraft.data.on_policy import Document
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.provenance import collect_provenance
from flashdraft.train.config import TrainConfig
from flashdraft.train.run import with_dflash2
from flashdraft.train.served import check_served
from flashdraft.train.trainer import Trainer

RESERVE_S = 25.0  # of --minutes, for the last figures and the weights
FITTING = 0.8  # share of the rows whose features are to fit: a fifth more steps is what keeping them brings


class Average:
    """A mean of a drafter's weights over the last ninth of its steps: what the rate is going to find, less its noise.

    A power function of time (arXiv 2312.02696, section 3.1), its exponent 8.
    """

    EXPONENT = 8

    def __init__(self, trainer: Trainer) -> None:
        self.masters, self.parameters = trainer.optimizer.masters, trainer.optimizer.parameters
        self.values = [master.clone() for master in self.masters]
        self.step = max(trainer.progress.step, 1)

    def take(self, step: int) -> None:
        """Take in the weights as they are after ``step`` steps."""
        share = 1 - (self.step / step) ** (self.EXPONENT + 1)
        torch._foreach_lerp_(self.values, self.masters, share)
        self.step = step

    def show(self) -> None:
        """Let the network compute with the mean."""
        self._put(self.values)

    def hide(self) -> None:
        """Let it compute with what is trained."""
        self._put(self.masters)

    def _put(self, values: list[Tensor]) -> None:
        torch._foreach_copy_([parameter.data for parameter in self.parameters], values)


class Output:
    """Rows of figures and the weights, under one folder, written as the run goes."""

    def __init__(self, folder: Path, started: float) -> None:
        self.folder, self.started, self.saved_at = folder, started, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def row(self, **values: Any) -> None:
        """Add a row; said too."""
        line = json.dumps({"at_s": round(time.monotonic() - self.started, 1), **values})
        with (self.folder / "rows.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def weights(self, drafter: DFlashModel) -> None:
        """config.json and shards of less than 16 MiB, as load_drafter reads them, put in place at once."""
        from huggingface_hub import save_torch_state_dict

        state = {
            name: tensor.detach().to("cpu", torch.bfloat16 if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in drafter.state_dict().items()
        }
        part = self.folder / "part"
        part.mkdir(exist_ok=True)
        save_torch_state_dict(state, part, max_shard_size=15_000_000)
        config = drafter.config.to_dict() | {"dtype": "bfloat16"}
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for file in part.iterdir():
            file.replace(self.folder / file.name)
        self.saved_at = time.monotonic()


def documents_of(target: TargetModel, args: argparse.Namespace) -> list[Document]:
    """The answers that --run keeps, or new ones, which are put there."""
    documents = saved_answers(args.run)
    if not documents:
        documents = answered(target, *read_prepared(args.run), sizes_of(args))
        save_answers(documents, args.run)
    return documents


def sizes_of(args: argparse.Namespace) -> Sizes:
    """Of rows and answers, as the command line has them."""
    return Sizes(
        args.seq_len,
        args.long_share,
        args.answer_rows,
        args.answer_seconds,
        args.max_new_tokens,
        args.greedy,
    )


def with_features(trainer: SampledTrainer, rows_per_forward: int) -> dict[str, Any]:
    """Let a trainer read features that are made here, once. Returns what a row of figures tells of it.

    A few rows whose features do not fit are left out; where that were many, features are computed at every step.
    """
    layers, every = trainer.drafter.config.target_layer_ids, trainer.rows
    count = fitting(trainer.target, every, layers)
    if count < FITTING * len(every) or trainer.objective != "labels":  # the others ask the target itself
        return {"rows": len(every), "features": "computed at every step"}
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:count].to(
        every.token_ids.device
    )
    trainer.rows, trainer.is_sampled = every.rows(chosen), trainer.is_sampled[chosen]
    trainer.cache = FeaturesOnDevice(trainer.target, trainer.rows, layers, rows_per_forward)
    return {"rows": count, "rows_left_out": len(every) - count, "features": "on the device"}


def train(args: argparse.Namespace) -> None:
    """Answers, figures of the first drafter, training, figures of the new one."""
    started = time.monotonic()
    deadline = started + 60 * args.minutes
    out = Output(args.out, started)
    target = load_target("embedded", dtype=args.dtype, device=args.device).requires_grad_(False)
    documents = documents_of(target, args)
    data = rows_of(documents, sizes_of(args), target, args.rows_per_step)
    conversations = saved_conversations(args.run, args.seq_len)
    data = data.with_more(*conversations, args.repeats)
    out.row(
        stage="answers",
        num_answers=len(documents),
        num_tokens=sum(len(doc.answer_token_ids) for doc in documents),
        num_rows=len(data.rows),
        num_conversations=len(conversations[0]),
        sampled_share=round(
            float((data.rows.is_anchor & data.is_sampled).sum() / data.rows.is_anchor.sum()), 4
        ),
        held_back={name: int(rows.is_anchor.sum()) for name, rows in data.validation.items()},
    )
    trainer = trainer_of(target, data, args)
    out.row(stage="features", **with_features(trainer, args.rows_per_step), **memory(target.device))
    resumed = trainer.resume()
    out.row(stage="figures", drafter=args.init, **figures(trainer, trainer.evaluate(lambda _: None)))
    if not resumed:  # what compiles does so in a step at a thousandth of the rate, before the clock runs
        trainer.train(lambda _: None, stop=lambda: trainer.progress.step > 0)
        trainer.progress.elapsed_s = 0.0
    left = max(deadline - time.monotonic() - RESERVE_S, 1.0)
    trainer.config = replace(trainer.config, max_minutes=(trainer.progress.elapsed_s + left) / 60)
    facts = {"training_s": round(left, 1), **memory(target.device)}
    out.row(stage="start", resumed=resumed, **facts, provenance=collect_provenance(args.device))
    run(trainer, out, args.save_seconds)
    last_figures(trainer, out, deadline)


def run(trainer: Trainer, out: Output, save_seconds: float) -> None:
    """Train to the end of the schedule; rows and weights as it goes, figures at its end."""
    drafter, average = trainer.drafter, Average(trainer)
    assert isinstance(drafter, DFlashModel)
    found: dict[str, float] = {}

    def hear(line: dict[str, Any]) -> None:
        if "loss" in line:
            out.row(stage="training", **line)
            average.take(line["step"])
        found.update(line.get("simulated_acceptance_length", {}))
        if found:
            out.weights(drafter)
        elif time.monotonic() - out.saved_at > save_seconds:
            average.show()
            out.weights(drafter)
            average.hide()

    trainer.train(hear)
    out.row(stage="figures", drafter="new", **figures(trainer, found))


def trainer_of(target: TargetModel, data: Data, args: argparse.Namespace) -> SampledTrainer:
    """Of --init with those of DFlash 2's parts that it lacks."""
    config = config_of(args)
    drafter = load_drafter(args.init, target, dtype=args.dtype, device=args.device).requires_grad_(True)
    assert isinstance(drafter, DFlashModel)
    if config.head == "dflash2":
        drafter = with_dflash2(drafter, config)
    folder = args.run / f"training-{args.seed}"
    trainer = SampledTrainer(target, drafter, data.rows, data.validation, config, folder)
    trainer.aim(data.is_sampled, args.objective)
    return trainer


def memory(device: torch.device) -> dict[str, Any]:
    """GB of a GPU that are taken, and that were at most."""
    if device.type != "cuda":
        return {}
    taken, most = torch.cuda.memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"gb_taken": round(taken / 1e9, 1), "gb_at_most": round(most / 1e9, 1)}


def last_figures(trainer: Trainer, out: Output, deadline: float) -> None:
    """What the selector brings, and the same prompts while serving, where time is left for it."""
    drafter = trainer.drafter
    assert isinstance(drafter, DFlashModel)
    if drafter.candidate_selector and time.monotonic() < deadline - 8:
        selector, drafter.candidate_selector = drafter.candidate_selector, None
        lengths = trainer.evaluate(lambda _: None)
        out.row(stage="figures", drafter="new without selector", **figures(trainer, lengths))
        drafter.candidate_selector = selector
    if time.monotonic() < deadline - 15:
        config = replace(trainer.config, served_prompts=6)
        out.row(stage="served", **check_served(trainer.target, drafter, trainer.validation, config))


def figures(trainer: Trainer, lengths: dict[str, float]) -> dict[str, Any]:
    """Simulated acceptance ``lengths`` by kind of prompt, their mean, long contexts, seen answers, and all rounds."""
    by_kind = {name: value for name, value in lengths.items() if name not in ("all", "long", "seen")}
    return {
        "block_size": trainer.config.block_size,
        "acceptance_length": by_kind,
        "mean_of_kinds": round(sum(by_kind.values()) / len(by_kind), 4),
        "long_contexts": lengths.get("long"),
        "seen": lengths.get("seen"),
        "over_all_rounds": lengths["all"],
        "blocks": trainer.progress.step * trainer.config.rows_per_step * trainer.config.blocks_per_row,
    }


def config_of(args: argparse.Namespace) -> TrainConfig:
    """The run's settings: those of train.sh's drafter, less rate, as it goes on from trained weights."""
    return TrainConfig(
        head=args.head,
        conv_group_size=32,
        selector_rank=args.selector_rank,
        selector_projects_head=True,
        selector_stops=args.selector_stops,
        seq_len=args.seq_len,
        weighting=args.weighting,
        dpace_power=args.dpace_power,
        rows_per_step=args.rows_per_step,
        blocks_per_row=args.blocks_per_row,
        lr=args.lr,
        warmup=0.03,
        final_lr=0.01,
        total_blocks=10**9,
        max_minutes=1000.0,
        eval_minutes=1e9,
        checkpoint_minutes=2.0,
        served_prompts=0,
        seed=args.seed,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that the study has too."""
    parser.add_argument("--run", type=Path, default=Path("runs/dflash2"), help="prompts, answers, state")
    parser.add_argument("--out", type=Path, required=True, help="rows.jsonl, and what is made")
    parser.add_argument("--answer-seconds", type=float, default=60.0)
    parser.add_argument(
        "--greedy", type=float, default=GREEDY, help="share of the prompts that the target makes itself"
    )
    parser.add_argument("--answer-rows", type=int, default=4096)
    parser.add_argument("--max-new-tokens", type=int, default=272)
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--long-share", type=float, default=0.2, help="of the answers, in long conversations")
    parser.add_argument("--rows-per-step", type=int, default=6)
    parser.add_argument("--blocks-per-row", type=int, default=1024)
    parser.add_argument("--weighting", choices=("dpace", "decay"), default="dpace")
    parser.add_argument("--dpace-power", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--init", default="embedded", help="the drafter to go on from: it, or a folder")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call, all in")
    parser.add_argument("--head", choices=("dflash", "dflash2"), default="dflash2")
    parser.add_argument(
        "--repeats", type=int, default=2, help="of the conversations that --run keeps, in a pass"
    )
    parser.add_argument("--objective", choices=OBJECTIVES, default="labels", help="of sampled answers")
    parser.add_argument("--selector-rank", type=int, default=128)
    parser.add_argument("--selector-stops", action="store_true")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--save-seconds", type=float, default=60.0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
