"""``flashdraft plan``: what speed to expect, before anything is run."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flashdraft.cli.options import DeviceOption, DraftOption, DtypeOption, JsonOption, ModelOption, open_llm
from flashdraft.errors import UsageError

if TYPE_CHECKING:
    from flashdraft.bench.planning import CheckRow, PlanRow


def plan(
    model: ModelOption = "embedded",
    draft: DraftOption = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="rows.jsonl of bench: predict them, and print the errors.")
    ] = None,
    gpu: Annotated[
        Literal["H100", "H200", "B200"] | None,
        typer.Option("--gpu", help="Roofline of this GPU instead of measuring this machine."),
    ] = None,
    pair: Annotated[
        str, typer.Option("--pair", help="With --gpu: qwen3.5-27b, qwen3-8b or qwen3-4b.")
    ] = "qwen3.5-27b",
    acceptance: Annotated[
        str, typer.Option("--acceptance", help="Acceptance lengths by block size, with commas: 16=7.7,8=5.")
    ] = "",
    concurrency: Annotated[str, typer.Option("--concurrency", help="With commas.")] = "1,8,16,32",
    block_sizes: Annotated[str, typer.Option("--block-sizes", help="With commas.")] = "16,8",
    prompt_len: Annotated[int, typer.Option("--prompt-len", help="Tokens of a prompt.", min=1)] = 128,
    output_len: Annotated[int, typer.Option("--output-len", help="Tokens of an answer.", min=1)] = 1024,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Predict throughput and speed-up at any concurrency and block size.

    Step costs are measured on this machine in seconds, or follow from a GPU's data sheet.

    \b
    Examples:
      flashdraft plan --acceptance 16=3.2,8=3.0
      flashdraft plan --check results/embedded/rows.jsonl
      flashdraft plan --gpu B200 --pair qwen3.5-27b --acceptance 16=7.7
    """
    from flashdraft.bench.config import numbers_in
    from flashdraft.bench.cost_model import AcceptanceProfile, Job
    from flashdraft.bench.measured_costs import measure_pair
    from flashdraft.bench.planning import check_rows, gpu_costs, plan_rows, published_checks
    from flashdraft.bench.rows_file import read_rows

    job = Job(prompt_len, output_len)
    concurrencies, sizes = numbers_in(concurrency, "--concurrency"), numbers_in(block_sizes, "--block-sizes")
    known = _lengths(acceptance)
    if gpu:
        known = known or _published_lengths(pair)
        rows = plan_rows(gpu_costs(pair, gpu, job), AcceptanceProfile(known), job, concurrencies, sizes)
        return _show(f"{pair} on one {gpu}", rows, published_checks(job), as_json)
    measurements = read_rows(check).measurements if check else []
    most = max([*concurrencies, *(m.concurrency for m in measurements)])
    if not known and not check:
        raise UsageError("--acceptance is missing; expected what a round gains, for example 16=3.2,8=3.0")
    llm = open_llm(model, draft, dtype, device)
    if llm.drafter is None:
        raise UsageError("a plan needs a drafter; name one with --draft")
    costs = measure_pair(llm, most)
    rows = plan_rows(costs, AcceptanceProfile(known), job, concurrencies, sizes) if known else []
    return _show("This machine", rows, check_rows(costs, measurements), as_json)


def _lengths(said: str) -> dict[int, float]:
    from flashdraft.bench.config import names_in

    lengths = {}
    for one in names_in(said):
        size, _, length = one.partition("=")
        try:
            lengths[int(size)] = float(length)
        except ValueError:
            raise UsageError(f"--acceptance has {one!r}; expected BLOCK=LENGTH, for example 16=3.2") from None
    return lengths


def _published_lengths(pair: str) -> dict[int, float]:
    from flashdraft.bench.published import PUBLISHED, PUBLISHED_BLOCK_SIZE

    first = next((row for row in PUBLISHED if row.pair == pair), None)  # math500's
    return {PUBLISHED_BLOCK_SIZE: first.acceptance_length} if first else {}


def _show(title: str, rows: "Sequence[PlanRow]", checks: "Sequence[CheckRow]", as_json: bool) -> None:
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
        document = {"rows": [asdict(row) for row in rows], "checks": [asdict(row) for row in checks]}
        print(json.dumps(document | {"median_error": errors, "provenance": collect_provenance()}))
        return
    if rows:
        print(f"# {title}\n\n{plan_table(rows)}\n")
    if checks:
        print(f"# Predicted and found\n\n{check_table(checks)}\n")
    for source, found in errors.items():
        told = ", ".join(f"{name} {number(error, '.1f', 100, ' %')}" for name, error in found.items())
        print(f"Median of absolute errors, {source}: {told}.")
    print(f"\n## Where the numbers come from\n\n{provenance_list(collect_provenance())}")
