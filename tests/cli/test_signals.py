"""However a command is ended, nothing is left of it: no process, half of a file or traceback.

The slow tests end each command at many random moments; the fast ones at the moments that matter.
"""

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import main as entry
from cutedge.sweeping.processes import each
from tests.support import BIN
from tests.support.running import MODEL, children, is_alive, until
from tracer.errors import CutedgeError
from tracer.files import MANIFEST, check_file

ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def heed() -> None:
    """Do not ignore Ctrl-C, as a job in the background of a shell does, or what nohup does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def script(text: str, start=heed) -> subprocess.Popen:
    """A process that watches for signals, then does ``text``."""
    begin = "import os, time\nfrom tracer import interrupts\ninterrupts.watch()\n"
    return subprocess.Popen(
        [sys.executable, "-c", begin + text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=start,
    )


def interrupted(process: subprocess.Popen, how: signal.Signals = signal.SIGINT) -> tuple:
    """Exit code and what was printed, of a process that says when it is where it is to be."""
    assert process.stdout.readline() == "here\n"
    time.sleep(0.2)  # for what it does after it has said so
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


LINES = {
    "interrupted; nothing was written\n",
    "interrupted; what was written before is whole\n",
    "interrupted; what is in out is whole, and the same command goes on from there\n",
}
"""What Ctrl-C says of a command that writes files."""

NOTHING = "interrupted; nothing was written\n"

HERE = "print('here', flush=True)\n"

BUSY = {
    "where whatever is raised is caught": """
while True:
    try: time.sleep(60)
    except BaseException: pass
""",
    "in a callback whose exceptions are lost": """
import weakref
class Gone: pass
gone = Gone()
watched = weakref.ref(gone, lambda _: time.sleep(60))
del gone
""",
    "in a call into C that the signal cuts short": """
import ctypes
ending = interrupts.at_interrupt(lambda: time.sleep(0.3))
ending.__enter__()
ctypes.CDLL(None).sleep(60)
""",
    "in such a call, and is then done": """
import ctypes
ending = interrupts.at_interrupt(lambda: time.sleep(0.3))
ending.__enter__()
ctypes.CDLL(None).sleep(60)
interrupts.leave(0)
""",
    "in a sum that never ends": "while True: pass",
    "where the main thread is at its end": """
import atexit
atexit.register(time.sleep, 60)
interrupts.leave(0)
""",
}


@pytest.mark.parametrize("busy", BUSY)
def test_ctrl_c_ends_a_process_whatever_it_does(busy):
    assert interrupted(script(HERE + BUSY[busy])) == (130, "", NOTHING)


@pytest.mark.parametrize("how", ENDS)
def test_a_signal_calls_what_is_to_be_called_and_silences_what_follows(how):
    text = """
def end():
    os.write(1, b"called\\n")
    os.write(2, b"a worker is gone\\n")
with interrupts.at_interrupt(lambda: os.write(1, b"of what has ended\\n")): pass
with interrupts.at_interrupt(lambda: 1 / 0), interrupts.at_interrupt(end):
    print('here', flush=True)
    time.sleep(60)
"""
    said = NOTHING if how == signal.SIGINT else ""
    assert interrupted(script(text), how) == (ENDS[how], "called\n", said)


def test_a_write_that_has_begun_comes_to_its_end():
    text = """
with interrupts.uninterrupted(), interrupts.uninterrupted():
    print('here', flush=True)
    time.sleep(0.5)
    os.write(1, b"written\\n")
time.sleep(60)
"""
    assert interrupted(script(text)) == (130, "written\n", NOTHING)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("pass", NOTHING),
        ("write_whole(Path('x'), b'')", "interrupted; what was written before is whole\n"),
        ("write_files(Path(), {'x': b''})", "interrupted; what was written before is whole\n"),
        ("write_whole(Path('no/x'), b'')", NOTHING),
        ("interrupts.say_at_interrupt('stopped'); write_whole(Path('x'), b'')", "stopped\n"),
        ("interrupts.say_as(lambda text: text.upper())", NOTHING.upper()),
    ],
)
def test_ctrl_c_says_what_has_been_written(before, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f"""
from pathlib import Path
from contextlib import suppress
from tracer.files import write_files, write_whole
with suppress(OSError):
    {before}
