"""What is written stays what it is: whole files, links and devices, and no bit that changes unseen.

The flips are drawn with a fixed seed. An answer after a flip is either the answer before, or an
error that names the file and a remedy.
"""

import os
import random
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.inprocess import invoke, prepare
from tracer.files import MANIFEST, DamagedError, check_file, remove_files, write_files, write_whole

# --- where output goes ----------------------------------------------------------------------------


def test_a_symbolic_link_stays_one_and_its_target_is_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target"
    target.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["elsewhere", "link", "target"]


def test_a_link_to_nothing_yet_makes_its_target(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_pipe_stays_one_and_carries_the_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, b"through")
    reader.join(10)
    assert read == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes a device")
def test_a_device_stays_one(tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        device.open("wb").close()
    except PermissionError:
        pytest.skip("no device can be made here")
    write_whole(device, b"nowhere")
    assert stat.S_ISCHR(device.stat().st_mode)


def test_a_file_keeps_its_mode(tmp_path):
    path = tmp_path / "mine"
    path.write_text("old")
    path.chmod(0o640)
    write_whole(path, b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o640)


def test_what_lies_under_the_temporary_name_is_not_followed(tmp_path):
    """A link that somebody put there would send the data to what it points to."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to(victim)
    write_whole(tmp_path / "file", b"new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "folder", b"new")


@pytest.mark.parametrize("command", [["csv", "ops"], ["json", "ops"], ["dot"], ["graphml"]])
def test_exports_go_where_they_were_asked_to(made, tmp_path, command):
    """Through a link, and into /dev/null and a pipe."""
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "target")
    plain = tmp_path / "plain"
    for out in (plain, link):
        done = invoke("cutedge", "export", *command, made / "t", "--out", out)
        assert done.returncode == 0, done.stderr
    assert link.is_symlink()
    assert (tmp_path / "target").read_bytes() == plain.read_bytes()
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    assert invoke("cutedge", "export", *command, made / "t", "--out", pipe).returncode == 0
    reader.join(10)
    assert read == [plain.read_bytes()]
    before = os.stat(os.devnull)
    assert invoke("cutedge", "export", *command, made / "t", "--out", os.devnull).returncode == 0
    assert os.stat(os.devnull).st_rdev == before.st_rdev


# --- the manifest ---------------------------------------------------------------------------------


def test_the_manifest_is_what_sha256sum_checks(tmp_path):
    write_files(tmp_path, {"a": b"1", "b with spaces": b"2"})
    write_files(tmp_path, {"a": b"3"})
    if shutil.which("sha256sum"):
        done = subprocess.run(["sha256sum", "-c", MANIFEST], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0
        assert done.stdout.count(b": OK") == 2
    check_file(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"4")
    with pytest.raises(DamagedError, match="SHA-256"):
        check_file(tmp_path / "a")


def test_a_file_that_is_not_listed_is_not_taken(tmp_path):
    (tmp_path / "stray").write_bytes(b"1")
    with pytest.raises(DamagedError, match=r"no _manifest\.sha256 beside it"):
        check_file(tmp_path / "stray")
    write_files(tmp_path, {"a": b"1"})
    with pytest.raises(DamagedError, match="does not list it"):
        check_file(tmp_path / "stray")


@pytest.mark.parametrize("turn", range(4))
def test_a_process_that_ends_in_the_middle_leaves_only_whole_files(tmp_path, monkeypatch, turn):
    """Two files are replaced, and the manifest before and after: whichever of the four renames is
    the last that happens, each file is as it was or as it was to be, and passes."""
    write_files(tmp_path, {"a": b"old a", "b": b"old b"})
    real, renamed = Path.replace, [0]

    def replace(path: Path, target: Path) -> Path:
        if renamed[0] == turn:
            raise KeyboardInterrupt
        renamed[0] += 1
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_files(tmp_path, {"a": b"new a", "b": b"new b"})
    monkeypatch.undo()
    for name in ("a", "b"):
        check_file(tmp_path / name)
    assert [(tmp_path / name).read_bytes()[:3] for name in ("a", "b")] == [
        [b"old", b"old"],
        [b"old", b"old"],
        [b"new", b"old"],
        [b"new", b"new"],
    ][turn]
    assert not list(tmp_path.glob(".*.tmp"))


def test_two_writers_do_not_lose_each_others_lines(tmp_path):
    def write(name: str) -> None:
        for n in range(50):
            write_files(tmp_path, {name: f"{n}".encode()})

    writers = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for name in "ab":
        check_file(tmp_path / name)


def test_the_manifest_goes_with_the_last_file(tmp_path):
    write_files(tmp_path, {"a": b"1", "b": b"2"})
    remove_files(tmp_path, "a", "missing")
    check_file(tmp_path / "b")
    assert "  a\n" not in (tmp_path / MANIFEST).read_text()
    remove_files(tmp_path, "b")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_manifest_is_made_anew_by_the_next_writing(tmp_path):
    write_files(tmp_path, {"a": b"1"})
    (tmp_path / MANIFEST).write_bytes(b"\xff\x00 no line")
    with pytest.raises(DamagedError, match="is damaged"):
        check_file(tmp_path / "a")
    write_files(tmp_path, {"a": b"1"})
    check_file(tmp_path / "a")


# --- flipped bits ---------------------------------------------------------------------------------

SEED = 20
FEW, MANY = 4, 200


SCHEDULED = ["--machine", "tee-tdx+rtx-4090@pcie4-x16", "--schedule", "overlap"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace ``t`` with a partition and costs, a sweep ``s``, and the trace that was the last."""
    here = tmp_path_factory.mktemp("files")
    sizes = ["--seq", "8..64:8", "--policy", "offload-linear", "--out", "s", "--jobs", "1"]
    prepare(
        here,
        ["trace", "edge-10m", "--seq", "8"],
        ["trace", "edge-10m", "--seq", "8", "--out", "t"],
        ["partition", "t", "--policy", "offload-linear", *SCHEDULED],
        ["cutedge", "cost", "t", "--device", "chip-8x8"],
        ["cutedge", "sweep", "edge-10m", *sizes],
    )
    return here


PARTITION = "t/policy=offload-linear/**"
DOT = ["cutedge", "export", "dot", "t", "--out", "o"]
SUM = ["cutedge", "query", "--trace", "s", "SELECT sum(total_payload_bytes), max(seq) FROM sweep"]
KINDS: dict[str, tuple[str, list[str]]] = {
    **{
        name: (f"t/{name}.parquet", ["partition", "t", "--policy", "fuse-attention"])
        for name in ("ops", "tensors", "edges")
    },
    "reach": (
        "t/reach.json",
        ["cutedge", "compare", "t", "--over", "seq", "8..32", "--policy", "min-cut"],
    ),
    **{
        name: (f"{PARTITION}/{name}.parquet", DOT)
        for name in ("placement", "transfers", "calls", "summary")
    },
    "schedule": (
        f"{PARTITION}/schedule.parquet",
        ["cutedge", "export", "perfetto", "t", "--out", "o"],
    ),
    "a partition's manifest": (f"{PARTITION}/{MANIFEST}", DOT),
    "transfers in a query": (
        f"{PARTITION}/transfers.parquet",
        ["cutedge", "query", "--trace", "t", "SELECT sum(share) FROM transfers"],
    ),
    "costs": (
        "t/costs.parquet",
        ["cutedge", "query", "--trace", "t", "SELECT sum(cycles), sum(seconds) FROM costs"],
    ),
    "costs as CSV": ("t/costs.parquet", ["cutedge", "export", "csv", "costs", "t"]),
    "a manifest": ("t/" + MANIFEST, ["cutedge", "export", "csv", "ops", "t"]),
    "sweep": ("s/**/sweep.parquet", SUM),
    "a sweep's manifest": (f"s/**/{MANIFEST}", SUM),
    "a sweep's note": (
        "s/_sweep.json",
        [
            "cutedge",
            "sweep",
            "edge-10m",
            "--seq",
            "8..64:8",
            "--policy",
            "offload-linear",
            "--out",
            "s",
            "--jobs",
            "1",
        ],
    ),
    "the last trace": ("cutedge-out/last-trace", ["cutedge", "export", "csv", "ops"]),
}
"""Kind of file -> (where it is, a command that reads it)."""


def flips(path: Path, count: int, run: Callable[[], tuple[object, str]]) -> None:
    """Flip ``count`` bits of a file, one at a time, and hold each answer to the one before."""
    whole = path.read_bytes()
    draw = random.Random(f"{SEED} {path.name}")
    expected, complaint = run()
    assert expected is not None, complaint
    for _ in range(count):
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        changed = bytearray(whole)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        where = f"{path.name}: bit {bit} of byte {place}"
        answer, complaint = run()
        assert "Traceback" not in complaint, f"{where}: {complaint}"
        if answer is None:
            assert complaint.startswith("error: "), f"{where}: {complaint}"
            assert path.name in complaint or path.name == MANIFEST, f"{where}: {complaint}"
        else:
            assert answer == expected, where
        path.write_bytes(whole)


def flipped(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, count: int
) -> None:
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    pattern, words = KINDS[kind]
    (path,) = Path().glob(pattern)

    def run() -> tuple[object, str]:
        Path("o").unlink(missing_ok=True)
        done = invoke(*words)
        assert done.returncode in (0, 1, 2)
        written = Path("o").read_bytes() if Path("o").exists() else b""
        return (None if done.returncode else (done.stdout, written)), done.stderr

    flips(path, count, run)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.few(9)
def test_a_flipped_bit_is_found_or_changes_nothing(made, tmp_path, monkeypatch, kind):
    flipped(made, tmp_path, monkeypatch, kind, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_flipped_bits_are_found_or_change_nothing(made, tmp_path, monkeypatch, kind):
    flipped(made, tmp_path, monkeypatch, kind, MANY)


def test_a_sweep_makes_a_damaged_part_anew(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    (path,) = Path("s").rglob("sweep.parquet")
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    words = KINDS["a sweep's note"][1]
    assert "0 of these files were there already" in invoke(*words).stdout
    check_file(path)
    assert "1 of these files were there already" in invoke(*words).stdout


# --- a query that may reach nothing else ----------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('secret.csv')",
        "SELECT * FROM 'secret.csv'",
        "SELECT content FROM read_text('secret.csv')",
        "SELECT * FROM glob('*')",
        "COPY ops TO 'stolen.csv'",
        "EXPORT DATABASE 'stolen'",
        "ATTACH 'stolen.db' AS d",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "PRAGMA enable_profiling; PRAGMA profile_output = 'stolen.json'; SELECT 1",
        "SELECT getenv('HOME')",
    ],
)
def test_a_safe_query_reaches_no_other_file(made, tmp_path, monkeypatch, sql):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    done = invoke("cutedge", "query", "--safe", "--trace", made / "t", sql)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_a_safe_query_answers_as_any_other(made):
    sql = "SELECT kind, sum(flops) FROM ops JOIN placement USING (op_id) GROUP BY 1 ORDER BY 1"
    plain = invoke("cutedge", "query", "--trace", made / "t", sql)
    safe = invoke("cutedge", "query", "--safe", "--trace", made / "t", sql)
    assert plain.returncode == safe.returncode == 0
    assert safe.stdout == plain.stdout
