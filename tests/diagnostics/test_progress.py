import io
import os
import threading

import nbformat
from nbclient import NotebookClient

from daskdml.diagnostics import ProgressBar
from daskdml.events import BlockEnd, FitStart, PassEnd, PassStart
from tests.diagnostics.fits import events

LINES = """\
logistic: 4,000 rows x 100 features
  3 passes, 600 MB a worker
  dashboard: http://127.0.0.1:8787
newton, pass 1: {visited}, 180 MB read, objective 0.52, gap 0.2 (relative 0.38)
newton, pass 2: {visited}, 180 MB read, objective 0.3205, gap 0.0005 (relative 0.0016)
newton, pass 3: {visited}, 0 B read, objective 0.320001, gap 1e-09 (relative 3.1e-09)
logistic: 1.25 s; the certified gap is below tol; certified relative gap 3.1e-09
"""
LOST = "Worker worker-1 was lost; its blocks are read again.\n"
EXPECTED = LINES.replace("newton, pass 2", LOST + "newton, pass 2").format(
    visited="240 MB of rows in 0.40 s (600 MB/s)"
)


def show(bar):
    """Tell `bar` a whole fit."""
    for event in events():
        bar(event)


def screen(output):
    """Return what a terminal shows after `output`: a carriage return goes back, text overwrites."""
    lines = []
    for line in output.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return "\n".join(lines)


def terminal_output(bar_of, encoding="utf-8"):
    """Return what the bar made by `bar_of` sends to a real pseudo-terminal during a fit."""
    controller, terminal = os.openpty()
    received = []

    def read():
        while True:
            try:
                data = os.read(controller, 65536)
            except OSError:
                return
            if not data:
                return
            received.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with open(terminal, "w", encoding=encoding) as stream:
        assert stream.isatty()
        show(bar_of(stream))
    reader.join(10)
    os.close(controller)
    return b"".join(received).decode(encoding)


def test_a_file_gets_one_line_per_pass_and_no_carriage_return():
    """Without a terminal there are lasting lines only, the same each time."""
    stream = io.StringIO()
    show(ProgressBar(stream))
    assert stream.getvalue() == EXPECTED


def test_standard_error_is_the_default(capsys):
    """A bar without a stream leaves standard output to the program."""
    show(ProgressBar())
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", EXPECTED)


def test_a_terminal_shows_the_same_lines_in_the_end():
    """The live line is written over completely: the screen ends with the lasting lines."""
    output = terminal_output(lambda stream: ProgressBar(stream, min_interval=0.0))
    assert screen(output) == EXPECTED


def test_a_terminal_shows_the_share_done():
    """Every block moves the live line, from nothing to all of the pass."""
    output = terminal_output(lambda stream: ProgressBar(stream, min_interval=0.0))
    for share in ("  0%", " 17%", " 50%", "100%"):
        assert output.count(f" {share}  ") == 3
    assert "\rnewton, pass 1 ████████████░░░░░░░░░░░░  50%  " in output


def test_a_terminal_without_block_characters_gets_a_plain_bar():
    """An encoding that has no blocks is never asked to write them."""
    output = terminal_output(lambda stream: ProgressBar(stream, min_interval=0.0), "ascii")
    assert "\rnewton, pass 1 ############............  50%  " in output


def test_live_lines_come_no_faster_than_asked():
    """With a long interval only the first live line of the fit is written."""
    output = terminal_output(lambda stream: ProgressBar(stream, min_interval=1000.0))
    assert output.count("\r") - output.count("\r\n") <= 2
    assert screen(output) == EXPECTED


def test_what_is_unknown_is_not_written():
    """Without an objective, a gap or the pass's start, the line has what remains."""
    stream = io.StringIO()
    ProgressBar(stream)(PassEnd("sgd", 0, 0.5, None, None, None, 0, 0, 0, 0.9, 0, 0))
    assert stream.getvalue() == "sgd, pass 1: 0.50 s, 0 B read\n"


def test_a_fit_after_one_that_broke_off_starts_on_a_new_line():
    """The live line of a fit without an end is left as it is."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    bar = ProgressBar(stream, min_interval=0.0)
    bar(FitStart("first", None, 10, 2, None))
    bar(PassStart("newton", 0, 4, 100))
    bar(FitStart("second", None, 10, 2, None))
    first, live, second, end = stream.getvalue().split("\n")
    assert first == "first: 10 rows x 2 features"
    assert live.startswith("\rnewton, pass 1 ")
    assert (second, end) == ("second: 10 rows x 2 features", "")


def test_a_pass_that_begins_again_counts_anew():
    """What a pass that broke off had visited is no part of the next one of its name."""
    stream = io.StringIO()
    bar = ProgressBar(stream)
    for _ in range(2):
        bar(PassStart("score", 0, 1, 8000))
        bar(BlockEnd("score", 0, 1, 8000, "a", 0.0, 1.0, 0.1, 0.1, 0.1))
    bar(PassEnd("score", 0, 2.0, None, None, None, 500, 0, 0, 0, 0, 0))
    assert stream.getvalue() == "score, pass 1: 8 kB of rows in 2.00 s (4 kB/s), 500 B read\n"


def test_blocks_are_counted_from_many_threads():
    """Events from several threads at once leave no block out and no line torn."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    bar = ProgressBar(stream, min_interval=0.0)
    bar(PassStart("newton", 0, 400, 400))
    block = BlockEnd("newton", 0, 1, 1, "a", 0.0, 1.0, 0.1, 0.1, 0.1)
    threads = [threading.Thread(target=lambda: [bar(block) for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().split("\r")[1:]
    assert len(lines) == 401
    assert all(line.startswith("newton, pass 1 ") for line in lines)
    assert " 100%  " in lines[-1]


def test_a_saved_notebook_keeps_the_text(tmp_path):
    """After the notebook was run and saved, its one output is the block of lasting lines."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(
            "from daskdml.diagnostics import ProgressBar\n"
            "from tests.diagnostics.fits import events\n"
            "bar = ProgressBar(min_interval=0.0)\n"
            "for event in events():\n"
            "    bar(event)"
        )
    ]
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": root}}).execute()
    saved = nbformat.reads(nbformat.writes(notebook), as_version=4)
    (output,) = saved.cells[0].outputs
    assert output.output_type == "display_data"
    assert output.data["text/plain"] + "\n" == EXPECTED
