"""``flashdraft plan``: what speed to expect, before anything is run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashdraft.cli.options import DeviceOption, DraftOption, DtypeOption, JsonOption, ModelOption, open_llm
from flashdraft.errors import UsageError

if TYPE_CHECKING:
    from flashdraft.bench.cost_model import Costs, Job
    from flashdraft.bench.gpu_planning import Engine
    from flashdraft.bench.planning import CheckRow, PlanRow
    from flashdraft.bench.results import Measurement
    from flashdraft.bench.roofline import Method
    from flashdraft.llm import LLM


CheckOption = Annotated[
    Path | None,
    typer.Option(
        "--check",
        help="Rows to predict, with the errors: rows.jsonl of bench, with --gpu rows of a model card.",
    ),
]
GpuOption = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        help="Roofline of this GPU instead of measuring this machine: a name, or TB/s,TFLOPS[,GB/s of its link].",
    ),
]
PairOption = Annotated[
    str | None,
    typer.Option(
        "--pair", help="With --gpu, a published pair in place of --model: qwen3.5-27b, qwen3-8b or qwen3-4b."
    ),
]
PlainOption = Annotated[
    str,
    typer.Option(
        "--plain",
        help="With --gpu: plain decoding's measured tokens a second by concurrency: 32=1949,1=84.",
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine", help="With --gpu: servers (as published), or flashdraft (by its own steps on an H200)."
    ),
]
AcceptanceOption = Annotated[
    str, typer.Option("--acceptance", help="Acceptance lengths by block size, with commas: 16=7.7,8=5.")
]


def plan(
    model: ModelOption = "embedded",
    draft: DraftOption = None,
    check: CheckOption = None,
    gpu: GpuOption = None,
    tp: Annotated[int, typer.Option("--tp", help="So many GPUs share every layer.", min=1)] = 1,
    pair: PairOption = None,
    engine: EngineOption = "servers",
    acceptance: AcceptanceOption = "",
    plain: PlainOption = "",
    concurrency: Annotated[str, typer.Option("--concurrency", help="With commas.")] = "1,8,16,32",
    block_sizes: Annotated[str, typer.Option("--block-sizes", help="With commas.")] = "16,8",
    prompt_len: Annotated[int, typer.Option("--prompt-len", help="Tokens of a prompt.", min=1)] = 128,
    output_len: Annotated[int, typer.Option("--output-len", help="Tokens of an answer.", min=1)] = 1024,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Predict throughput and speed-up at any concurrency and block size.

    Step costs are measured on this machine in seconds, or follow from a GPU's data sheet and published measurements.

    \b
    Examples:
      flashdraft plan --acceptance 16=3.2,8=3.0
      flashdraft plan --check results/embedded/rows.jsonl
      flashdraft plan --gpu B200 --pair qwen3.5-27b --acceptance 16=7.7 --plain 32=1949
      flashdraft plan --gpu H200 --pair qwen3.5-27b --engine flashdraft --acceptance 16=7.93
      flashdraft plan --gpu 4.8,989,450 --tp 2 --model my/target --draft my/drafter --acceptance 16=5
    """
    from flashdraft.bench.config import numbers_in
    from flashdraft.bench.cost_model import AcceptanceProfile, Job
    from flashdraft.bench.planning import check_rows, plan_rows

    asked = _Asked(
        Job(prompt_len, output_len),
        numbers_in(concurrency, "--concurrency"),
        numbers_in(block_sizes, "--block-sizes"),
        _by_number(acceptance, "--acceptance"),
    )
    if gpu:
        name = pair or ("qwen3.5-27b" if model == "embedded" else None)
        of_engine = _engine(engine)
        found = _on_gpu(asked, gpu, tp, name, (model, draft), _by_number(plain, "--plain"), check, of_engine)
        return _show(*found, as_json)
    _refuse_without_gpu({"--tp": tp != 1, "--pair": pair, "--engine": engine != "servers", "--plain": plain})
    if not asked.lengths and not check:
        raise UsageError("--acceptance is missing; expected what a round gains, for example 16=3.2,8=3.0")
    costs, measurements = _measured(open_llm(model, draft, dtype, device), asked.concurrencies, check)
    rows = []
    if asked.lengths:
        profile = AcceptanceProfile(asked.lengths)
        rows = plan_rows(costs, profile, asked.job, asked.concurrencies, asked.block_sizes)
    return _show("This machine", rows, check_rows(costs, measurements), "", as_json)


def _refuse_without_gpu(given: Mapping[str, object]) -> None:
    """Raise UsageError where one of the options, which this machine's plan would not heed, is there."""
    found = [option for option, is_given in given.items() if is_given]
    if found:
        raise UsageError(
            f"{' and '.join(found)} without --gpu: this machine's costs are measured; expected --gpu beside, or neither"
        )


@dataclass(frozen=True)
class _Asked:
    job: "Job"
    concurrencies: Sequence[int]
    block_sizes: Sequence[int]
    lengths: dict[int, float]  # acceptance by block size