"""
    assert interrupted(script(text + HERE + "time.sleep(60)")) == (130, "", said)


@pytest.mark.parametrize("words", [("--json",), ()])
@pytest.mark.few(1)
def test_a_command_that_is_interrupted_says_so_in_a_line(words, traced, tmp_path):
    command = ["query", "--trace", traced, "SELECT count(*) FROM range(100000) a, range(100000000)"]
    process = subprocess.Popen(
        [BIN / "cutedge", *command, *words],
        cwd=tmp_path,
        text=True,
        preexec_fn=heed,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    maps = Path(f"/proc/{process.pid}/maps")
    assert until(lambda: "duckdb" in maps.read_text(), 60)  # what was asked is understood by then
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (130, "", 1)
    if words:
        assert json.loads(err)["error"].startswith("interrupted")
        assert json.loads(err)["exit_code"] == 130
    else:
        assert err.startswith("interrupted")


def test_on_a_terminal_the_line_of_progress_goes_first(tmp_path):
    text = HERE + "os.write(2, b'exporting ... 3 s')\ntime.sleep(60)"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, time\nfrom tracer import interrupts\ninterrupts.watch()\n" + text,
        ],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        preexec_fn=heed,
    )
    os.close(theirs)
    assert process.stdout.readline() == "here\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert said == "exporting ... 3 s\r\x1b[Kinterrupted; nothing was written\r\n"


def test_what_its_starter_ignores_stays_ignored():
    text = HERE + "time.sleep(0.5)\nprint('done', flush=True)\ninterrupts.leave(7)\n"
    process = script(text, lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert interrupted(process) == (7, "done\n", "")


def test_the_entry_points_import_no_command_before_they_watch():
    code = "import sys, cli.main; print(*{'typer', 'cli.app', 'cli.commands'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
    assert entry.app.registered_commands


# --- the processes of a sweep ---------------------------------------------------------------------


def test_processes_give_results_and_errors_and_are_gone():
    before = children(os.getpid())
    assert sorted(each(divmod, ((n, 3) for n in range(9)), 2)) == sorted(
        divmod(n, 3) for n in range(9)
    )
    with pytest.raises(ZeroDivisionError) as caught:
        [*each(divmod, [(1, 1), (1, 0)], 2)]
    assert "Traceback" in caught.value.__notes__[0]
    with pytest.raises(CutedgeError, match="a worker process ended before its work did"):
        [*each(os.kill, [(0, signal.SIGKILL)], 1)]  # 0: all of its own process group
    assert children(os.getpid()) == before


TRIALS = {
    "trace": ("trace", "edge-10m", "--seq", "16", "--no-cache", "--out", "out"),
    "sweep": (
        "sweep",
        "edge-10m",
        "gpt2",
        "--seq",
        "16,32",
        "--policy",
        "min-cut",
        "--policy",
        "layers",
        "--jobs",
        "2",
        "--out",
        "out",
    ),
    "report": ("report", "traced", "--out", "out/report.html"),
    "compare": ("compare", "traced"),
    "partition": ("partition", "traced", "--policy", "min-cut"),
    "cost": ("cost", "traced", "--device", "chip-8x8"),
    "verify": ("verify", *MODEL, "--runs", "1000", "--out", "out"),
}


def start(folder: Path, name: str) -> subprocess.Popen:
    """A command of ``TRIALS``, as a terminal starts it, in a folder of its own."""
    (folder / "temp").mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    command = TRIALS[name]
    program = [BIN / command[0]] if command[0] in ("trace", "partition") else [BIN / "cutedge"]
    words = command[1:] if command[0] in ("trace", "partition") else command
    return subprocess.Popen(
        [*program, *words],
        cwd=folder,
        start_new_session=True,
        text=True,
        env={**os.environ, "CUTEDGE_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "temp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed,
    )


def result(process: subprocess.Popen) -> int:
    """The exit code of a process that ends by itself; its pipes are read and closed."""
    process.communicate(timeout=240)
    return process.returncode


def family(process: int) -> set[int]:
    """The processes that a process has started, and those that they have."""
    direct = set(children(process))
    return direct.union(*map(family, direct))


def shared() -> set[str]:
    return set(os.listdir("/dev/shm"))


def check_nothing_is_left(folder: Path, started: set[int], before: set[str]) -> None:
    assert until(lambda: not any(map(is_alive, started)), 20), "a process lives on"
    there_now = shared() - before  # also of tests that run beside this one
    assert until(lambda: not there_now & shared(), 30), "shared memory or a semaphore stays"
    assert not [*folder.rglob("*.tmp")], "a file half written"
    assert not [*(folder / "cache").glob("traces/.*")], "an entry of the cache half written"
    assert until(lambda: not os.listdir(folder / "temp"), 20), "a temporary folder stays"
    for manifest in folder.rglob(MANIFEST):
        for file in manifest.parent.iterdir():
            if file.suffix == ".parquet":
                check_file(file)
    traced = {"ops.parquet", "tensors.parquet", "edges.parquet", "reach.json"}
    there = {path.name for path in (folder / "out").iterdir()} & traced
    assert there in (set(), traced), "half of a trace"


def test_a_sweep_that_is_killed_leaves_no_process_and_no_semaphore(tmp_path):
    before = shared()
    process = start(tmp_path, "sweep")
    assert until(lambda: len(children(process.pid)) == 2 or process.poll() is not None, 60)
    assert process.poll() is None, process.communicate()
    started = family(process.pid)
    process.kill()
    assert process.communicate(timeout=60) == ("", "")
    check_nothing_is_left(tmp_path, started, before)


def end_at(delay: float, name: str, folder: Path, how: signal.Signals, *, group: bool) -> bool:
    """End a command after some seconds; whether it had not ended by itself. Checks all of it."""
    before = shared()
    process = start(folder, name)
    assert until(lambda: watches(process.pid), 20)
    time.sleep(delay)
    started = family(process.pid)
    running = process.poll() is None
    sent = time.monotonic()
    if running:
        (os.killpg if group else os.kill)(process.pid, how)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0 and time.monotonic() - sent < 1:
        running = False  # all was done when the signal came
    if running and how != signal.SIGKILL:
        said = LINES if how == signal.SIGINT else {""}
        assert process.returncode == ENDS[how], f"after {delay} s: {out}{err}"
        assert err in said
    if how != signal.SIGKILL:
        check_nothing_is_left(folder, started, before)
    assert until(lambda: not any(map(is_alive, started)), 20), "a process lives on"
    return running


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    words = [BIN / "trace", "edge-10m", "--seq", "16", "--out", "traced"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return folder / "traced"


def watches(process: int) -> bool:
    """Whether a process minds SIGTERM: before that Python is starting, no line of ours has run."""
    found = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{process}/status").read_text())
    return bool(found and int(found[1], 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIALS)
def test_a_command_ends_well_at_any_moment(name, traced, tmp_path):
    drawn = random.Random(name)
    longest, ended = 1.0, 0
    for trial in range(60):
        folder = tmp_path / str(trial)
        folder.mkdir()
        (folder / "traced").symlink_to(traced)
        how = drawn.choice([signal.SIGINT, signal.SIGINT, signal.SIGTERM])
        delay = drawn.uniform(0, longest)
        if end_at(delay, name, folder, how, group=drawn.random() < 0.5):
            longest, ended = min(longest * 1.15, 12.0), ended + 1
        else:
            longest = max(longest / 1.3, 0.5)
    assert ended > 30


@pytest.mark.slow
def test_a_sweep_that_is_killed_at_any_moment_is_resumed_right(tmp_path):
    whole = tmp_path / "whole"
    assert result(start(whole, "sweep")) == 0
    wanted = {p.relative_to(whole): p.read_bytes() for p in whole.glob("out/**/*.parquet")}
    assert len(wanted) == 4
    drawn = random.Random(9)
    for trial in range(12):
        folder = tmp_path / str(trial)
        moment = drawn.uniform(0, 12)
        end_at(moment, "sweep", folder, signal.SIGKILL, group=trial % 2 == 0)
        assert result(start(folder, "sweep")) == 0
        there = {p.relative_to(folder): p.read_bytes() for p in folder.glob("out/**/*.parquet")}
        assert there == wanted
        check_nothing_is_left(folder, set(), shared())
