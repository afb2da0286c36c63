"""``flashdraft train --dry-run``: what a run will take of named GPUs, not of CPUs; only configs are read or fetched."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

from flashdraft.cli.train_data import TrainData
from flashdraft.errors import DataError, UsageError
from flashdraft.train.config import TrainConfig, at_least, check_fields

if TYPE_CHECKING:
    from flashdraft.gpus import Gpu


@dataclass(frozen=True)
class DryRun:
    """Whether a run is forecast in place of started, and for which GPUs."""

    dry_run: bool = field(
        default=False, metadata={"help": "Tell memory, speed, hours and disk on GPUs in place of training."}
    )
    gpu: str = field(
        default="H200",
        metadata={"help": "With --dry-run: a GPU's name, or TB/s,TFLOPS[,GB/s of its link[,GB]]."},
    )
    gpus: int = field(default=1, metadata={"help": "With --dry-run: how many, eight to a host."})

    def show(self, target: str, config: TrainConfig, data: TrainData, features: str) -> None:
        """Print the forecast. Raises UsageError for settings that do not go with so many GPUs, or an MTP head."""
        from flashdraft.checkpoint.load import load_tokenizer, outline_target
        from flashdraft.gpus import read_gpu
        from flashdraft.train.forecast import PairSizes, duration, forecast
        from flashdraft.train.run import dflash_shape

        check_fields(self, at_least(self, 1, "gpus"))
        if config.method != "dflash":
            raise UsageError("--dry-run forecasts DFlash drafters; leave --method out")
        if config.rows_per_step % (self.gpus * config.accumulate):
            raise UsageError(
                f"rows_per_step is {config.rows_per_step}; expected a multiple of {self.gpus * config.accumulate}"
                " (GPUs times --accumulate)"
            )
        gpu, outline = read_gpu(self.gpu), outline_target(target)
        shape = dflash_shape(outline, load_tokenizer(target), config)
        num_answers, num_tokens = self._data(target, config, data)
        pair = PairSizes(outline.config, shape)
        found = forecast(pair, config, gpu, self.gpus, num_tokens, features == "cache")
        typer.echo(
            f"{target} on {self.gpus} x {self.gpu}: target {(pair.layers + pair.whole) / 1e9:.1f} G parameters, drafter"
            f" {pair.draft / 1e9:.2f} G\n{found.to_text()}"
        )
        if num_tokens:
            epochs = config.total_blocks * config.seq_len / config.blocks_per_row / num_tokens
            typer.echo(f"data: at most {num_tokens:,} tokens, seen {epochs:.1f} times")
        if num_answers:
            hours = self._answer_hours(target, gpu, data, num_answers)
            typer.echo(
                f"answers: {num_answers:,}, at most {duration(hours)} with {data.answer_rows:,} at a time"
            )
        typer.echo(
            "Speeds are the data sheet's times shares: 25 % of the peak for narrow drafters, 58 % for wide ones, both"
            " measured on an H200; benchmarks/rehearse_27b.py compares them with a GPU. CPUs are not forecast: there a"
            " minute of the run itself (--max-minutes 1) tells its speed, and its process's size the memory."
        )

    def _data(self, target: str, config: TrainConfig, data: TrainData) -> tuple[int, int]:
        """Answers still to be made, and tokens of all: no more than that."""
        from flashdraft.data.on_policy import count_answers

        num_tokens = 0
        for folder in data.answers or []:
            counts = count_answers(folder).values()
            if not counts:
                raise DataError(f"{folder}: no answers found; expected a folder made by `flashdraft train`")
            num_tokens += sum(one.num_tokens for one in counts)
        if data.prompts is None:
            return 0, num_tokens
        report = data.report(data.on_policy(target, config.seed))[1]
        of_prompts = report.num_tokens * len(data.temperature or (0, 0))
        return report.num_answers, num_tokens + of_prompts + report.num_answers * data.max_new_tokens

    def _answer_hours(self, target: str, gpu: "Gpu", data: TrainData, num_answers: int) -> float:
        """Of plain decoding as servers do it, all answers as long as they may be."""
        from flashdraft.bench.cost_model import Job
        from flashdraft.bench.efficiency import steady_tokens_per_s
        from flashdraft.bench.gpu_planning import forecast, pair_of

        job = Job(max(data.max_prompt_len // 2, 1), data.max_new_tokens)
        plan = forecast(pair_of(target, None), gpu, job, "dflash")
        speed = steady_tokens_per_s(plan.costs, job, data.answer_rows, 1, 1.0, plan.token_s)
        return num_answers * data.max_new_tokens / (speed * self.gpus) / 3600
