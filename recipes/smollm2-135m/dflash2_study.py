"""Which parts of DFlash 2 pay, and at which rate: new drafters trained for equal times on one card, a row each.

    python recipes/smollm2-135m/dflash2_study.py --run runs/dflash2 --out study/ --seconds 560 --row-seconds 60

Answers, packed rows and the target's features are made once for all rows, or read from --run as dflash2.py left them.
What compiles does so before a row's clock runs. A row says how many blocks it saw, how many a second, and the simulated
acceptance length of held-back answers. None begins that would not be over after --seconds. ``NAME@60`` gives a row
other seconds than --row-seconds, so that a question can be asked at two horizons in one call. ``shipped, ...`` go on
from the shipped drafter, one for each of dflash2_objective.py's losses of sampled answers, and have figures at
temperature 1 too.
"""

import argparse
import time
from dataclasses import replace
from typing import Any

from dflash2 import Output, add_options, config_of, documents_of, figures, sizes_of, with_features
from dflash2_data import rows_of
from dflash2_objective import OBJECTIVES, SampledTrainer
from dflash2_sampled import of_kinds, sampled_lengths
from torch import Tensor, nn

from flashdraft.checkpoint.load import load_drafter, load_target, load_tokenizer
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash2 import CandidateSelector
from flashdraft.provenance import collect_provenance
from flashdraft.train.config import TrainConfig
from flashdraft.train.run import new_drafter

PLAIN = {"head": "dflash", "selector_rank": 0}
CONV = {"head": "dflash2", "selector_rank": 0}
# A row's name -> how its settings differ from those of dflash2.py. The order is that in which they are asked for.
ROWS: dict[str, dict[str, Any]] = {
    "plain, 4e-3": PLAIN | {"lr": 4e-3},
    "conv, 4e-3": CONV | {"lr": 4e-3},
    "plain, 2e-3": PLAIN | {"lr": 2e-3},
    "conv, 2e-3": CONV | {"lr": 2e-3},
    "conv, selector 32": {"selector_rank": 32, "lr": 4e-3},
    "conv, selector 64": {"selector_rank": 64, "lr": 4e-3},
    "conv, selector 128": {"selector_rank": 128, "lr": 4e-3},
    "conv, selector 64, power 0": {"selector_rank": 64, "lr": 4e-3, "dpace_power": 0.0},
    "conv, previous token 64": {"selector_rank": 64, "lr": 4e-3},
    "conv, selector 64, skip": {"selector_rank": 64, "lr": 4e-3, "selector_missing": "skip"},
    "conv, selector 64, decay": {"selector_rank": 64, "lr": 4e-3, "weighting": "decay"},
}
# Rows that go on from the shipped drafter; what sampled answers are trained for is what differs.
SHIPPED = {f"shipped, {objective}": objective for objective in OBJECTIVES}
ROWS |= {name: {"selector_rank": 128, "lr": 1e-3} for name in SHIPPED}
COMPILED_STEPS = 3
ROW_RESERVE_S = 40.0  # to compile and to evaluate


class PreviousTokenHead(CandidateSelector):
    """Scores of candidates by the token before them alone: ``<A[before], B[candidate]>``, as DSpark's head."""

    def __init__(self, hidden_size: int, vocab_size: int, rank: int) -> None:
        super().__init__(hidden_size, vocab_size, rank, projects_head=True)
        del self.hidden_projection
        nn.init.normal_(self.predecessor_projection, std=0.02)

    def forward(self, hidden: Tensor, before: Tensor, candidates: Tensor, head: Tensor) -> Tensor:
        """As CandidateSelector; of ``hidden`` only the type counts."""
        predecessors, successors = self._rows(before, candidates, head.to(hidden.dtype))
        return (predecessors @ successors.mT).float()


