"""Two answers side by side: panels that stream in a terminal, plain lines where there is none."""

from time import perf_counter
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flashdraft.cli.answer_stream import LEGEND, Piece

_REDRAW_S = 0.05
_FRAME_LINES = 5  # of the screen, not for text: two borders, the line below, some air
_FRAME_COLUMNS = 4  # of a panel: borders and padding


class Screen(Protocol):
    """Shows one question after the other, each with two answers, side 0 and side 1."""

    def open(self, question: str, titles: tuple[str, str]) -> None:
        """A new question."""
        ...

    def show(self, side: int, pieces: list[Piece]) -> None:
        """More text of one answer."""
        ...

    def title(self, side: int, result: str) -> None:
        """One answer is complete: its result goes into its title."""
        ...

    def close(self) -> None:
        """Both answers are complete."""
        ...

    def note(self, line: str) -> None:
        """A line below the answers."""
        ...


class _Answers:
    """The texts of one question."""

    def open(self, question: str, titles: tuple[str, str]) -> None:
        self.question, self.titles = question, list(titles)
        self.texts = [Text(), Text()]

    def show(self, side: int, pieces: list[Piece]) -> None:
        for piece in pieces:
            # Plain decoding drafts nothing, so colours would say nothing there.
            self.texts[side].append(piece.text, piece.style if side else None)

    def title(self, side: int, result: str) -> None:
        self.titles[side] += f": {result}"


class LineScreen(_Answers):
    """Plain lines, each answer when it is complete; for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def close(self) -> None:
        """Print the question and both answers."""
        self.note(f"PROMPT: {self.question}\n")
        for name, text in zip(self.titles, self.texts, strict=True):
            self.note(f"--- {name}\n{text.plain.strip()}\n")

    def note(self, line: str) -> None:
        """Print a line as it is."""
        self.console.print(line, markup=False, soft_wrap=True)


class LiveScreen(_Answers):
    """Two panels, redrawn while the text streams."""

    def __init__(self, console: Console) -> None:
        self.console = console
        console.print(LEGEND)

    def open(self, question: str, titles: tuple[str, str]) -> None:
        """Print the question and start drawing below it."""
        super().open(question, titles)
        self.console.print(Text(f"\n{question}", "bold"))
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.live.start()
        self.drawn = 0.0

    def show(self, side: int, pieces: list[Piece]) -> None:
        """Add text; draw it unless that was done a moment ago."""
        super().show(side, pieces)
        if perf_counter() - self.drawn > _REDRAW_S:
            # Live shows nothing of what is below the screen, so a long text is followed at its end.
            self.live.update(self._panels(self.console.height - _FRAME_LINES), refresh=True)
            self.drawn = perf_counter()

    def close(self) -> None:
        """Replace the moving panels by whole ones that stay."""
        self.live.stop()
        self.console.print(self._panels(None))

    def note(self, line: str) -> None:
        """Print a line as it is."""
        self.console.print(line, markup=False)

    def _panels(self, max_lines: int | None) -> Group:
        grid = Table.grid(expand=True)
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        width = max(self.console.width // 2 - _FRAME_COLUMNS, 1)
        panels = []
        for name, text in zip(self.titles, self.texts, strict=True):
            lines = text.wrap(self.console, width)
            tail = lines if max_lines is None else lines[-max(max_lines, 1) :]
            panels.append(Panel(Text("\n").join(tail), title=name, title_align="left"))
        grid.add_row(*panels)
        return Group(grid)
