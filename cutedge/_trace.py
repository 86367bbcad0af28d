"""A traced model, and how it is made or read."""

import json
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from costmodels.flops import annotate
from cutedge._machines import machine_of
from cutedge._request import Overrides, Request, with_senses
from partition import Granularity, Residency, ScheduleKind
from tracer.errors import InputError
from tracer.graph import OpGraph
from tracer.reach import Reach, graph_at
from tracer.stages import time_limit as limited
from tracer.summary import cached_outputs, headline

if TYPE_CHECKING:
    import pyarrow as pa

    from cutedge._compare import Comparison
    from cutedge._cost import Cost
    from cutedge._export import GraphKind
    from cutedge._partition import Asked, Objective, Partition
    from cutedge._plan import Plan
    from partition.crossover import Crossover, Point
    from partition.policy import Policy
    from tracer.capture.runnable import Runnable


def trace(
    model: Any,
    inputs: Any = None,
    *,
    batch: int | None = None,
    seq: int | None = None,
    past: int | None = None,
    source: int | None = None,
    phase: str = "prefill",
    cache: bool = False,
    dtype: str | None = None,
    attn: str = "eager",
    logits: str = "last",
    overrides: Overrides = None,
    images: int | None = None,
    image_size: int | str | None = None,
    sounds: int | None = None,
    full: bool = False,
    strict: bool = False,
    use_cache: bool = True,
    time_limit: float | None = None,
) -> "Trace":
    """Trace a model into an op graph. No weights are needed, and no data is computed.

    ``model`` is a preset's name, a config.json or its folder, ``org/name`` on the hub,
    ``file.py:function``, a ``.pt2`` of ``torch.export.save``, a ``.gguf`` or ``.onnx`` file, a
    folder of diffusers, ``timm:name``, ``torchvision:name``, a config as a dict, or a
    ``torch.nn.Module`` with example ``inputs`` (a tensor, a tuple of arguments or a dict of them by
    name).

    ``seq`` tokens are new in each of ``batch`` sequences, after ``past`` cached ones; a decoder of
    an encoder-decoder model reads ``source`` encoded ones. A size that is left out is the model's
    default, of a function of your own its own. ``phase`` is ``prefill``, ``decode`` or
    ``encoder``; ``cache`` has a prefill fill a cache. ``attn`` is ``eager`` (its products are ops)
    or ``sdpa`` (one op). ``overrides`` change fields of the config: a dict, or texts
    ``key=value``. A model of text and images sees ``images`` in each sequence (text alone when left
    out), of ``image_size`` pixels (``448`` or ``"336x448"``, height and width; the config's when
    left out), and one of text and sounds hears ``sounds``; ``seq`` counts their tokens. ``full``
    traces every layer, also where all are alike. A trace that was made before comes out of the
    trace cache, unless ``use_cache`` is False. Work that takes longer than ``time_limit`` seconds is
    given up.

    Raises InputError for a model or options that cannot be, CutedgeError for a model that cannot be
    traced or not in that time, and with ``strict`` for one with an op that works and has no cost
    formula.

    >>> import cutedge
    >>> cutedge.trace("edge-10m", seq=64)
    <cutedge.Trace edge-10m (OPTForCausalLM): prefill of 1 x 64 tokens, float32, eager attention, \
logits of the last token>
    """
    from costmodels.flops import refuse_unsupported

    request = Request(
        model,
        {"batch": batch, "seq": seq, "past": past, "source": source},
        phase=phase,
        cache=cache,
        dtype=dtype,
        attn=attn,
        logits=logits,
        overrides=with_senses(overrides, images, image_size, sounds),
        inputs=inputs,
    )
    with limited(time_limit, request.name, "Give it longer, or trace it with fewer tokens."):
        graph, warnings, reach, cached = request.traced(full=full, use_cache=use_cache)
        traced = Trace(annotate(graph), reach, warnings, request, cached=cached)
    if strict:
        refuse_unsupported(traced.graph)
    return traced


def load(folder: str | Path) -> "Trace":
    """The trace in a directory that ``Trace.save`` or the command ``trace`` wrote.

    Raises CutedgeError where it is missing or damaged.

    >>> import cutedge, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = cutedge.trace("edge-10m", seq=64).save(folder)
    ...     cutedge.load(folder).graph.meta.seq
    64
    """
    from tracer.serde import read_trace

    graph, _ = read_trace(Path(folder))
    return Trace(graph, None, (), folder=Path(folder))


