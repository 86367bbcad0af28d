"""config -> model on the meta device -> torch.export -> op graph. Only this package needs torch.

No weights exist at any moment: parameters are shapes on torch's meta device. ``models`` builds the
module, ``phases`` says what it is run on, ``blocks`` which of its layers are alike, ``lowering``
cleans what torch exports.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import torch
from torch.export import Dim, ExportedProgram
from transformers import masking_utils

from tracer.capture.blocks import find_stacks, shortened
from tracer.capture.errors import Untraceable
from tracer.capture.lowering import lower
from tracer.capture.models import build, parameter_count
from tracer.capture.phases import Prefill, Way
from tracer.graph import OpGraph, TraceMeta
from tracer.program import Program, build_graph
from tracer.stamp import Stack, stamp


@dataclass(frozen=True, slots=True)
class Capture:
    """What came out of a capture."""

    graph: OpGraph
    warnings: tuple[str, ...]
    """One line for each thing a user must know before trusting the figures."""


def capture(
    config: Mapping[str, Any],
    *,
    model: str,
    batch: int = 1,
    seq: int = 1024,
    dtype: str = "float32",
    attn: str = "eager",
    logits: str = "last",
    overrides: Mapping[str, Any] | None = None,
    symbolic: bool = True,
    full: bool = False,
) -> Capture:
    """The op graph of the model that a config describes, prefilling ``batch`` x ``seq`` tokens.

    ``symbolic=False`` traces at the concrete sizes alone. ``full=True`` traces every layer; without
    it, equal layers are traced once and repeated. Raises InputError for a config that makes no
    model, CutedgeError for a model that cannot be exported.
    """
    with quiet(), as_it_runs():
        module = build(config, overrides or {}, model=model, dtype=dtype, attn=attn)
        task = Prefill(module, model, batch, seq, logits)
        notes = task.notes()
        ways = [way for way in task.ways() if symbolic or not way.symbolic]
        failures: list[Untraceable] = []
        for way in ways:
            try:
                program = _program(module, task, way, full)
                break
            except Untraceable as error:
                failures.append(error)
        else:
            raise task.refusal(failures[-1], overrides or {}) from failures[-1]
        if failures:
            reason = failures[0]
            notes.append(f"{model} cannot be traced for every batch and seq ({reason}): {way.note}")
        elif way.note:
            notes.append(way.note)
    meta = TraceMeta(
        model=model, phase="prefill", batch=batch, seq=seq, past=0, dtype=dtype, attn=attn,
        logits=task.logits, symbolic=way.symbolic, parameters=parameter_count(module),
        overrides=tuple((k, json.dumps(v)) for k, v in sorted((overrides or {}).items())),
        versions=tuple((name, version(name)) for name in ("cutedge", "torch", "transformers")),
        repeated_layers=program.repeated,
    )  # fmt: skip
    return Capture(build_graph(program, meta), tuple(notes))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No chatter of the libraries: what a user must know comes as a warning or an error of ours."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()  # torch prints the whole graph of a failed export
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def as_it_runs() -> Iterator[None]:
    """Trace what a model does when it runs, not what transformers does for an export's sake.

    While exporting, transformers makes a mask where a run needs none (is_causal does for sdpa), and
    looks for sequences packed in one row, which inputs without position ids never are.
    """
    with (
        patch.object(masking_utils, "is_torchdynamo_exporting", lambda: False),
        patch.object(masking_utils, "find_packed_sequence_indices", lambda position_ids: None),
    ):
        yield


def _program(module: torch.nn.Module, task: Prefill, way: Way, full: bool) -> Program:
    """The program of the model, exported in one way."""
    stacks = () if full else find_stacks(module, task.inputs(way))
    if stacks:
        try:
            with shortened(module, stacks) as short:
                exported = _export(module, task, way)
            program = lower(exported, module, task.run_sizes, short.rename)
        except Untraceable as error:
            if error.by_torch:
                raise
            # else code of the model that stumbled, maybe over a stack shorter than it counts on
        else:
            if not short.computed and (whole := _stamped(program, stacks)) is not None:
                return whole
    return lower(_export(module, task, way), module, task.run_sizes)


def _stamped(program: Program, stacks: Iterable[Stack]) -> Program | None:
    for stack in stacks:
        whole = stamp(program, stack)
        if whole is None:
            return None
        program = whole
    return program


def _export(module: torch.nn.Module, task: Prefill, way: Way) -> ExportedProgram:
    inputs = task.inputs(way)
    dims = {
        axis: Dim(name, min=way.bounds[name][0], max=way.bounds[name][1])
        for axis, name in enumerate(("batch", "seq"))
        if name in way.bounds
    }
    shapes = {name: dims if isinstance(v, torch.Tensor) else None for name, v in inputs.items()}
    try:
        return torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch and the model's own code may raise anything here
        raise Untraceable(error) from error
