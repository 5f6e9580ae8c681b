"""A progress bar for terminals, plain lines elsewhere, text that stays in saved notebooks."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO
from uuid import uuid4

from daskdml.events import BlockEnd, Event, FitEnd, FitStart, Message, PassEnd, PassStart
from daskdml.units import bytes_text, seconds_text

BAR_CELLS = 24
NOTEBOOK_LINES = 100  # lines shown at once; every update sends all of them


class ProgressBar:
    """Show a fit as it goes: one live line for the pass under way, one lasting line after it.

    In a terminal the live line has a bar, the share done, the rate and the seconds. Where the
    stream is no terminal (a file, a pipe, a log) only the lasting lines are written. In a Jupyter
    notebook everything is one block of text, which stays in the saved notebook.

    Parameters
    ----------
    stream : text stream or None
        Where to write. None means standard error, or the output of the running notebook cell.
    min_interval : float
        Least seconds between two updates of the live line.

    Examples
    --------
    >>> import sys
    >>> bar = ProgressBar(sys.stdout)
    >>> bar(FitStart("ridge", None, 1000, 20, None))
    ridge: 1,000 rows x 20 features
    >>> bar(PassEnd("gram", 0, 0.5, 0.25, 1e-9, 4e-9, 80_000_000, 0.1, 0.1, 0.2, 0.1, 0.0))
    gram, pass 1: 0.50 s, 80 MB read, objective 0.25, gap 1e-09 (relative 4e-09)
    """

    def __init__(self, stream: TextIO | None = None, min_interval: float = 0.1) -> None:
        self.stream = stream
        self.min_interval = min_interval
        self._lock = threading.Lock()
        self._passes: dict[tuple[str, int], _Pass] = {}
        self._sink: _Sink | None = None
        self._shown = 0.0  # when the live line was last written, by the monotonic clock

    def __repr__(self) -> str:
        return f"ProgressBar(stream={self.stream!r}, min_interval={self.min_interval!r})"

    def __call__(self, event: Event) -> None:
        """Show `event`; safe from any thread."""
        with self._lock:
            if self._sink is None or isinstance(event, FitStart):
                if self._sink is not None:
                    self._sink.close()
                self._sink = _open_sink(self.stream)
            self._show(event, self._sink)

    def _show(self, event: Event, sink: _Sink) -> None:
        match event:
            case PassStart():
                under_way = self._passes[event.label, event.index] = _Pass(event)
                self._live(under_way, sink)
            case BlockEnd():
                known = self._passes.get((event.label, event.index))
                if known is not None:
                    known.blocks += 1
                    known.nbytes += event.nbytes
                    self._live(known, sink)
            case PassEnd():
                ended = self._passes.pop((event.label, event.index), None)
                sink.line(_pass_end_text(event, ended.nbytes if ended is not None else 0))
            case Message():
                sink.line(event.text)
            case FitStart():
                for line in _fit_start_lines(event):
                    sink.line(line)
            case FitEnd():
                self._passes.clear()
                sink.line(_fit_end_text(event))
                sink.close()
                self._sink = None

    def _live(self, under_way: _Pass, sink: _Sink) -> None:
        now = time.monotonic()
        if now - self._shown >= self.min_interval:
            self._shown = now
            sink.live(under_way.text(now, sink.marks))


@dataclass
class _Pass:
    """A pass under way."""

    start: PassStart
    since: float = field(default_factory=time.monotonic)
    blocks: int = 0
    nbytes: int = 0

    def text(self, now: float, marks: str) -> str:
        share = min(self.blocks / max(self.start.n_blocks, 1), 1.0)
        full = round(share * BAR_CELLS)
        seconds = now - self.since
        rate = bytes_text(self.nbytes / max(seconds, 1e-9))
        bar = marks[0] * full + marks[1] * (BAR_CELLS - full)
        name = _pass_name(self.start)
        return f"{name} {bar} {share:4.0%}  {rate}/s  {seconds_text(seconds)}"


def _pass_name(event: PassStart | PassEnd) -> str:
    return f"{event.label}, pass {event.index + 1}"


def _pass_end_text(event: PassEnd, visited: int) -> str:
    """Return the lasting line of a pass that visited so many decoded bytes, 0 if unknown."""
    text = seconds_text(event.seconds)
    if visited:
        rate = bytes_text(visited / max(event.seconds, 1e-9))
        text = f"{bytes_text(visited)} of rows in {text} ({rate}/s)"
    text += f", {bytes_text(event.nbytes)} read"
    if event.objective is not None:
        text += f", objective {event.objective:.7g}"
    if event.gap is not None:
        text += f", gap {event.gap:.2g}"
    if event.gap is not None and event.relative is not None:
        text += f" (relative {event.relative:.2g})"
    return f"{_pass_name(event)}: {text}"


def _fit_start_lines(event: FitStart) -> list[str]:
    lines = [f"{event.label}: {event.n_rows:,} rows x {event.n_features:,} features"]
    if event.plan is not None:
        lines += [f"  {line}" for line in str(event.plan).splitlines()]
    if event.dashboard_link is not None:
        lines.append(f"  dashboard: {event.dashboard_link}")
    return lines


def _fit_end_text(event: FitEnd) -> str:
    text = f"{event.label}: {seconds_text(event.seconds)}; {event.reason}"
    if event.certificate is not None:
        kind = "certified" if event.certificate.rigorous else "estimated"
        text += f"; {kind} relative gap {event.certificate.relative:.2g}"
    return text


class _Sink(Protocol):
    """Where lines go: `marks` are the full and the empty cell of a bar."""

    marks: str

    def live(self, text: str) -> None: ...

    def line(self, text: str) -> None: ...

    def close(self) -> None: ...


def _open_sink(stream: TextIO | None) -> _Sink:
    if stream is None and _in_notebook():
        return _Notebook()
    stream = sys.stderr if stream is None else stream
    return _Terminal(stream) if stream.isatty() else _Lines(stream)


def _in_notebook() -> bool:
    """Tell whether this process is a Jupyter kernel, without importing IPython for it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class _Lines:
    """Lasting lines only."""

    marks = "#."

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def live(self, text: str) -> None:
        pass

    def line(self, text: str) -> None:
        self.stream.write(f"{text}\n")
        self.stream.flush()

    def close(self) -> None:
        pass


