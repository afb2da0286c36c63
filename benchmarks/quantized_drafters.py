"""What a drafter loses in fewer bits, and its head: acceptance of the embedded pair, served in blocks of 16.

    python benchmarks/quantized_drafters.py --out benchmarks/results/quantized_drafters.json

Every matrix of the drafter's network (the head apart, unless a row says it) becomes the nearest values of a format's
grid, without calibration: the floats that a checkpoint of that format loads as. The C++ rows are that code's own
packing. The target is bfloat16 throughout, so that every row drafts for the same answers. The float16 rows compute in
that type what the others compute in bfloat16, as engines do that take the type of a float16 target for its drafter.
Rows that are in the file are left alone: an interrupted run goes on.
"""

import argparse
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.checkpoint.embedded import EMBEDDED, served_window
from flashdraft.checkpoint.load import load_drafter, load_target
from flashdraft.intervals import ratio_interval
from flashdraft.llm import LLM
from flashdraft.models.dflash import DFlashModel
from flashdraft.native.accelerate import accelerate_drafter
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter

BLOCK_SIZE = 16
Rounding = Callable[[Tensor], Tensor]


def fp8(block: tuple[int, int] | None) -> Rounding:
    """E4M3 with a scale for each block [rows, columns], or for each row."""

    def rounded(weight: Tensor) -> Tensor:
        rows, columns = block or (1, weight.shape[1])
        made = torch.empty_like(weight)
        for i in range(0, len(weight), rows):
            for j in range(0, weight.shape[1], columns):
                part = weight[i : i + rows, j : j + columns]
                scale = part.abs().max().clamp(min=1e-12) / 448
                made[i : i + rows, j : j + columns] = (part / scale).to(torch.float8_e4m3fn).float() * scale
        return made

    return rounded


def whole_numbers(bits: int, group: int | None, has_zeros: bool = False) -> Rounding:
    """Signed codes with a scale for ``group`` columns, or a row; with zeros from the least value to the greatest."""

    def rounded(weight: Tensor) -> Tensor:
        parts = weight.view(len(weight), -1, group or weight.shape[1])
        if has_zeros:
            least, most = parts.amin(-1, keepdim=True).clamp(max=0), parts.amax(-1, keepdim=True).clamp(min=0)
            scale = ((most - least) / (2**bits - 1)).clamp(min=1e-12).bfloat16().float()
            zero = (-least / scale).round()
            codes = (parts / scale + zero).round().clamp(0, 2**bits - 1) - zero
        else:
            half = 2 ** (bits - 1)
            scale = (parts.abs().amax(-1, keepdim=True) / (half - 0.5)).clamp(min=1e-12).bfloat16().float()
            codes = (parts / scale).round().clamp(-half, half - 1)
        return (codes * scale).view_as(weight)

    return rounded