class Study:
    """Rows on one target's answers."""

    def __init__(self, args: argparse.Namespace, out: Output) -> None:
        self.args = args
        self.target = load_target("embedded", dtype=args.dtype, device=args.device).requires_grad_(False)
        documents = documents_of(self.target, args)
        self.data = rows_of(documents, sizes_of(args), self.target, args.rows_per_step)
        self.rows, self.is_sampled = self.data.rows, self.data.is_sampled
        self.tokenizer, self.cache = load_tokenizer("embedded"), None
        first = self.trainer("", config_of(args))
        told = with_features(first, args.rows_per_step)
        self.rows, self.is_sampled, self.cache = first.rows, first.is_sampled, first.cache
        facts = {"num_answers": len(documents), "provenance": collect_provenance(args.device)}
        out.row(stage="features", **told, **facts)

    def trainer(self, name: str, config: TrainConfig) -> SampledTrainer:
        """Of a new drafter for the row ``name``, or of the shipped one."""
        target = self.target
        if name in SHIPPED:
            drafter = load_drafter(
                "embedded", target, dtype=target.dtype, device=target.device
            ).requires_grad_(True)
        else:
            drafter = new_drafter(target, self.tokenizer, config)
        assert isinstance(drafter, DFlashModel)
        if "previous token" in name:
            sizes = target.config.hidden_size, target.config.vocab_size, config.selector_rank
            drafter.candidate_selector = PreviousTokenHead(*sizes)
        drafter.to(device=target.device, dtype=target.dtype)
        folder = self.args.run / "study"
        made = SampledTrainer(target, drafter, self.rows, self.data.validation, config, folder, self.cache)
        made.aim(self.is_sampled, SHIPPED.get(name, "labels"))
        return made

    def row(self, name: str, seconds: float) -> dict[str, Any]:
        """Train for ``seconds`` and evaluate."""
        started = time.monotonic()
        config = replace(config_of(self.args), **ROWS[name])
        self.compile(name, config)
        trainer = self.trainer(name, replace(config, max_minutes=seconds / 60))
        lengths: dict[str, float] = {}

        def hear(line: dict[str, Any]) -> None:
            lengths.update(line.get("simulated_acceptance_length", {}))

        compiled_s = time.monotonic() - started
        trainer.train(hear)
        told = figures(trainer, lengths)
        trained_s = trainer.progress.elapsed_s
        if name in SHIPPED:
            told["temperature_1"] = self.sampled(trainer)
        return {
            "compiled_s": round(compiled_s, 1),
            "train_s": round(trained_s, 1),
            "blocks_per_s": round(told["blocks"] / trained_s),
            **told,
        }

    def sampled(self, trainer: SampledTrainer) -> dict[str, float]:
        """Expected tokens a round of held-back answers at temperature 1 by each rule, mean of the kinds."""
        assert isinstance(trainer.drafter, DFlashModel)
        config, found = trainer.config, {}
        for kind, rows in self.data.sampled.items():
            sizes = config.block_size, config.rows_per_step, config.blocks_per_row
            found[kind] = sampled_lengths(self.target, trainer.drafter, rows, sizes)
        return of_kinds(found)

    def compile(self, name: str, config: TrainConfig) -> None:
        """A few steps of a drafter that is thrown away: what compiles does so before a row's clock runs."""
        trainer = self.trainer(name, config)
        trainer.train(lambda _: None, stop=lambda: trainer.progress.step >= COMPILED_STEPS)


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--seconds", type=float, default=560.0, help="of this call, all in")
    parser.add_argument("--row-seconds", type=float, default=60.0)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help=f"of {', '.join(ROWS)}; with @SECONDS")
    args = parser.parse_args()
    args.head, args.selector_rank, args.selector_stops, args.lr = "dflash2", 64, False, 2e-3
    out = Output(args.out, started)
    study = Study(args, out)
    for asked in args.rows:
        name, _, given = asked.partition("@")
        seconds = float(given or args.row_seconds)
        if time.monotonic() - started + seconds + ROW_RESERVE_S > args.seconds:
            out.row(stage="left out", row=asked)
            continue
        out.row(stage="row", row=name, seed=args.seed, seconds=seconds, **study.row(name, seconds))


if __name__ == "__main__":
    main()
