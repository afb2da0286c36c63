"""The training loop (paper, A.1): random anchors, block mask, decayed cross-entropy, frozen target."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flashdraft.data.feature_cache import FeatureCache
from flashdraft.data.loader import PackedRows
from flashdraft.errors import DataError
from flashdraft.models.base import TargetModel, compile_layers
from flashdraft.models.dflash import DFlashModel
from flashdraft.train.anchors import Blocks, draw_blocks, sample_slots
from flashdraft.train.checkpoint import load_state, save_state
from flashdraft.train.config import TrainConfig
from flashdraft.train.features import wanted_layers
from flashdraft.train.forward import (
    Network,
    block_hidden,
    recompute_layers,
    target_features,
    teacher_hidden,
)
from flashdraft.train.log_file import LOG_FILE, append_line, cut_log, read_log
from flashdraft.train.loss import HeadLoss, decay_weights, dpace_weights, label_log_probs, selector_loss
from flashdraft.train.optimizer import Optimizer
from flashdraft.train.ranks import Ranks
from flashdraft.train.served import check_served
from flashdraft.train.simulate import simulate

FREE_TO_CHANGE = (  # when a run is resumed
    "max_minutes", "eval_minutes", "checkpoint_minutes", "served_prompts", "shard_target",
)  # fmt: skip
STEPS_BETWEEN_READS = 20  # the device is asked for the loss this often; it runs ahead in between
TIMED_READ_S = 5.0  # and this often where the schedule is one of time: slow steps must not overrun it
SLOW_READ_S = 60.0  # and no less often than this: runs of slow steps are seen to go on, and are saved


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    elapsed_s: float = 0.0

    def share(self, config: TrainConfig) -> float:
        """How much of the run is done, 0 to 1: a step that takes longer than all its minutes ends it, too."""
        by_blocks = self.step * config.rows_per_step * config.blocks_per_row / config.total_blocks
        by_time = self.elapsed_s / (config.max_minutes * 60) if config.max_minutes > 0 else 0.0
        return min(max(by_blocks, by_time), 1.0)


class Trainer:
    """Trains ``drafter`` for ``target`` on packed rows; everything it leaves goes to ``folder``.

    ``cache``: features of all ``rows``, made before; None: computed at every step.
    """

    def __init__(
        self,
        target: TargetModel,
        drafter: Network,
        rows: PackedRows,
        validation: dict[str, PackedRows],
        config: TrainConfig,
        folder: Path,
        cache: FeatureCache | None = None,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ) -> None:
        self.target, self.drafter, self.rows, self.config, self.folder = target, drafter, rows, config, folder
        self.validation, self.cache, self.ranks = validation, cache, ranks
        folder.mkdir(parents=True, exist_ok=True)
        device = target.device
        self.weights = decay_weights(config.block_size, config.gamma, device)
        self.optimizer = Optimizer(
            drafter, config.optimizer, config.lr, config.weight_decay, config.grad_clip, ranks
        )
        self.generator = torch.Generator(device=device)
        self.progress = Progress()
        if config.recompute:
            recompute_layers(drafter)
        if device.type == "cuda":
            compile_layers(target, drafter)
            if drafter.is_chained:
                drafter.compile(dynamic=False)  # one layer, and what joins its inputs
        if ranks.count > 1 and config.shard_target:
            ranks.shard_layers(target)

    def resume(self) -> bool:
        """Go on from the folder's state, if there is one. Raises DataError when settings or shapes differ."""
        state = load_state(self.folder)
        if state is None:
            if self.ranks.is_first:
                cut_log(self.folder, 0)
            return False
        head, matrices = state
        now, then = asdict(self.config), asdict(TrainConfig()) | head["config"]
        changed = [k for k in now if then[k] != now[k] and k not in FREE_TO_CHANGE]
        if changed:
            raise DataError(
                f"{self.folder}: its run has other settings ({', '.join(sorted(changed))});"
                " use the same ones, or another --out folder"
            )
        then_shapes = {name: matrix.shape for name, matrix in matrices["masters"].items()}
        if then_shapes != {name: matrix.shape for name, matrix in self.drafter.named_parameters()}:
            raise DataError(
                f"{self.folder}: its run trains a drafter of another shape; use the same --model and --init, or another"
                " --out folder"
            )
        self.optimizer.load_state_dict(matrices)
        self.progress = Progress(head["step"], head["elapsed_s"])
        if self.ranks.is_first:
            cut_log(self.folder, self.progress.step)
        return True

    def save(self) -> None:
        """Write the state to resume from."""
        head = {"config": asdict(self.config), **asdict(self.progress)}
        save_state(self.folder, head, self.optimizer.state_dict(), self.ranks)

    def train(
        self,
        on_report: Any,
        pause_s: float = float("inf"),
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run to the end of the schedule, for ``pause_s`` seconds or until ``stop``; in each case the state is saved.

        ``on_report`` gets a dict for every log line and evaluation. ``stop`` is asked between steps; a run that it ends
        is not evaluated.
        """
        config, progress = self.config, self.progress
        pause_s, first_step = pause_s + progress.elapsed_s, progress.step
        next_eval, next_save = (
            progress.elapsed_s + 60 * m for m in (config.eval_minutes, config.checkpoint_minutes)
        )
        since, since_step = time.perf_counter(), progress.step
        longest_s = TIMED_READ_S if config.max_minutes > 0 else SLOW_READ_S
        losses = []

        def goes_on() -> bool:
            return progress.share(config) < 1 and progress.elapsed_s < pause_s and not stop()

        while goes_on():
            losses.append(self._step())
            progress.step += 1
            # Several processes read at the same steps, whatever their clocks say.
            is_due = self.ranks.count == 1 and time.perf_counter() - since >= longest_s
            is_last = progress.share(config) >= 1 or stop()
            if progress.step % STEPS_BETWEEN_READS and not (is_due or is_last):
                continue
            loss = self.ranks.sum(torch.stack(losses).mean()).item()
            losses = []
            seconds = self.ranks.from_first(time.perf_counter() - since, self.target.device)
            progress.elapsed_s += seconds
            self._report(on_report, loss, (progress.step - since_step) / seconds)
            if progress.elapsed_s >= next_eval and goes_on():  # the end has its own
                self.evaluate(on_report)
                next_eval = progress.elapsed_s + 60 * config.eval_minutes
            if progress.elapsed_s >= next_save and goes_on():
                self.save()
                next_save = progress.elapsed_s + 60 * config.checkpoint_minutes
            since, since_step = time.perf_counter(), progress.step
        self.save()
        if not stop() and (progress.step > first_step or not self._is_evaluated()):
            self.evaluate(on_report)

    def _is_evaluated(self) -> bool:
        """Whether the log has an evaluation of where the run stands: one that is over may be started again."""
        log = read_log(self.folder) if (self.folder / LOG_FILE).exists() else []
        return any(
            "simulated_acceptance_length" in line and line["step"] == self.progress.step for line in log
        )

    def evaluate(self, on_report: Any) -> dict[str, float]:
        """Simulated acceptance length on the validation documents, by kind of text and over all of them.

        Some of them are served as well. Of one that drafts token by token also at 7 and at 15 drafts, whatever it is
        trained for. Without such documents there is nothing to tell.
        """
        if not self.validation:
            return {}
        lengths = self._simulated_lengths(self.config.block_size)
        values: dict[str, Any] = {"simulated_acceptance_length": lengths}
        if self.drafter.is_chained:
            at = {size: self._simulated_lengths(size) for size in {8, 16} - {self.config.block_size}}
            at[self.config.block_size] = lengths
            values["at_drafts"] = {str(size - 1): at[size]["all"] for size in sorted(at)}
        if self.config.served_prompts:
            values |= check_served(self.target, self.drafter, self.validation, self.config)
        self._log(on_report, values)
        return lengths

    def _simulated_lengths(self, block_size: int) -> dict[str, float]:
        config, lengths = self.config, {}
        num_tokens = num_rounds = 0
        for name, rows in self.validation.items():
            result = simulate(
                self.target, self.drafter, rows, block_size, config.rows_per_step, config.blocks_per_row
            )
            lengths[name] = round(result.acceptance_length, 4)
            num_tokens += result.num_tokens
            num_rounds += len(result.num_accepted)
        lengths["all"] = round(num_tokens / max(num_rounds, 1), 4)
        return lengths

    def _step(self) -> torch.Tensor:
        """One update; returns this process's share of the loss."""
        config = self.config
        # All randomness of a step comes from (seed, step): a resumed run draws what it would have drawn, and every
        # process draws all of it.
        self.generator.manual_seed(config.seed * 1_000_003 + self.progress.step)
        index = self._row_index()
        blocks = draw_blocks(self.rows.rows(index), config.blocks_per_row, config.block_size, self.generator)
        parts = self.ranks.parts(config.rows_per_step, config.accumulate)
        slots = self._slots_ahead(index, blocks, parts)
        losses = [self._learn(index[part], blocks.rows(part), slots, part) for part in parts]
        self.optimizer.step(config.lr_factor(self.progress.share(config)))
        return torch.stack(losses).sum()

    def _slots_ahead(self, index: torch.Tensor, blocks: Blocks, parts: list[slice]) -> torch.Tensor | None:
        """Which slots of the step the loss is computed for; None: to be drawn when their one forward is there."""
        if self.config.weighting == "decay":
            return self._draw_slots(self.weights * blocks.has_label)
        if len(parts) == 1:
            return None
        with torch.no_grad():  # their weights follow from all forwards, and a gradient from each in turn
            own = [
                self._confidence_weights(self._forward(index[part], blocks.rows(part))[0], blocks.rows(part))
                for part in parts
            ]
        return self._draw_slots(self.ranks.joined(torch.cat(own)))

    def _draw_slots(self, weights: torch.Tensor) -> torch.Tensor:
        """Draw a step's slots by ``weights`` [num_rows, num_blocks, block_size], of all its rows."""
        config = self.config
        num_slots = int(config.slots_per_block * config.rows_per_step * config.blocks_per_row)
        return sample_slots(weights.flatten(), num_slots, self.generator)

    def _forward(self, index: torch.Tensor, blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of every slot of the rows ``index``, and the target's final ones where they are wanted."""
        rows = self.rows.rows(index)
        features = self._features(index, rows)
        width = len(self.drafter.config.target_layer_ids) * self.target.config.hidden_size
        own = features[..., :width].contiguous()
        return block_hidden(self.target, self.drafter, rows, own, blocks), features[..., width:]

    def _learn(
        self, index: torch.Tensor, blocks: Blocks, slots: torch.Tensor | None, part: slice
    ) -> torch.Tensor:
        """Take the gradient of the rows ``index``, a step's ``part``; returns their share of its loss."""
        config = self.config
        hidden, final = self._forward(index, blocks)
        if slots is None:
            slots = self._draw_slots(self.ranks.joined(self._confidence_weights(hidden, blocks)))
        share, is_part = 1.0, len(index) < config.rows_per_step
        if is_part:
            slots, share = _own_slots(slots, part, blocks.labels[0].numel())
        counts = None
        if not slots.is_cuda:  # there shapes stay the same, and nobody waits for the device to tell them
            slots, counts = torch.unique_consecutive(slots, return_counts=True)
        chosen, labels = hidden.flatten(0, 2)[slots], blocks.labels.flatten()
        selecting, candidates = None, None
        if isinstance(self.drafter, DFlashModel) and self.drafter.candidate_selector and config.selector_loss:
            selecting = self.drafter
            candidates = slots.new_empty(len(slots), selecting.config.selector_top_k)
        loss: torch.Tensor = HeadLoss.apply(  # type: ignore[no-untyped-call]
            chosen,
            self.target.head_weight(),
            labels[slots],
            counts,
            teacher_hidden(final, blocks)[slots] if config.distill > 0 else None,
            config.distill,
            is_part,  # how many slots fall into it is another number at every step
            candidates,
        )
        if selecting is not None and candidates is not None:
            loss = loss + config.selector_loss * selector_loss(
                selecting,
                self.target.head_weight(),
                chosen.detach() if config.selector_stops else chosen,
                candidates,
                labels[slots],
                labels[slots - 1],  # a block's slot 0 is never drawn
                counts,
                config.selector_missing == "skip",
            )
        loss = loss * share
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.take_gradients()
        return loss.detach()

    def _confidence_weights(self, hidden: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        """D-PACE's weight of each slot, float32 [num_rows, num_blocks, block_size]; 0 where there is no label."""
        labels = blocks.labels
        log_probs = label_log_probs(
            hidden.detach().flatten(0, 2), self.target.head_weight(), labels.flatten()
        )
        config = self.config
        return dpace_weights(
            log_probs.view_as(labels), blocks.has_label, config.dpace_alpha, config.dpace_power
        )

    def _features(self, index: torch.Tensor, rows: PackedRows) -> torch.Tensor:
        if self.cache is not None:
            return self.cache.read(index, self.target.device)
        return target_features(self.target, rows, wanted_layers(self.drafter, self.config))

    def _row_index(self) -> torch.Tensor:
        """This step's rows: each epoch is its own shuffle of all rows."""
        count, total = self.config.rows_per_step, len(self.rows)
        first = self.progress.step * count
        parts = []
        for epoch in range(first // total, (first + count - 1) // total + 1):
            order = torch.randperm(total, generator=torch.Generator().manual_seed(self.config.seed + epoch))
            begin, end = max(first - epoch * total, 0), min(first + count - epoch * total, total)
            parts.append(order[begin:end])
        return torch.cat(parts).to(self.target.device)

    def _report(self, on_report: Any, loss: float, steps_per_s: float) -> None:
        config, progress = self.config, self.progress
        blocks_per_step = config.rows_per_step * config.blocks_per_row
        self._log(
            on_report,
            {
                "loss": round(loss, 5),
                "lr": config.lr * config.lr_factor(progress.share(config)),
                "blocks_per_s": round(steps_per_s * blocks_per_step, 1),
                "tokens_per_s": round(steps_per_s * config.rows_per_step * config.seq_len, 1),
                "progress": round(progress.share(config), 5),
            },
        )

    def _log(self, on_report: Any, values: dict[str, Any]) -> None:
        if not self.ranks.is_first:
            return
        blocks = self.progress.step * self.config.rows_per_step * self.config.blocks_per_row
        line = {
            "step": self.progress.step,
            "blocks": blocks,
            "elapsed_s": round(self.progress.elapsed_s, 2),
            **values,
        }
        append_line(self.folder, line)
        on_report(line)


def _own_slots(slots: torch.Tensor, part: slice, slots_per_row: int) -> tuple[torch.Tensor, float]:
    """Those of a step's ``slots`` that lie in its rows ``part``, counted from there, and their share of all."""
    first, end = part.start * slots_per_row, part.stop * slots_per_row
    own = slots[(slots >= first) & (slots < end)] - first
    if len(own) == 0:  # rows without a label: every process steps, this one with a gradient of zeros
        return slots.new_zeros(1), 0.0
    return own, len(own) / len(slots)