def _measured(
    llm: "LLM", concurrencies: Sequence[int], check: Path | None
) -> "tuple[Costs, Sequence[Measurement]]":
    from flashdraft.bench.measured_costs import measure_pair
    from flashdraft.bench.rows_file import read_rows

    if llm.drafter is None:
        raise UsageError("a plan needs a drafter; name one with --draft")
    measurements = read_rows(check).measurements if check else []
    return measure_pair(llm, max([*concurrencies, *(m.concurrency for m in measurements)])), measurements


def _on_gpu(
    asked: _Asked,
    gpu: str,
    tp: int,
    name: str | None,
    folders: tuple[str, str | None],
    plain: dict[int, float],
    check: Path | None,
    engine: "Engine",
) -> "tuple[str, Sequence[PlanRow], Sequence[CheckRow], str]":
    """Title, predictions, checks and how far such predictions were off."""
    from flashdraft.bench.cost_model import AcceptanceProfile
    from flashdraft.bench.gpu_planning import (
        accuracy_text,
        card_checks,
        forecast,
        missed_text,
        pair_of,
        published_pair,
    )
    from flashdraft.bench.published import CARD_PAIR, acceptance_of, published_rows, read_card
    from flashdraft.gpus import read_gpu

    shapes = published_pair(name) if name else pair_of(*folders)
    method: Method = "mtp" if folders[1] == "mtp" or "dflash" not in shapes.drafters else "dflash"
    if method not in shapes.drafters:
        raise UsageError(f"{name} is not published with an MTP head; leave --draft out")
    lengths = asked.lengths or acceptance_of(published_rows(), name or "", method)
    if not lengths:
        raise UsageError("--acceptance is missing; expected what a round gains, for example 16=3.2,8=3.0")
    found = forecast(shapes, read_gpu(gpu), asked.job, method, tp, plain, engine)
    checks: list[CheckRow] = []
    if check:
        if name != CARD_PAIR:
            raise UsageError(f"--check with --gpu is for rows of {CARD_PAIR}'s model card; give that --pair")
        checks = card_checks(read_card(check))
    rows = found.rows(AcceptanceProfile(lengths), asked.concurrencies, asked.block_sizes)
    title = f"{name or folders[0]} on {'one' if tp == 1 else tp} {gpu}"
    told = accuracy_text(found, shapes, tuple(plain)), missed_text(found, plain)
    return title, rows, checks, "\n".join(filter(None, told))


def _engine(name: str) -> "Engine":
    if name not in ("servers", "flashdraft"):
        raise UsageError(f"--engine is {name!r}; expected servers or flashdraft")
    return "flashdraft" if name == "flashdraft" else "servers"


def _by_number(said: str, option: str) -> dict[int, float]:
    """ "16=3.2,8=3" as numbers."""
    from flashdraft.bench.config import names_in

    found: dict[int, float] = {}
    for one in names_in(said):
        before, _, behind = one.partition("=")
        try:
            number, value = int(before), float(behind)
        except ValueError:
            raise UsageError(
                f"{option} has {one!r}; expected NUMBER=VALUE with commas, for example 16=3.2,8=3"
            ) from None
        if number < 1 or not 0 < value < inf:
            raise UsageError(f"{option} has {one!r}; expected finite numbers above 0")
        if number in found:
            raise UsageError(f"{option} has {number} twice; expected each number once")
        found[number] = value
    return found


def _show(
    title: str, rows: "Sequence[PlanRow]", checks: "Sequence[CheckRow]", accuracy: str, as_json: bool
) -> None:
    from flashdraft.bench.planning import check_table, median_error, plan_table
    from flashdraft.bench.report import provenance_list
    from flashdraft.bench.tables import number
    from flashdraft.provenance import collect_provenance

    sources = list(dict.fromkeys(row.source for row in checks))
    errors: dict[str, dict[str, float | None]] = {
        source: {
            "tokens_per_s": median_error([row.error for row in checks if row.source == source]),
            "speedup": median_error([row.speedup_error for row in checks if row.source == source]),
        }
        for source in sources
    }
    if as_json:
        document: dict[str, Any] = {
            "rows": [asdict(row) for row in rows],
            "checks": [asdict(row) for row in checks],
        }
        document |= {"median_error": errors, "accuracy": accuracy, "provenance": collect_provenance()}
        print(json.dumps(document))
        return
    if rows:
        print(f"# {title}\n\n{plan_table(rows)}\n")
    if accuracy:
        print(f"{accuracy}\n")
    if checks:
        print(f"# Predicted and found\n\n{check_table(checks)}\n")
    for source, found in errors.items():
        told = ", ".join(f"{name} {number(error, '.1f', 100, ' %')}" for name, error in found.items())
        print(f"Median of absolute errors, {source}: {told}.")
    print(f"\n## Where the numbers come from\n\n{provenance_list(collect_provenance())}")
