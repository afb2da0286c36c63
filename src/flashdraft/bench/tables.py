"""The tables of a report, in Markdown: the DFlash model card's layout first, then the details."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from flashdraft.admission import AUTO, BlockSize
from flashdraft.bench.latency import Percentiles
from flashdraft.bench.online import OnlineRow
from flashdraft.bench.published import card_acceptance, published_rows
from flashdraft.bench.results import BASELINE, BenchRow

Column = tuple[str, BlockSize]  # method, block size
MISSING = "–"
_TEXT_COLUMNS = ("task", "method", "source")


def method_label(method: str, block_size: BlockSize) -> str:
    """What a table calls a method: "AR", "DFlash B16", "auto"."""
    return f"{method} B{block_size}" if isinstance(block_size, int) and method != BASELINE else method


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the columns "task", "method" and "source" are text, the others numbers."""
    rule = ["---" if name in _TEXT_COLUMNS else "---:" for name in header]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def number(value: float | None, form: str, scale: float = 1.0, unit: str = "") -> str:
    """``value`` times ``scale`` in the form of format(); a dash for None."""
    return MISSING if value is None else format(value * scale, form) + unit


def columns_of(rows: Sequence[BenchRow]) -> list[Column]:
    """Methods and block sizes, in order of first appearance."""
    return list(dict.fromkeys((row.method, row.block_size) for row in rows))


def speed_table(rows: Sequence[BenchRow], block_size: int) -> str:
    """Tokens a second and speed-up by task and concurrency, of the methods at one block size."""
    columns = [column for column in columns_of(rows) if column[1] in (1, block_size, AUTO)]
    found = {(row.task, row.concurrency, row.method, row.block_size): row for row in rows}
    tasks = list(dict.fromkeys(row.task for row in rows))
    concurrencies = list(dict.fromkeys(row.concurrency for row in rows))
    lines = [
        [task, str(concurrency), *(_speed([found.get((task, concurrency, *column))]) for column in columns)]
        for task in tasks
        for concurrency in concurrencies
    ]
    if len(tasks) > 1:
        lines += [
            [
                "mean of tasks",
                str(concurrency),
                *(_speed([found.get((task, concurrency, *column)) for task in tasks]) for column in columns),
            ]
            for concurrency in concurrencies
        ]
    return table(["task", "concurrency", *(method for method, _ in columns)], lines)


def _speed(found: Sequence[BenchRow | None]) -> str:
    rows = [row for row in found if row]
    if len(rows) < len(found):
        return MISSING
    speed = f"{fmean(row.output_tokens_per_s for row in rows):.1f}"
    if rows[0].method == BASELINE:
        return speed
    return f"{speed} ({fmean(row.speedup for row in rows):.2f}x)"


def acceptance_table(rows: Sequence[BenchRow]) -> str:
    """Acceptance length by task and method at the lowest concurrency, and of answers that do not loop alone."""
    lowest = [row for row in drafted(rows) if row.concurrency == min(row.concurrency for row in rows)]
    columns = columns_of(lowest)
    found = {(row.task, row.method, row.block_size): row for row in lowest}
    tasks = list(dict.fromkeys(row.task for row in lowest))

    def cell(of_tasks: Sequence[str], column: Column) -> str:
        picked = [found[task, *column] for task in of_tasks]
        steady = [x for row in picked if (x := row.acceptance_length_not_looping) is not None]
        apart = f"{fmean(steady):.2f}" if steady else MISSING
        return f"{fmean(row.acceptance_length for row in picked):.2f} ({apart})"

    lines = [[task, *(cell([task], column) for column in columns)] for task in tasks]
    if len(tasks) > 1:
        lines.append(["mean of tasks", *(cell(tasks, column) for column in columns)])
    return table(["task", *(method_label(*column) for column in columns)], lines)


