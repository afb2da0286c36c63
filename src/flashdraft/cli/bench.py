"""``flashdraft bench``: plain decoding and speculative decoding on the five tasks."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flashdraft.bench.config import BenchConfig
from flashdraft.cli.bench_online import (
    KeyOption,
    LabelOption,
    RateOption,
    ServerOptions,
    TpotOption,
    TtftOption,
    UrlOption,
    bench_server,
)
from flashdraft.cli.config_options import with_config
from flashdraft.cli.options import (
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuantizationOption,
    open_llm,
)
from flashdraft.errors import CheckpointError, UsageError
from flashdraft.whole_files import write_whole

if TYPE_CHECKING:
    from flashdraft.bench.offline import Chunk, OfflineBench
    from flashdraft.bench.rows_file import Results, RowsFile
    from flashdraft.llm import LLM
    from flashdraft.spec_decode.drafter import Drafter

DraftsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--draft",
        help="Drafter of method dflash: as elsewhere. NAME=DRAFTER adds a method NAME. May be repeated.",
    ),
]
MethodsOption = Annotated[
    str | None,
    typer.Option(
        "--methods",
        help="With commas: ar, ngram, mtp, dflash, tree, auto, replay (perfect drafts: plain decoding's"
        " answers again), names of --draft; NAME:SIZE: at that block size alone."
        " ar always runs: it is the yardstick.",
        show_default="all but ngram, tree and replay",
    ),
]


CardOption = Annotated[
    str | None,
    typer.Option(
        "--card",
        help="This target as the published model card was measured: five tasks, ar, mtp and dflash, thinking, 4,096"
        " tokens, 1 to 32 requests; options that you give stay. Needs --out.",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder of rows.jsonl and report.md; running again goes on.")
]
ExplainOption = Annotated[
    bool, typer.Option("--explain", help="Tell on stderr why the controller chose its blocks.")
]


AllowCodeOption = Annotated[
    bool,
    typer.Option("--allow-code", help="Run the model's code even where the kernel cannot wall it off."),
]


@with_config(BenchConfig, panel="Workload")
def bench(
    config: BenchConfig,
    model: ModelOption = "embedded",
    draft: DraftsOption = None,
    methods: MethodsOption = None,
    block_sizes: Annotated[str, typer.Option("--block-sizes", help="Block sizes, with commas.")] = "16,8",
    tree_sizes: Annotated[str, typer.Option("--draft-tree", help="Tokens of trees, with commas.")] = "32",
    quick: Annotated[bool, typer.Option("--quick", help="A few short answers: minutes, not hours.")] = False,
    dtype: DtypeOption = "bfloat16",
    quantization: QuantizationOption = None,
    device: DeviceOption = "cpu",
    allow_code: AllowCodeOption = False,
    explain: ExplainOption = False,
    out: OutOption = None,
    card: CardOption = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    rate: RateOption = None,
    ttft_target_ms: TtftOption = None,
    tpot_target_ms: TpotOption = None,
    label: LabelOption = "server",
) -> None:
    """Measure speed, acceptance, losslessness and accuracy against plain decoding.

    Chunks of prompts are answered by every method in turn. The report goes to stdout, progress to stderr.

    \b
    Examples:
      flashdraft bench --quick
      flashdraft bench --methods dflash,auto --concurrency 1,8,32 --explain
      flashdraft bench --methods dflash,tree --draft-tree 16,32,64
      flashdraft bench --methods ar,ngram,dflash --concurrency 1,8,16,32 --out results/embedded
      flashdraft bench --draft dflash=my/drafter --draft mtp=my/mtp --tasks gsm8k,mbpp --limit 10 --json
      flashdraft bench --card Qwen/Qwen3.5-27B --draft z-lab/Qwen3.5-27B-DFlash --device cuda --out results/27b
      flashdraft bench --url http://localhost:8000 --concurrency 1,8 --ttft-target-ms 500 --tpot-target-ms 50
    """
    config = config.quick() if quick else config
    if card:
        model, methods, config = card, methods or _card_methods(card, out), config.card()
    _prepare_grading(config, allow_code)
    if url:
        said = ServerOptions(url, api_key, rate, ttft_target_ms, tpot_target_ms, label)
        return bench_server(config, said, _progress, out, as_json)
    return _bench_here(
        config,
        model,
        draft,
        methods,
        (block_sizes, tree_sizes),
        dtype,
        quantization,
        device,
        explain,
        out,
        as_json,
        card is not None,
    )


def _prepare_grading(config: BenchConfig, allow_code: bool) -> None:
    """Raise UsageError now where the tasks' code could not be run later."""
    from flashdraft.bench.config import names_in
    from flashdraft.bench.sandbox import ALLOW, passes

    if allow_code:
        os.environ[ALLOW] = "1"
    if {"humaneval", "mbpp"} & set(names_in(config.tasks)):
        passes("")


