"""A sweep: every point of a grid, worked out into one data set."""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

from cutedge._grids import AXES, SINGLE, Grid, read_grid
from cutedge._subjects import Subject, programs_of
from cutedge._workspace import OUT
from cutedge.sweeping import BackendName
from cutedge.sweeping.parts import SizedGraph
from cutedge.sweeping.points import Job, pack
from partition.policy import Policy
from tracer.errors import CutedgeError, InputError
from tracer.interrupts import say_at_interrupt
from tracer.stages import stage


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep has made."""

    grid: str
    """A hash of all that decides the rows."""
    rows: int
    """Points."""
    files: int
    """Files of the data set."""
    files_kept: int
    """Files that were there already."""
    placed: Mapping[str, int]
    """How placements are known -> points."""
    folder: str
    """Where the data set is."""


def sweep(
    model: str | Path | Sequence[str | Path] | None = None,
    out: str | Path | None = None,
    *,
    grid: str | Path | None = None,
    time_limit: float = 60.0,
    backend: BackendName = "local",
    scheduler: str | None = None,
    jobs: int | None = None,
    warn: Callable[[str], None] = warnings.warn,
    **axes: Any,
) -> Swept:
    """Work out every point of a grid into one data set; what is there is not done again.

    The ``axes`` are the options of ``cutedge sweep``: texts or paths, or lists of them, such as
    ``seq="64..4096"``. A ``grid`` file has the same keys. ``out`` is the folder of the data set,
    by default one for each grid in ``cutedge-out``. Points are worked out by ``jobs`` processes
    here, or by a cluster (``backend`` is ``dask`` or ``ray``, at the address ``scheduler``).

    Raises InputError for what cannot be understood, for a folder of another grid and for policies
    that count seconds where these are not known, CutedgeError where the folder cannot be written.

    >>> import cutedge, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = cutedge.sweep("edge-10m", folder, seq="64..256", policy="min-cut", jobs=1)
    >>> made.rows, dict(made.placed)
    (3, {'proven between sizes': 1, 'solved': 2})
    """
    if (backend == "local") != (scheduler is None):
        raise InputError("--scheduler is the address of a cluster: give it with --backend dask|ray")
    if unknown := set(axes) - {*AXES, *SINGLE}:
        raise InputError(f"sweep has no {', '.join(sorted(unknown))}: {', '.join(AXES)} are axes")
    given = {
        key: [value] if isinstance(value, str | int | Path) and key not in SINGLE else value
        for key, value in {"model": model, **axes}.items()
    }
    texts = {
        key: [str(one) for one in value] if isinstance(value, list | tuple) else value
        for key, value in given.items()
    }
    asked = read_grid(None if grid is None else Path(grid), texts, time_limit)
    folder = OUT / f"grid={asked.id}" if out is None else Path(out)
    return sweep_grid(asked, folder, Backend(backend, scheduler, jobs), warn)


def sweep_grid(grid: Grid, folder: Path, backend: "Backend", warn: Callable[[str], None]) -> Swept:
    """Work out every point of a grid into a folder: ``sweep``."""
    _check_policies(grid)
    for warning in dict.fromkeys(said for m in grid.machines for said in m.warnings):
        warn(warning)
    say_at_interrupt(
        f"interrupted; what is in {folder} is whole, and the same command goes on from there"
    )
    with _alone(folder, grid.id):
        files = _files(grid, folder)
        _refuse_strays(folder, files)
        todo = [file for file in files if file.placed() is None]
        before = sum(f.rows for f in files) - sum(f.rows for f in todo)
        with _counting(grid.rows, before) as done:
            _work_out(grid, todo, backend, done, warn)
        placed: Counter[str] = Counter()
        for file in files:
            placed.update(file.placed() or {})
    return Swept(
        grid.id,
        grid.rows,
        len(files),
        len(files) - len(todo),
        dict(sorted(placed.items())),
        str(folder),
    )


@contextmanager
def _counting(rows: int, before: int) -> Iterator[Callable[[int], None]]:
    """A stage of so many points, some of which are there already."""
    done = before
    with stage("working out points", rows, before) as at:

        def more(made: int) -> None:
            nonlocal done
            done += made
            at(done)

        yield more


def _check_policies(grid: Grid) -> None:
    """Refuse policies that count seconds where those of a machine are not known."""
    from costmodels.roofline import DeviceTime
    from partition.optimise import obstacle
    from partition.setting import Setting

    for policy in grid.policies:
        for m in grid.machines:
            times = {
                name: DeviceTime(device, (), 0.0, {}, 1.0) for name, device in m.described.items()
            }
            if why := obstacle(policy, Setting(m, times=times)):
                raise InputError(f"{policy.name} {why}")


# --- the files ------------------------------------------------------------------------------------

ROWS = 2**17
"""At most so many points are one job, and one file."""

SEARCHED_ROWS = 2**6
"""Likewise where each of them takes a search of its own."""


@dataclass(frozen=True, slots=True)
class _File:
    """One file of the data set: one policy on one model, at some of the sizes."""

    path: Path
    subject: Subject
    policy: Policy
    first: int
    """Of the sizes of the subject, the first and the one after the last."""
    last: int
    rows: int
    marks: Mapping[str, str]
    """What its metadata says."""

    def placed(self) -> dict[str, int] | None:
        """How its rows were placed; None where it is to be made."""
        from cutedge.sweeping.point_files import placed_rows

        return placed_rows(self.path, self.marks)


def _files(grid: Grid, folder: Path) -> list[_File]:
    """All files of a grid: the same ones, and the same rows in each, whoever makes them when."""
    from partition.objective import is_rounded

    _refuse_namesakes(grid.subjects)
    found: list[_File] = []
    parts: Counter[str] = Counter()
    for subject in grid.subjects:
        name = quote(subject.asked({}).name, safe="+@,() ")
        for policy in grid.policies:
            searched = is_rounded(policy) or (
                policy.objective is not None and ("call" in grid.residencies or policy.protects)
            )
            step = max(1, (SEARCHED_ROWS if searched else ROWS) // grid.each)
            for first in range(0, subject.points, step):
                last = min(first + step, subject.points)
                by = quote(policy.name, safe="+@,() ")
                inside = f"model={name}/phase={subject.called}/policy={by}"
                part = f"{inside}/part={parts[inside]}"
                parts[inside] += 1  # also over what weights are stored in
                path = folder / part / "sweep.parquet"
                marks = {"grid": grid.id, "part": part}
                found.append(
                    _File(path, subject, policy, first, last, (last - first) * grid.each, marks)
                )
    return found


def _refuse_namesakes(subjects: Iterable[Subject]) -> None:
    by_name: dict[str, Any] = {}
    for subject in subjects:
        model = by_name.setdefault(subject.asked({}).name, subject.model)
        if model != subject.model:
            raise InputError("two models of the grid have the same name: rename one of the configs")


def _refuse_strays(folder: Path, files: Iterable[_File]) -> None:
    known = {file.path for file in files}
    for path in sorted(folder.rglob("sweep.parquet")):
        if path not in known:
            raise InputError(
                f"{path} is not of this grid, and its rows would be taken for the grid's: choose "
                "another --out"
            )


@contextmanager
def _alone(folder: Path, grid: str) -> Iterator[None]:
    """The data set's directory, marked as that of a grid, for as long as one process writes."""
    import fcntl

    note = folder / "_sweep.json"  # readers of a folder of Parquet pass over names like this
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle: IO[str] = note.open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise CutedgeError(
            f"cannot write {note}: {error.strerror or error}. Choose another place with --out."
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CutedgeError(f"another sweep is writing to {folder}: wait for it") from error
        handle.seek(0)
        found = handle.read()
        if found.strip() not in ("", json.dumps({"grid": grid})):
            raise InputError(
                f"{folder} holds the points of another grid, by {note}: choose another --out, or "
                "remove it"
            )
        if not found.strip():
            handle.write(json.dumps({"grid": grid}) + "\n")
            handle.flush()
        for left in folder.rglob(".*.tmp"):  # of a run that was killed
            left.unlink(missing_ok=True)
        yield


# --- the jobs -------------------------------------------------------------------------------------


def _work_out(
    grid: Grid,
    files: Sequence[_File],
    backend: "Backend",
    done: Callable[[int], None],
    warn: Callable[[str], None],
) -> None:
    """Make files: trace what they are of, work out their points, write each when it is there."""
    from tracer.files import write_files
    from tracer.interrupts import uninterrupted
    from tracer.summary import check_causal

    subjects = {id(f.subject): f.subject for f in files}
    if not subjects:
        return
    ranges: dict[int, list[_File]] = {key: [] for key in subjects}
    for file in files:
        ranges[id(file.subject)].append(file)
    followed = {key: one for key, subject in subjects.items() if (one := subject.decode)}
    every = backend.traced([*subjects.values(), *followed.values()])
    for warning in dict.fromkeys(said for _, notes in every for said in notes):
        warn(warning)
    programs = dict(zip(subjects, (found for found, _ in every), strict=False))
    decode = dict(zip(followed, (found for found, _ in every[len(subjects) :]), strict=True))
    for key, steps in decode.items():
        check_causal(programs[key][0].graph, steps[0].graph)
    packed: dict[tuple[int, int], bytes] = {}

    def tasks() -> "Iterator[tuple[int, Job, Mapping[str, str]]]":
        for number, file in enumerate(files):
            key = id(file.subject), file.first
            if key not in packed:
                packed.clear()
                inside = _inside(file, programs[key[0]])
                steps = _passed(inside, decode.get(key[0], []), max(grid.news, default=0))
                packed[key] = pack(inside, grid.machines, steps)
            yield number, _job(grid, file, packed[key]), file.marks

    for number, data in backend.each(_made, tasks(), len(files)):
        file = files[number]
        try:
            with uninterrupted():
                file.path.parent.mkdir(parents=True, exist_ok=True)
                write_files(file.path.parent, {file.path.name: data})
        except OSError as error:
            raise CutedgeError(
                f"cannot write {file.path}: {error.strerror or error}. Make the place writable, or "
                "free some space; then run the same again: what is done is kept."
            ) from error
        done(file.rows)


def _made(number: int, job: Job, marks: Mapping[str, str]) -> tuple[int, bytes]:
    from cutedge.sweeping.point_files import made

    return number, made(job, marks)


def _job(grid: Grid, file: _File, subject: bytes) -> Job:
    return Job(
        subject,
        file.policy,
        grid.wires,
        grid.residencies,
        grid.time_limit,
        grid.schedulings,
        grid.packings,
        grid.news,
        grid.decode_policies,
    )


def _inside(file: _File, programs: "Sequence[SizedGraph]") -> "list[SizedGraph]":
    """The programs of a file's sizes, with these alone."""
    found = []
    for program in programs:
        inside = (program.numbers >= file.first) & (program.numbers < file.last)
        if inside.any():
            sizes = {name: many[inside] for name, many in program.sizes.items()}
            found.append(SizedGraph(program.graph, sizes, program.numbers[inside]))
    return found


def _passed(
    prefills: "Sequence[SizedGraph]", programs: "Sequence[SizedGraph]", most: int
) -> "list[SizedGraph]":
    """The programs of decode at the pasts that generations of so many tokens pass."""
    import numpy as np

    found = []
    for program in programs:
        batch, past = program.sizes["batch"], program.sizes["past"]
        needed = np.zeros(len(past), bool)
        for prefill in prefills:
            for here, prompt in zip(prefill.sizes["batch"], prefill.sizes["seq"], strict=True):
                needed |= (batch == here) & (past >= prompt) & (past <= prompt + max(most - 2, 0))
        if needed.any():
            sizes = {name: many[needed] for name, many in program.sizes.items()}
            found.append(SizedGraph(program.graph, sizes, program.numbers[needed]))
    return found


Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Backend:
    """What carries tasks out: processes here, or those of a cluster by joblib's backends."""

    name: BackendName
    scheduler: str | None
    jobs: int | None

    def traced(
        self, subjects: "Sequence[Subject]"
    ) -> list[tuple[list[SizedGraph], tuple[str, ...]]]:
        """The programs of each subject, made on this machine, where configs and cache are."""
        local = replace(self, name="local", scheduler=None)
        tasks = [(number, subject) for number, subject in enumerate(subjects)]
        found: dict[int, Any] = dict(local.each(_traced, tasks, len(tasks)))
        return [found[number][:2] for number in range(len(subjects))]

    def each(
        self, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]], count: int
    ) -> Iterator[Result]:
        """The results, in whatever order they come."""
        import joblib

        if self.name == "local":
            from cutedge.sweeping import processes

            jobs = min(self.jobs or joblib.cpu_count(), count)
            if jobs == 1:
                yield from (function(*task) for task in tasks)
            else:
                yield from processes.each(function, tasks, jobs)
            return
        with self._backend():
            try:
                if self.name != "ray":
                    parallel = joblib.Parallel(
                        return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs"
                    )
                    yield from parallel(joblib.delayed(function)(*task) for task in tasks)
                    return
                # Its backend gives nothing before all is done: a few at a time, to keep them.
                left, wave = iter(tasks), 2 * joblib.effective_n_jobs(-1)
                while some := [joblib.delayed(function)(*task) for task in islice(left, wave)]:
                    yield from joblib.Parallel(batch_size=1)(some)
            except Exception as error:
                if type(error).__name__ != "KilledWorker":
                    raise
                raise CutedgeError(
                    "a worker process ended before its work did (out of memory?): run the same "
                    "again, what is done is kept; fewer --jobs take less memory"
                ) from error

    @contextmanager
    def _backend(self) -> Iterator[None]:
        """What joblib is to use, connected."""
        import joblib

        with ExitStack() as open_:
            options: dict[str, Any] = {"n_jobs": -1}
            try:
                if self.name == "dask":
                    from distributed import Client

                    options["client"] = open_.enter_context(Client(self.scheduler, timeout=30))
                else:
                    import ray
                    from ray.util.joblib import register_ray

                    ray.init(self.scheduler, log_to_driver=False)
                    open_.callback(ray.shutdown)
                    register_ray()
            except ImportError as error:
                raise InputError(
                    f"--backend {self.name} needs what is not installed ({error}): pip install "
                    f"'cutedge[{self.name}]'"
                ) from error
            except (OSError, ValueError) as error:
                raise InputError(
                    f"--scheduler {self.scheduler}: {str(error).splitlines()[0]}"
                ) from error
            with joblib.parallel_config(self.name, **options):
                yield


def _traced(number: int, subject: Subject) -> tuple[int, Any]:
    return number, programs_of(subject)