class Trace:
    """A traced model: ops, tensors and edges, with sizes and costs as numbers and as formulas."""

    def __init__(
        self,
        graph: OpGraph,
        reach: Reach | None,
        warnings: Sequence[str],
        request: Request | None = None,
        *,
        cached: bool = False,
        folder: Path | None = None,
    ) -> None:
        """Made by ``trace`` and ``load``."""
        self.graph = graph
        """The op graph; ``graph.nx`` is a networkx graph of it."""
        self.warnings = tuple(warnings)
        """What a user must know before trusting the figures, a line each."""
        self.cached = cached
        """Whether it came out of the trace cache."""
        self.folder = folder
        """The directory that it was read from; None where it was traced."""
        self._reach, self._request = reach, request
        self._plain: Trace | None = None
        self._storage: tuple[str | Path | None, str | None] = None, None

    def __repr__(self) -> str:
        return f"<cutedge.Trace {headline(self.graph.meta)}>"

    def _repr_html_(self) -> str:
        from cutedge._html import rows

        totals = {
            "ops": f"{len(self.graph.ops):,}",
            "parameters": f"{self.graph.meta.parameters:,}",
            "trace id": self.id,
        }
        return rows(headline(self.graph.meta), ("", ""), [[*pair] for pair in totals.items()])

    @cached_property
    def reach(self) -> Reach:
        """The sizes at which it is the same program. Raises CutedgeError where a file lacks it."""
        from tracer.serde import read_reach

        if self._reach is not None:
            return self._reach
        assert self.folder is not None  # it was read from there
        return read_reach(self.folder, self.id)

    @property
    def id(self) -> str:
        """A hash of all rows: equal traces have one id, in whatever folder they are."""
        return self._tables[1]

    @cached_property
    def _tables(self) -> "tuple[dict[str, pa.Table], str]":
        from tracer.serde import trace_tables

        tables, trace_id = trace_tables(self.graph)
        return tables, trace_id if self._plain is None else self._plain.id

    @property
    def ops(self) -> "pa.Table":
        """A row for each op.

        >>> import cutedge
        >>> cutedge.trace("edge-10m", seq=64).ops.column_names[:3]
        ['op_id', 'name', 'target']
        """
        return self._tables[0]["ops"]

    @property
    def tensors(self) -> "pa.Table":
        """A row for each value that an op makes, and for each parameter and buffer."""
        return self._tables[0]["tensors"]

    @property
    def edges(self) -> "pa.Table":
        """A row for each tensor that flows into an op."""
        return self._tables[0]["edges"]

    def at(self, **sizes: int) -> "Trace":
        """The same model at other sizes: by the formulas where it is the same program there.

        Else it is traced anew, where this trace was made by ``trace``. Raises InputError where it
        was not, and for a size that the model does not have.

        >>> import cutedge
        >>> t = cutedge.trace("edge-10m", seq=64)
        >>> t.partition().summary["total_payload_bytes"]
        5938240
        >>> t.at(seq=128).partition().summary["total_payload_bytes"]
        12820032
        """
        if self._plain is not None:
            return self._plain.at(**sizes).stored(*self._storage)
        meta = self.graph.meta
        for size in sizes:
            if size not in meta.variables:
                raise InputError(f"at({size}=...): {meta.model} has {', '.join(meta.variables)}")
        asked = {**meta.variables, **sizes}
        there = graph_at(self.graph, self.reach, asked)
        request = self._request and self._request.at(asked)
        if there is not None:
            warnings = self.reach.warnings(meta.model, asked)
            return Trace(annotate(there), self.reach, warnings, request)
        if request is None:
            raise InputError(
                f"at {', '.join(f'{k} {v}' for k, v in sizes.items())} {meta.model} is another "
                "program than in these tables: trace it there"
            )
        graph, warnings, reach, cached = request.traced(full=False, use_cache=True)
        return Trace(annotate(graph), reach, warnings, request, cached=cached)

    def elsewhere(self, **sizes: int) -> "Trace":
        """The same model traced at other sizes, where it is another program; also of a trace that was
        read from a folder, where its model is known by name.

        Raises InputError where it is not, or where what is found there is another model.
        """
        if self._plain is not None:
            return self._plain.elsewhere(**sizes).stored(*self._storage)
        if self._request is not None:
            return self.at(**sizes)
        meta = self.graph.meta
        there = trace(
            meta.model,
            batch=sizes.get("batch", meta.batch),
            seq=sizes.get("seq", meta.seq),
            past=sizes.get("past", meta.past) or None,
            source=meta.source or None,
            phase=meta.phase,
            cache=bool(cached_outputs(self.graph)) and meta.phase == "prefill",
            dtype=meta.dtype,
            attn=meta.attn,
            logits=meta.logits,
            overrides={key: json.loads(value) for key, value in meta.overrides},
        )
        found = there.graph.meta
        if (found.parameters, found.model_class) != (meta.parameters, meta.model_class):
            raise InputError(
                f"{meta.model} is another model now than in these tables: trace it there"
            )
        return there

    def stored(self, weights: str | Path | None = None, kv_dtype: str | None = None) -> "Trace":
        """The same trace with parameters and cached state stored in formats of their own.

        ``weights`` is a name of the formats' reference, a dtype, a .toml file, a .gguf file or a
        checkpoint's .safetensors or index; ``kv_dtype`` a dtype or an encoding. What is resident,
        read and paged follows; FLOPs, what ops compute in and the trace's id do not. Raises
        InputError for what cannot be understood.

        >>> import cutedge
        >>> t = cutedge.trace("edge-10m", seq=64)
        >>> t.stored("q8_0").graph.meta.weights_other
        'positions vector in float32'
        """
        if weights is None and kv_dtype is None:
            return self
        from cutedge._storage import in_storage

        there = copy(self)
        there.__dict__.pop("_tables", None)
        there.graph = annotate(in_storage(self.graph, weights, kv_dtype))
        there._plain = self if self._plain is None else self._plain
        there._storage = weights or self._storage[0], kv_dtype or self._storage[1]
        return there

    def runnable(self) -> "Runnable":
        """The model itself, to be run. Raises InputError for a trace that was read from a file."""
        if self._request is None:
            raise InputError(
                f"{self.graph.meta.model} was read from tables, and they have no model to run: "
                "trace it with cutedge.trace"
            )
        return self._request.runnable()

    def partition(
        self,
        policy: "str | Path | Policy" = "offload-linear",
        *,
        machine: str | None = None,
        residency: Residency = "run",
        secrets: Sequence[str] | None = (),
        max_calls: int | None = None,
        time_limit: float = 60.0,
        weights: str | Path | None = None,
        kv_dtype: str | None = None,
        schedule: ScheduleKind | None = None,
        requests: int | None = None,
        granularity: Granularity = "op",
        objective: "Objective" = None,
        **parts: Any,
    ) -> "Partition":
        """Place every op on a device by a policy, and count what crosses.

        ``policy`` is a name of ``cutedge policies``, a .toml file or a ``Policy``, such as
        ``cutedge.placement`` gives. ``machine`` is
        ``HOME+ACCELERATOR@LINK``; in its place, ``home``, ``accel``, ``link`` (texts, or lists of
        them), and beside either ``memory``, ``wire_dtype``, ``pack`` and the options of arrays
        (``pipeline_depth``, ``int8_speedup``, ``sparsity``, ``sparsity_speedup``, ``chips``) are as
        on the command line. ``weights`` and ``kv_dtype`` are as for ``stored``. ``residency`` is
        ``run`` (a device keeps what it has) or ``call`` (an accelerator forgets). No accelerator
        that is not trusted may see the ``secrets``. With a ``schedule`` (``serial`` or ``overlap``)
        of so many ``requests``, what is saved has its table too (``Partition.schedule``).
        ``granularity`` is the smallest unit that goes to one device as a whole, in what is searched
        for: ``op``, ``tensor``, ``module``, ``layer``, or ``convex``: one call to each accelerator
        (``partition.granularity``). A policy that leaves nothing free must keep to it. An
        ``objective`` (``bytes``, ``seconds``, ``energy``, or weights such as
        ``seconds=1,energy=0.5``) is in place of that of a policy that searches.

        Raises InputError for what cannot be understood, CutedgeError where no placement is allowed.

        >>> import cutedge
        >>> t = cutedge.trace("edge-10m", seq=64)
        >>> t.partition("min-cut", machine="tee-tdx+h100-cc@pcie5-x16-cc").summary["optimal"]
        True
        >>> t.partition("min-cut", granularity="layer").summary["granularity_price"]
        0
        """
        from cutedge._partition import Partition, asked_of
        from cutedge._placing import scheduling_of

        traced = self.stored(weights, kv_dtype)
        chosen = asked_of(
            traced.graph,
            [policy],
            machine_of(machine, **parts),
            residency,
            secrets or (),
            max_calls,
            time_limit,
            scheduling_of(schedule, requests),
            granularity,
            objective,
        )
        return Partition.placed(traced, chosen, next(iter(chosen.policies)))

    def plan(
        self,
        policy: "str | Path | Policy" = "fastest",
        *,
        mix: str | None = None,
        frontier: int | None = None,
        machine: str | None = None,
        residency: Residency = "run",
        secrets: Sequence[str] | None = (),
        max_calls: int | None = None,
        time_limit: float = 60.0,
        weights: str | Path | None = None,
        kv_dtype: str | None = None,
        schedule: ScheduleKind | None = None,
        requests: int | None = None,
        granularity: Granularity = "layer",
        objective: "Objective" = None,
        **parts: Any,
    ) -> "Plan":
        """The best placement for prefill and decode together, and what the memory is worth.

        With a ``mix`` (``prefill=1,decode=256``) weights and cache lie in one place for both phases,
        and what is least is the sum of so many runs of each; the phase that this trace is not is
        taken from beside its directory, or traced. With a ``frontier`` the same is found for less
        and less memory on the accelerator, in as many steps at most. All else is as for
        ``partition``; the ``time_limit`` is of each search.

        Raises InputError for what cannot be understood, CutedgeError where no placement is allowed.

        >>> import cutedge
        >>> t = cutedge.trace("edge-10m", phase="decode", past=64)
        >>> found = t.plan(mix="prefill=1,decode=32", machine="tee-tdx+rtx-4090@pcie4-x16")
        >>> found.proven, [phase.name for phase in found.phases]
        (True, ['prefill', 'decode'])
        """
        from cutedge._partition import asked_of
        from cutedge._plan import plan

        if schedule is not None or requests is not None:
            raise InputError("a plan counts runs one after another: leave out --schedule")
        on = machine_of(machine, **parts)

        def asked(one: "Trace") -> "Asked":
            return asked_of(
                one.graph,
                [policy],
                on,
                residency,
                secrets or (),
                max_calls,
                time_limit,
                granularity=granularity,
                objective=objective,
            )

        return plan(self, mix, frontier, (weights, kv_dtype), asked)

    def compare(
        self,
        policies: "Sequence[str | Path | Policy] | None" = None,
        placements: Sequence[str] | None = (),
        *,
        baseline: str | None = None,
        machine: str | None = None,
        residency: Residency = "run",
        secrets: Sequence[str] | None = (),
        max_calls: int | None = None,
        time_limit: float = 60.0,
        weights: str | Path | None = None,
        kv_dtype: str | None = None,
        schedule: ScheduleKind | None = None,
        requests: int | None = None,
        granularity: Granularity = "op",
        objective: "Objective" = None,
        **parts: Any,
    ) -> "Comparison":
        """Policies side by side; all that are shipped and keep no secret when left out.

        Beside them are ``placements``: files or words of executors, as ``cutedge.placement`` takes.
        Savings are against ``baseline``, else against ``offload-linear`` where it is among them,
        else against the first. All else is as for ``partition``.

        >>> import cutedge
        >>> t = cutedge.trace("edge-10m", seq=64)
        >>> found = t.compare(["offload-linear", "fuse-attention"])
        >>> found["fuse-attention"].summary["calls"], found.saved_bytes["fuse-attention"]
        (22, 524288)
        """
        from cutedge._compare import compare
        from cutedge._placing import scheduling_of

        return compare(
            self.stored(weights, kv_dtype),
            policies,
            placements or (),
            baseline,
            machine_of(machine, **parts),
            residency,
            secrets or (),
            max_calls,
            time_limit,
            scheduling_of(schedule, requests),
            granularity,
            objective,
        )

    def crossovers(
        self,
        variable: str,
        sizes: str,
        policies: "Sequence[str | Path | Policy] | None" = None,
        *,
        machine: str | None = None,
        residency: Residency = "run",
        secrets: Sequence[str] | None = (),
        max_calls: int | None = None,
        time_limit: float = 60.0,
        weights: str | Path | None = None,
        kv_dtype: str | None = None,
        schedule: ScheduleKind | None = None,
        requests: int | None = None,
        granularity: Granularity = "op",
        objective: "Objective" = None,
        **parts: Any,
    ) -> "tuple[str, list[Point], list[Crossover]]":
        """(unit, the best policy at sizes of a range, where that changes).

        The unit is ``seconds`` of the run (by its ``schedule``) where they are known, else
        ``bytes`` of payload. Each policy is placed anew at each size of a ``variable`` of the
        trace's formulas. All else is as for ``compare``.

        >>> import cutedge
        >>> t = cutedge.trace("edge-10m", seq=64)
        >>> unit, points, changes = t.crossovers("seq", "64..256", ["layers", "min-cut"])
        >>> unit, points[0].best
        ('bytes', 'min-cut')
        """
        from cutedge._compare import crossovers
        from cutedge._placing import scheduling_of

        return crossovers(
            self.stored(weights, kv_dtype),
            (variable, sizes),
            policies,
            machine_of(machine, **parts),
            residency,
            secrets or (),
            max_calls,
            time_limit,
            scheduling_of(schedule, requests),
            granularity,
            objective,
        )

    def costs(
        self,
        *devices: str,
        products_dtype: str | None = None,
        strict: bool = False,
        weights: str | Path | None = None,
        kv_dtype: str | None = None,
        **arrays: Any,
    ) -> "list[Cost]":
        """What the trace takes on each of the devices; on an rtx-4090 when left out.

        Matrix products are computed in ``products_dtype``, where the device has it; ``weights`` and
        ``kv_dtype`` are as for ``stored``, ``engine`` and ``execution`` as for ``partition``,
        ``arrays`` the options of arrays. Raises CutedgeError with ``strict`` where an op has no
        cost.

        >>> import cutedge
        >>> (cost,) = cutedge.trace("edge-10m", seq=64).costs("rtx-4090")
        >>> cost.summary["flops"], cost.summary["parameter_bytes"]
        (434855936, 39788544)
        >>> (cost,) = cutedge.trace("edge-10m", seq=64).costs("rtx-4090", weights="q8_0")
        >>> cost.summary["flops"], cost.summary["parameter_bytes"]
        (434855936, 10995968)
        """
        from cutedge._cost import costs

        traced = self.stored(weights, kv_dtype)
        return costs(traced, devices, products_dtype, strict=strict, **arrays)

    def cost(self, *devices: str, **options: Any) -> "pa.Table":
        """What each op takes on devices, a row for each op and device. Options: ``costs``.

        >>> import cutedge
        >>> cutedge.trace("edge-10m", seq=64).cost("rtx-4090").num_rows
        152
        """
        from cutedge._cost import cost_table

        return cost_table(self.costs(*devices, **options))

    def query(self, sql: str) -> "pa.Table":
        """What DuckDB answers over ``ops``, ``tensors`` and ``edges``.

        Raises InputError for SQL that DuckDB refuses.

        >>> import cutedge
        >>> t = cutedge.trace("edge-10m", seq=64)
        >>> t.query("SELECT count(*) AS linears FROM ops WHERE kind = 'linear'").to_pylist()
        [{'linears': 25}]
        """
        from cutedge._sql import ask

        return ask(sql, self._tables[0])

    def report(
        self,
        page: str | Path,
        policies: "Sequence[str | Path | Policy] | None" = None,
        **options: Any,
    ) -> Path:
        """Write a page that shows policies, readable offline; where it is. Options: ``compare``."""
        return self.compare(policies, **options).report(page).page

    def export(
        self,
        kind: "GraphKind | Literal['scalesim', 'zigzag', 'stream']",
        file: str | Path,
        **options: Any,
    ) -> Path:
        """Write the graph as ``graphml``, ``dot`` or for ``model-explorer``; where it is.

        For ``scalesim`` (a folder; ``options`` are the device, the array and its buffers) and for
        ``zigzag`` its matrix products are written, for ``stream`` what lies between them too.

        >>> import cutedge, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cutedge.trace("edge-10m", seq=64).export("dot", f"{folder}/edge.dot").name
        'edge.dot'
        """
        from cutedge._export import export_graph, export_scalesim, export_stream, export_zigzag

        if kind == "scalesim":
            export_scalesim(self.graph, Path(file), **options)
        elif options:
            raise InputError(f"{', '.join(options)}: options of scalesim alone, not of {kind}")
        elif kind == "zigzag" or kind == "stream":  # mypy narrows no tuple
            write = export_zigzag if kind == "zigzag" else export_stream
            write(self.graph, Path(file))
        else:
            export_graph(kind, self.graph, None, Path(file))
        return Path(file)

    def save(self, folder: str | Path) -> Path:
        """Write the tables as Parquet into a folder; where they are.

        What was made there from another trace is removed, and ``warnings`` says so.
        """
        if self._plain is not None:
            return self._plain.save(folder)
        from partition.tables import remove_stale
        from tracer.interrupts import uninterrupted
        from tracer.serde import write_reach, write_trace

        if Path(folder) == self.folder:  # it was read from there
            return self.folder
        with uninterrupted():
            trace_id = write_trace(self.graph, Path(folder))
            write_reach(Path(folder), trace_id, self.reach)
            removed = remove_stale(Path(folder), trace_id)
        if removed:
            said = f"removed what was made from the trace before: {', '.join(removed)}"
            self.warnings = (*self.warnings, said)
        return Path(folder)
