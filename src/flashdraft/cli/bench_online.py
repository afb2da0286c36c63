"""``flashdraft bench --url``: the same tasks against a server."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashdraft.bench.config import BenchConfig
from flashdraft.errors import UsageError
from flashdraft.whole_files import write_whole

if TYPE_CHECKING:
    from flashdraft.bench.online import Load, OnlineRow
    from flashdraft.bench.tasks import BenchPrompt


def _option(flag: str, text: str, **more: Any) -> Any:
    return typer.Option(flag, help=text, rich_help_panel="Server", **more)


UrlOption = Annotated[
    str | None, _option("--url", "Measure the OpenAI-compatible server there, not a model in process.")
]
KeyOption = Annotated[str | None, _option("--api-key", "For the server.", envvar="FLASHDRAFT_API_KEY")]
RateOption = Annotated[
    float | None, _option("--rate", "Requests a second, arriving at random, whatever is under way.", min=1e-3)
]
TtftOption = Annotated[float | None, _option("--ttft-target-ms", "An answer is good within this.")]
TpotOption = Annotated[float | None, _option("--tpot-target-ms", "An answer is good within this.")]
LabelOption = Annotated[str, _option("--label", "Name of the server in the rows.")]


@dataclass(frozen=True)
class ServerOptions:
    """What the options of the server said."""

    url: str
    api_key: str | None
    rate: float | None
    ttft_target_ms: float | None
    tpot_target_ms: float | None
    label: str


def bench_server(
    config: BenchConfig,
    said: ServerOptions,
    progress: Callable[..., Any],
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure, then write rows.jsonl and report.md into ``out`` and print the report or the JSON document."""
    if not said.url.startswith(("http://", "https://")):
        raise UsageError(f"--url is {said.url!r}; expected http:// or https:// before the host")
    import uvloop  # the client has the server's cores: asyncio's own loop takes a third more of them

    from flashdraft.bench.report import online_markdown
    from flashdraft.provenance import collect_provenance

    if config.multi_turn:
        raise UsageError("--multi-turn needs the model in process; leave it or --url out")
    prompts = config.prompts()
    rows = uvloop.run(_measure(config, said, prompts, progress))
    told = {name: value for name, value in asdict(said).items() if name != "api_key"}
    settings, provenance = told | asdict(config), collect_provenance("server")
    report = online_markdown(rows, settings, provenance)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"run": {"settings": settings, "provenance": provenance}})
        write_whole(out / "rows.jsonl", "\n".join([head, *(json.dumps(asdict(r)) for r in rows), ""]))
        write_whole(out / "report.md", report)
    document = {"rows": [asdict(row) for row in rows], "settings": settings, "provenance": provenance}
    print(json.dumps(document, ensure_ascii=False) if as_json else report)


async def _measure(
    config: BenchConfig,
    said: ServerOptions,
    prompts: "dict[str, list[BenchPrompt]]",
    progress: Callable[..., Any],
) -> "list[OnlineRow]":
    from flashdraft.bench.client import Client
    from flashdraft.bench.online import Target, measure

    target = Target(_seconds(said.ttft_target_ms), _seconds(said.tpot_target_ms))
    total = config.repeats * len(_loads(config, said)) * sum(map(len, prompts.values()))
    rows = []
    with progress(total, total) as tell:
        async with Client(said.url, said.api_key) as client:
            for _ in range(config.repeats):
                for load in _loads(config, said):
                    for task, own in prompts.items():
                        place = (
                            f"{task} x{load.concurrency}" if load.rate is None else f"{task} {load.rate}/s"
                        )
                        hear = lambda place=place: tell(place)  # noqa: E731
                        rows.append(
                            await measure(client, task, own, config.params, load, target, said.label, hear)
                        )
    return rows


def _loads(config: BenchConfig, said: ServerOptions) -> "list[Load]":
    from flashdraft.bench.online import Load

    if said.rate is not None:
        return [Load(rate=said.rate, seed=config.seed, template=config.template)]
    return [Load(concurrency=concurrency, template=config.template) for concurrency in config.concurrencies]


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