def drafted(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """The rows that are not plain decoding's."""
    return [row for row in rows if row.method != BASELINE]


def row_table(rows: Sequence[BenchRow], columns: dict[str, Callable[[BenchRow], str]]) -> str:
    """One line a row: task, concurrency, method, then ``columns``."""
    lines = [
        [row.task, str(row.concurrency), method_label(row.method, row.block_size)]
        + [cell(row) for cell in columns.values()]
        for row in rows
    ]
    return table(["task", "concurrency", "method", *columns], lines)


def interval_table(rows: Sequence[BenchRow]) -> str:
    """Speed-ups with their confidence intervals."""

    def interval(row: BenchRow) -> str:
        return "{:.2f} to {:.2f}".format(*row.speedup_interval) if row.speedup_interval else MISSING

    return row_table(
        drafted(rows),
        {
            "answers": lambda row: str(row.num_answers),
            "speed-up": lambda row: number(row.speedup, ".2f", unit="x"),
            "95 % interval": interval,
            "median of prompts": lambda row: number(row.speedup_median, ".2f", unit="x"),
            "without prefill": lambda row: number(row.decode_speedup, ".2f", unit="x"),
        },
    )


def online_table(rows: Sequence[OnlineRow]) -> str:
    """A server's rates, latencies, acceptance and failures."""
    lines = []
    for row in rows:
        load = f"{row.concurrency} at a time" if row.rate is None else f"{row.rate:g} a second"
        rates = [f"{row.output_tokens_per_s:.1f}", f"{row.requests_per_s:.2f}", f"{row.goodput_per_s:.2f}"]
        times = [_times(found) for found in (row.ttft_s, row.tpot_s, row.itl_s, row.total_s)]
        accepted = [number(row.acceptance_length, ".2f"), row.acceptance_source or MISSING]
        failed = f"{row.num_failed} of {row.num_requests}"
        graded = f"{row.num_correct} of {row.num_graded}" if row.num_graded else MISSING
        lines.append([row.task, row.method, load, *rates, *times, *accepted, graded, failed])
    header = ["task", "method", "load", "tokens/s", "requests/s", "goodput/s", "TTFT", "TPOT", "ITL"]
    return table([*header, "end to end", "acceptance length", "source", "right", "failed"], lines)


def _times(found: Percentiles | None) -> str:
    return f"{found.p50 * 1e3:.1f} / {found.p99 * 1e3:.1f}" if found else MISSING


def latency_table(rows: Sequence[BenchRow]) -> str:
    """Medians and 99th percentiles in milliseconds."""

    return row_table(
        rows,
        {
            "TTFT p50 / p99": lambda row: _times(row.ttft_s),
            "TPOT p50 / p99": lambda row: _times(row.tpot_s),
            "ITL p50 / p99": lambda row: _times(row.itl_s),
            "end to end p50 / p99": lambda row: _times(row.total_s),
        },
    )


def positions_table(rows: Sequence[BenchRow]) -> str:
    """Percent of rounds that accept the draft token at each position, at the lowest concurrency."""
    lowest = [row for row in drafted(rows) if row.concurrency == min(row.concurrency for row in rows)]
    longest = max((len(row.accepted_by_position) for row in lowest), default=0)
    lines = []
    for row in lowest:
        shares = [f"{100 * share:.0f}" for share in row.accepted_by_position]
        label = method_label(row.method, row.block_size)
        lines.append([row.task, label, *shares, *[""] * (longest - len(shares))])
    return table(["task", "method", *map(str, range(1, longest + 1))], lines)


def time_table(rows: Sequence[BenchRow]) -> str:
    """Milliseconds of a round: draft, verify, host; and the speed-up that a free host would give."""
    return row_table(
        rows,
        {
            "rounds": lambda row: str(row.num_rounds),
            "draft ms": lambda row: number(row.round_draft_s, ".2f", 1e3),
            "verify ms": lambda row: number(row.round_verify_s, ".2f", 1e3),
            "host ms": lambda row: number(row.round_host_s, ".2f", 1e3),
            "decode speed-up": lambda row: number(row.decode_speedup, ".2f", unit="x"),
            "promised": lambda row: number(row.promised_speedup, ".2f", unit="x"),
            "reached": lambda row: number(row.promise_share, ".0f", 100, "%"),
        },
    )


def chosen_table(rows: Sequence[BenchRow]) -> str:
    """What the controller chose, and its tokens a second over those of the best method without it."""

    def best_other(row: BenchRow) -> float:
        return max(
            other.output_tokens_per_s
            for other in rows
            if (other.task, other.concurrency) == (row.task, row.concurrency) and other.method != AUTO
        )

    def mean_length(row: BenchRow) -> float:
        return sum(length * count for length, count in enumerate(row.verified_histogram)) / row.num_rounds

    return row_table(
        [row for row in rows if row.method == AUTO and row.num_rounds],
        {
            "tokens/s": lambda row: number(row.output_tokens_per_s, ".1f"),
            "of the best other": lambda row: number(
                row.output_tokens_per_s / best_other(row), ".0f", 100, "%"
            ),
            "plain rounds": lambda row: number(
                sum(row.verified_histogram[1:2]) / row.num_rounds, ".0f", 100, "%"
            ),
            "tokens verified a round": lambda row: number(mean_length(row), ".1f"),
        },
    )


def lossless_table(rows: Sequence[BenchRow]) -> str:
    """How many answers have plain decoding's tokens, and what the others are."""
    return row_table(
        drafted(rows),
        {
            "answers": lambda row: str(row.num_answers),
            "equal": lambda row: str(row.num_equal),
            "near-ties": lambda row: str(row.num_near_ties),
            "wrong": lambda row: str(row.num_answers - row.num_equal - row.num_near_ties),
            "differ": lambda row: number(1 - row.num_equal / row.num_answers, ".0f", 100, "%"),
            "largest gap": lambda row: number(row.largest_gap, ".2g"),
            "looping answers": lambda row: str(row.num_looping),
        },
    )


def card_table(rows: Sequence[BenchRow]) -> str:
    """Acceptance length, tokens a second and speed-up beside the published card's; a dash where it tells nothing."""
    lengths = card_acceptance()
    speeds = {
        (one.task, one.method, one.block_size, one.concurrency): one.tokens_per_s
        for one in published_rows()
        if one.source == "model card"
    }
    lines = []
    for row in rows:
        key = row.task, row.method.lower(), row.block_size if isinstance(row.block_size, int) else 0
        told, plain = speeds.get((*key, row.concurrency)), speeds.get((row.task, "ar", 1, row.concurrency))
        found_of_plain = row.method == BASELINE
        lines.append(
            [
                row.task,
                str(row.concurrency),
                method_label(row.method, row.block_size),
                MISSING if found_of_plain else f"{row.acceptance_length:.2f}",
                MISSING if found_of_plain else f"{row.acceptance_length_of_answers:.2f}",
                MISSING if found_of_plain else number(lengths.get(key), ".2f"),
                f"{row.output_tokens_per_s:.1f}",
                number(told, ".0f"),
                f"{row.speedup:.2f}x",
                number(told / plain if told and plain else None, ".2f", unit="x"),
            ]
        )
    header = [
        "task",
        "concurrency",
        "method",
        "acceptance length",
        "answers' mean",
        "card",
        "tokens/s",
        "card",
        "speed-up",
        "card",
    ]
    return table(header, lines)


def accuracy_table(rows: Sequence[BenchRow]) -> str:
    """Right answers of those that can be right or wrong and were not cut."""
    graded = [row for row in rows if row.num_graded]
    return row_table(
        graded,
        {
            "cut": lambda row: str(row.num_cut),
            "graded": lambda row: str(row.num_graded),
            "right": lambda row: str(row.num_correct),
            "accuracy": lambda row: number(row.num_correct / row.num_graded, ".1f", 100, "%"),
        },
    )