class ComputedIn(DFlashModel):
    """The network computed in its weights' own type, whatever the target's features are in."""

    def context(self, features: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        return super().context(features.to(self.fc.weight.dtype), positions)

    def forward(self, block: Tensor, *arguments: Any, **named: Any) -> Tensor:
        return super().forward(block.to(self.fc.weight.dtype), *arguments, **named).to(block.dtype)


@dataclass(frozen=True)
class Form:
    """How one row holds and computes the drafter."""

    name: str
    network: Rounding | None = None
    head: Rounding | None = None
    native: str | None = None  # the C++ layers' packing
    dtype: torch.dtype = torch.bfloat16


BASE = "bfloat16"
INT4 = whole_numbers(4, 64)
FORMS = (
    Form(BASE),
    Form("int4, groups of 64", INT4),
    Form("C++: int8 in blocks of 32, the head too (default)", native="int8"),
    Form("head alone, int4, groups of 64", head=INT4),
    Form("float16 activations", dtype=torch.float16),
    Form("FP8, blocks of 128 x 128", fp8((128, 128))),
    Form("head alone, FP8, rows", head=fp8(None)),
    Form("C++: int4 in blocks of 32, head int8", native="int4"),
    Form("int4, groups of 64, float16 activations", INT4, dtype=torch.float16),
    Form("int8, rows", whole_numbers(8, None)),
    Form("int4 with zeros, groups of 32", whole_numbers(4, 32, has_zeros=True)),
)


@torch.no_grad()
def drafter_in(form: Form) -> DFlashDrafter:
    """The embedded drafter as ``form`` says."""
    target = load_target()  # of which a drafter asks embedding and head alone
    network = load_drafter(EMBEDDED, target)
    assert isinstance(network, DFlashModel)
    network.config = network.config.with_window(served_window(EMBEDDED))
    if form.network:
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(form.network(module.weight.float()))
    head = target.head_weight()
    if form.head:
        head = torch.cat([form.head(rows.float()).bfloat16() for rows in head.split(4096)])
        target.head_weight = lambda: head  # type: ignore[method-assign]
    if network.candidate_selector:
        network.candidate_selector.freeze(head)
    rows = network.head_rows(head)  # taken once, and kept in bfloat16
    native = accelerate_drafter(network, rows, form.native) if form.native else None
    if form.dtype != torch.bfloat16:
        network.__class__ = ComputedIn
        network.to(form.dtype)
    return DFlashDrafter(network, target, native)


def measure(form: Form, limit: int, max_tokens: int, concurrency: int) -> dict[str, Any]:
    """Tokens and rounds of every answer, by task."""
    llm = LLM(draft=drafter_in(form), block_size=BLOCK_SIZE)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    found: dict[str, Any] = {"form": form.name, "answers": {}, "digests": {}}
    for task in TASKS:
        asked = [[{"role": "user", "content": prompt.turns[0]}] for prompt in load_task(task, limit)]
        outputs = [
            output
            for start in range(0, len(asked), concurrency)
            for output in llm.chat(asked[start : start + concurrency], params)
        ]
        found["answers"][task] = [
            (one.metrics.num_output_tokens - 1, one.metrics.num_rounds) for one in outputs
        ]
        found["digests"][task] = [zlib.crc32(repr(one.outputs[0].token_ids).encode()) for one in outputs]
    return found


def length(answers: list[tuple[int, int]]) -> float:
    return sum(tokens for tokens, _ in answers) / sum(rounds for _, rounds in answers)


def summary(row: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The row with its acceptance lengths, and their ratio to the base's over the same prompts."""
    by_task = {task: length(answers) for task, answers in row["answers"].items()}
    own, others = ([two for task in one["answers"] for two in one["answers"][task]] for one in (row, base))
    interval = ratio_interval(range(len(own)), own, others)
    same = sum(
        a == b
        for task in row["digests"]
        for a, b in zip(row["digests"][task], base["digests"][task], strict=True)
    )
    return {
        "form": row["form"],
        "acceptance_length": {name: round(value, 3) for name, value in by_task.items()},
        "mean": round(sum(by_task.values()) / len(by_task), 3),
        "of_bfloat16": round(length(own) / length(others), 4),
        "interval": interval and [round(value, 4) for value in interval],
        "same_answers": f"{same} of {len(own)}",
    }


def main() -> None:
    """Measure what is not in the file yet and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=10, help="prompts of each task")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--most", type=int, default=len(FORMS), help="rows to measure before it ends")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    kept = json.loads(args.out.read_text()) if args.out.exists() else {"measured": []}
    rows = {row["form"]: row for row in kept["measured"]}
    missing = [form.name for form in FORMS if form.name not in rows][: args.most]
    for form in FORMS:
        if form.name not in (*rows, *missing):
            continue
        if form.name in missing:
            rows[form.name] = measure(form, args.limit, args.max_tokens, args.concurrency)
        told = summary(rows[form.name], rows[BASE])
        print(json.dumps(told), flush=True)
        document = {
            "rows": [summary(row, rows[BASE]) for row in rows.values()],
            "provenance": collect_provenance(),
            "measured": list(rows.values()),
        }
        args.out.write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