def _bench_here(
    config: BenchConfig,
    model: str,
    draft: list[str] | None,
    methods: str | None,
    sizes: tuple[str, str],  # of blocks, of trees
    dtype: Dtype,
    quantization: str | None,
    device: str,
    explain: bool,
    out: Path | None,
    as_json: bool,
    is_card: bool,
) -> None:
    """Measure in this process."""
    from flashdraft.bench.accuracy import math_grader
    from flashdraft.bench.config import names_in, numbers_in
    from flashdraft.bench.methods import choose_methods
    from flashdraft.bench.offline import OfflineBench
    from flashdraft.bench.rows_file import RowsFile
    from flashdraft.bench.tables import method_label
    from flashdraft.checkpoint.load import OWN_MTP
    from flashdraft.provenance import collect_provenance

    block_sizes, tree_sizes = numbers_in(sizes[0], "--block-sizes"), numbers_in(sizes[1], "--draft-tree")
    named, prompts = _named(draft or []), config.prompts()
    wanted = names_in(methods) if methods else None
    if wanted and any(name.partition(":")[0] == OWN_MTP for name in wanted):
        named.setdefault(OWN_MTP, OWN_MTP)
    llm = open_llm(model, named.get("dflash"), dtype, device, quantization=quantization)
    drafters = _drafters(llm, model, named, dtype, device, quantization)
    chosen = choose_methods(wanted or _default_methods(drafters), block_sizes, drafters, tree_sizes)
    settings = {"model": model, "draft": draft or "default", "dtype": dtype} | asdict(config)
    settings |= {"quantization": quantization} if quantization else {}
    settings |= {"card": True} if is_card else {}
    settings["methods"] = [method_label(method.name, method.block_size) for method in chosen]
    provenance = collect_provenance(device) | {"final answers": math_grader()}
    rows = RowsFile(out / "rows.jsonl" if out else None, settings, provenance)
    run = OfflineBench(
        llm,
        chosen,
        config.params,
        config.concurrencies,
        config.repeats,
        config.multi_turn,
        config.simulated(llm.max_block_size),
        config.template,
    )
    _measure(run, run.chunks(prompts, config.limit), rows)
    if explain and any(method.name == "auto" for method in chosen):
        typer.echo(run.explain(rows.results.measurements), err=True)
    _present(rows.results, out, as_json)


def _card_methods(target: str, out: Path | None) -> str:
    """The card's methods; MTP where the target has a head of its own."""
    from flashdraft.checkpoint.load import load_own_mtp, outline_target

    if out is None:
        raise UsageError("--card takes hours and is resumed from its folder; name one with --out")
    try:
        load_own_mtp(target, outline_target(target))
    except CheckpointError as error:
        typer.echo(f"without method mtp: {error}", err=True)
        return "ar,dflash"
    return "ar,mtp,dflash"


def _named(drafts: list[str]) -> dict[str, str]:
    """What --draft said, by method name."""
    named: dict[str, str] = {}
    for said in drafts:
        name, equals, folder = said.partition("=")
        if not (equals and name.isidentifier()):
            name, folder = "dflash", said
        if name in named or name in ("ar", "ngram", "auto"):
            raise UsageError(f"--draft names {name!r} twice, or a method of its own; choose another NAME")
        named[name] = folder
    return named


def _drafters(
    llm: "LLM", model: str, named: dict[str, str], dtype: str, device: str, quantization: str | None
) -> "dict[str, Drafter]":
    """The opened drafters, by method name; the LLM's own is dflash."""
    from flashdraft.checkpoint.embedded import drafts_among_all, served_window
    from flashdraft.checkpoint.load import OWN_MTP, load_drafter, load_own_mtp
    from flashdraft.spec_decode.build import drafter_of

    drafters: dict[str, Drafter] = {"dflash": llm.drafter} if llm.drafter else {}
    for name, folder in named.items():
        if name != "dflash":
            load, place = (load_own_mtp, model) if folder == OWN_MTP else (load_drafter, folder)
            network = load(place, llm.target, dtype=dtype, device=device)
            settings = served_window(folder), drafts_among_all(folder, llm.target.device)
            drafters[name] = drafter_of(network, llm.target, quantization, *settings)
    return drafters


def _default_methods(drafters: "dict[str, Drafter]") -> list[str]:
    return [*drafters, *(["auto"] if "dflash" in drafters else [])]


def _measure(run: "OfflineBench", chunks: "list[Chunk]", rows: "RowsFile") -> None:
    """Measure what the file does not hold yet, chunk by chunk."""
    from flashdraft.bench.tables import method_label

    found = rows.results.measurements
    left, kept = [], []
    for chunk in chunks:
        own = chunk.own(found)
        if len(own) == run.num_answers(chunk):
            kept += own
        else:
            left.append(chunk)
    rows.start(kept)
    with _progress(sum(map(run.num_answers, chunks)), sum(map(run.num_answers, left))) as tell:
        run.on_answer = lambda chunk, method: tell(
            f"{chunk.task} x{chunk.concurrency} {method_label(method.name, method.block_size)}"
        )
        for chunk in left:
            rows.append(run.measure(chunk))


@contextmanager
def _progress(total: int, left: int) -> Iterator[Callable[[str], None]]:
    # The bar moves after an answer, never during one: a thread that draws would share the measured cores.
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        speed_estimate_period=600,
    ) as progress:
        bar = progress.add_task("warming up", total=total, completed=total - left)
        yield lambda label: progress.update(bar, advance=1, description=label, refresh=True)


def _present(results: "Results", out: Path | None, as_json: bool) -> None:
    """Write report.md into ``out``, and print the report or the JSON document."""
    from flashdraft.bench.report import json_document, markdown, summary
    from flashdraft.bench.results import aggregate

    rows = aggregate(results.measurements)
    report = markdown(rows, results)
    if out:
        write_whole(out / "report.md", report)
        report = f"{summary(rows, results)}\n\nThe whole report is in {out / 'report.md'}.\n"
    console = Console()
    if as_json:
        print(json.dumps(json_document(rows, results), ensure_ascii=False))
    elif console.is_terminal:
        console.print(Markdown(report))
    else:
        print(report, end="")