class _Terminal:
    """Lasting lines, and below them one that is written over."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.cells = 0  # of the live line now on the screen
        encoding = getattr(stream, "encoding", None) or "ascii"
        self.marks = "#." if "█░".encode(encoding, "replace") == b"??" else "█░"

    def live(self, text: str) -> None:
        try:
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80
        except OSError:
            columns = 80
        text = text[: columns - 1]
        self._write(f"\r{text.ljust(min(self.cells, columns - 1))}")
        self.cells = len(text)

    def line(self, text: str) -> None:
        self._write(f"\r{text.ljust(self.cells)}\n" if self.cells else f"{text}\n")
        self.cells = 0

    def close(self) -> None:
        if self.cells:
            self._write("\n")
            self.cells = 0

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


class _Notebook:
    """One block of text, displayed again as it changes; the notebook file keeps its last state."""

    marks = "█░"

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=NOTEBOOK_LINES)
        self.count = 0
        self.display_id = ""

    def live(self, text: str) -> None:
        self._display([text])

    def line(self, text: str) -> None:
        self.lines.append(text)
        self.count += 1
        self._display([])

    def close(self) -> None:
        if self.display_id:
            self._display([])

    def _display(self, live: list[str]) -> None:
        from IPython.display import display, update_display

        folded = self.count - len(self.lines)
        head = [f"({folded:,} earlier lines)"] if folded else []
        data: dict[str, Any] = {"text/plain": "\n".join([*head, *self.lines, *live])}
        if self.display_id:
            update_display(data, display_id=self.display_id, raw=True)
        else:
            self.display_id = uuid4().hex
            display(data, display_id=self.display_id, raw=True)
