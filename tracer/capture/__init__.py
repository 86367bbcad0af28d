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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import torch
from torch.export import Dim, ExportedProgram

from tracer.capture.blocks import FEW, find_stacks, running_alike, shortened, unlike, without_hope
from tracer.capture.compat import PreTrainedModel, without_detours
from tracer.capture.configs import unused
from tracer.capture.errors import Untraceable, failure, first_line, located
from tracer.capture.exported import ExportedTask
from tracer.capture.exporting import remembering, without_debugging
from tracer.capture.forms import architectures
from tracer.capture.guards import assumptions, conditions, fitting, same_work, symbols
from tracer.capture.inputs import IMAGES, SOUNDS, cache_argument, phases, reading
from tracer.capture.kv_cache import WRAPPED
from tracer.capture.lowering import lower, spelled_out
from tracer.capture.memory import parameter_count
from tracer.capture.models import build, build_with_memory, settle
from tracer.capture.packages import own_diffusers, own_packaged
from tracer.capture.phases import Task, Way
from tracer.capture.readings import MANY_TOKENS
from tracer.capture.remedies import led_on
from tracer.capture.runnable import Runnable
from tracer.capture.runs import untouched
from tracer.capture.user import Own, own_function, own_module, user_model, user_module
from tracer.captured import Capture, Checked
from tracer.errors import CutedgeError, InputError
from tracer.graph import TraceMeta
from tracer.instantiate import Stack, instantiate
from tracer.program import Program, build_graph, invocations, op_count, tensor_ids, written_state
from tracer.pt2_files import Exported
from tracer.reach import Reach
from tracer.stages import has_limit, stage
from tracer.summary import attention_kind, has_unknown_masks

__all__ = [
    "Capture",
    "as_it_runs",
    "capture",
    "capture_exported",
    "capture_function",
    "capture_own",
    "check",
    "own_diffusers",
    "own_function",
    "own_module",
    "own_packaged",
    "quiet",
    "runnable",
    "runnable_function",
    "runnable_own",
]


def capture(
    config: Mapping[str, Any],
    *,
    model: str,
    phase: str = "prefill",
    batch: int = 1,
    seq: int | None = None,
    past: int | None = None,
    source: int | None = None,
    cache: bool = False,
    dtype: str = "float32",
    attn: str = "eager",
    logits: str = "last",
    overrides: Mapping[str, Any] | None = None,
    symbolic: bool = True,
    full: bool = False,
) -> Capture:
    """The op graph of the model that a config describes, over ``batch`` x ``seq`` new tokens.

    ``past`` tokens are cached before them; ``phase="decode"`` is one new token over a cache, and
    ``cache`` makes a prefill without cached tokens fill one. An encoder-decoder model has a phase
    ``encoder``, over ``seq`` tokens; its other phases are the decoder's, which reads ``source``
    encoded ones. A size that is None gets the default of what the model reads.

    ``symbolic=False`` traces at the concrete sizes alone. ``full=True`` traces every layer; without
    it, equal layers are traced once and repeated. Raises InputError for a config that makes no
    model, CutedgeError for a model that cannot be exported; where an option is known to help, the
    message says it.
    """
    overrides = overrides or {}
    sizes = {"seq": seq, "past": past, "source": source}

    def traced(
        *, phase: str, attn: str, overrides: Mapping[str, Any], symbolic: bool, **sizes: int | None
    ) -> Capture:
        sizes["batch"] = batch
        task = _task(config, model, phase, sizes, cache, dtype, attn, logits, overrides)
        notes = _notes(config, overrides, task, dtype, attn)
        return _captured(task, dtype, attn, overrides, notes, symbolic=symbolic, full=full)

    asked: dict[str, Any] = {"phase": phase, "attn": attn, "overrides": overrides, **sizes}
    with quiet(), as_it_runs():
        try:
            return traced(**asked, symbolic=symbolic)
        except CutedgeError as error:
            found, cause = led_on(error, config, asked, traced), error.__cause__
    raise found from cause


@stage("building the model")
def _task(
    config: Mapping[str, Any],
    model: str,
    phase: str,
    sizes: Mapping[str, int | None],
    cache: bool,
    dtype: str,
    attn: str,
    logits: str,
    overrides: Mapping[str, Any],
) -> Task:
    images, sounds, fields = _sensed(overrides)
    module = build(config, fields, model=model, dtype=dtype, attn=attn)
    read = reading(module, model, phase, images, sounds)
    return Task(module, model, read, phase=phase, logits=logits, cache=cache, sizes=sizes)


def _sensed(
    overrides: Mapping[str, Any],
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """(the images of a sequence and their sizes, its sounds, the overrides of the config itself)"""
    fields = dict(overrides)
    return tuple(fields.pop(IMAGES, ())), tuple(fields.pop(SOUNDS, ())), fields


def _notes(
    config: Mapping[str, Any], overrides: Mapping[str, Any], task: Task, dtype: str, attn: str
) -> tuple[str, ...]:
    """What a user must know of a config, whatever is traced of it."""
    merged, notes = settle(config, _sensed(overrides)[2], model=task.model)
    named = architectures(merged)
    if not named:
        notes = (f"its config names no architecture: {task.name} is what is traced", *notes)
    elif named[0] != task.name:
        notes = (f"{task.name} is what is traced: transformers has no {named[0]}", *notes)
    return (*unused(merged, dtype=dtype, attn=attn), *notes)


def capture_function(file: str, function: str, **options: Any) -> Capture:
    """The op graph of the module that ``function`` in a Python ``file`` returns: ``capture_own``.

    Raises InputError for what is no such function.
    """
    return capture_own(own_function(file, function), **options)


def capture_own(
    own: Own,
    *,
    dtype: str | None = None,
    attn: str = "eager",
    overrides: Mapping[str, Any] | None = None,
    symbolic: bool = True,
    full: bool = False,
    **sizes: int | None,
) -> Capture:
    """The op graph of the module that a function of the user's returns, as ``capture``.

    The function returns (module, example inputs); of ``sizes`` and ``overrides`` it gets those
    that it has parameters for (see ``user_model``).
    """
    overrides = overrides or {}
    with quiet(), as_it_runs():
        task, floating = _own_task(own, dtype, attn, sizes, overrides)
        return _captured(task, floating, attn, overrides, (), symbolic=symbolic, full=full)


def capture_exported(read: Exported, **sizes: int | None) -> Capture:
    """The op graph of a program that torch exported before, as ``capture``.

    Raises CutedgeError for one that this torch cannot read, InputError for sizes that it was not
    exported for.
    """
    with quiet():
        with stage("reading the program"):
            task = ExportedTask(read, sizes)
        dtype = _floating(task.module)
        made = _captured(task, dtype, "eager", {}, (), symbolic=True, full=True)
    meta = made.graph.meta
    if meta.seq > 1 and any(
        t.label == "logits" and t.shape[-2:-1] == (1,) for t in made.graph.tensors
    ):
        meta = replace(meta, logits="last")
    return replace(made, graph=made.graph.with_meta(meta))


def _floating(module: torch.nn.Module) -> str:
    """The dtype of a module's first parameter that floats."""
    floating = (p.dtype for p in module.parameters() if p.is_floating_point())
    return str(next(floating, torch.get_default_dtype())).removeprefix("torch.")


@stage("building the model")
def _own_task(
    own: Own,
    dtype: str | None,
    attn: str,
    sizes: Mapping[str, int | None],
    overrides: Mapping[str, Any],
) -> tuple[Task, str]:
    """(the task of a user's own module, the dtype of its parameters)"""
    chosen = None if dtype is None else getattr(torch, dtype)
    module, read = user_model(own, sizes, overrides, chosen)
    _set_attention(module, attn, own.name)
    task = Task(module, own.name, read, phase="prefill", sizes=sizes, logits="all", cache=False)
    return task, _floating(module)


def _set_attention(module: torch.nn.Module, attn: str, name: str) -> None:
    """Have the models of transformers in a user's module compute their attention so."""
    done: set[torch.nn.Module] = set()
    for part in module.modules():
        if isinstance(part, PreTrainedModel) and part not in done:
            done.update(part.modules())
            try:
                part.set_attn_implementation(attn)
            except (ValueError, ImportError) as error:
                raise InputError(
                    f"{name}: --attn {attn} is not for {type(part).__name__}: {first_line(error)}"
                ) from error


def runnable(
    config: Mapping[str, Any],
    *,
    model: str,
    phase: str = "prefill",
    batch: int = 1,
    seq: int | None = None,
    past: int | None = None,
    source: int | None = None,
    cache: bool = False,
    dtype: str = "float32",
    attn: str = "eager",
    logits: str = "last",
    overrides: Mapping[str, Any] | None = None,
) -> Runnable:
    """The same op graph, with all that it takes to run it but the parameters' numbers.

    Raises as ``capture``, and CutedgeError for a model that cannot be run op by op.
    """
    overrides = overrides or {}
    sizes = {"batch": batch, "seq": seq, "past": past, "source": source}
    with quiet(), as_it_runs():
        task = _task(config, model, phase, sizes, cache, dtype, attn, logits, overrides)
        notes = _notes(config, overrides, task, dtype, attn)
        fields = _sensed(overrides)[2]
        twin = build_with_memory(config, fields, model=model, dtype=dtype, attn=attn)
        return _runnable(task, dtype, attn, overrides, notes, twin)


def runnable_function(file: str, function: str, **options: Any) -> Runnable:
    """As ``runnable``, of the module that ``function`` in a Python ``file`` returns."""
    return runnable_own(own_function(file, function), **options)


def runnable_own(
    own: Own,
    *,
    dtype: str | None = None,
    attn: str = "eager",
    overrides: Mapping[str, Any] | None = None,
    **sizes: int | None,
) -> Runnable:
    """As ``runnable``, of the module that a function of the user's returns."""
    overrides = overrides or {}
    with quiet(), as_it_runs():
        task, floating = _own_task(own, dtype, attn, sizes, overrides)
        chosen = None if dtype is None else getattr(torch, dtype)
        twin = user_module(own, task.sizes, overrides, chosen)
        _set_attention(twin, attn, task.model)
        return _runnable(task, floating, attn, overrides, (), twin)


def _runnable(
    task: Task,
    dtype: str,
    attn: str,
    overrides: Mapping[str, Any],
    notes: Iterable[str],
    twin: torch.nn.Module,
) -> Runnable:
    if task.run_sizes != task.sizes:
        raise InputError(f"{task.model} has {task.positions} positions: it cannot run on more")
    captured = _captured(
        task, dtype, attn, overrides, notes, symbolic=True, full=True, runnable=True
    )
    return Runnable(captured, task, twin)


def check(
    config: Mapping[str, Any],
    *,
    model: str,
    seq: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[str, list[Checked]]:
    """(class of the model, how far each of its phases can be traced).

    ``seq`` tokens are new, or cached in decode; the model's default where it is None, or the size
    is not the user's to choose. Raises
    InputError for a config that makes no model, CutedgeError for a model that reads something else
    than tokens or images.
    """
    overrides, found = overrides or {}, []
    with quiet(), as_it_runs():
        module = build(config, overrides, model=model, dtype="float32", attn="eager")
        for phase in phases(module):
            tried: list[tuple[str, str | None]] = []
            captured, refused = None, None
            read = reading(module, model, phase)
            asked = {"past": seq or MANY_TOKENS} if phase == "decode" else {"seq": seq}
            sizes = {name: size for name, size in asked.items() if name not in read.fixed}
            try:
                task = Task(
                    module, model, read, phase=phase, sizes=sizes, logits="last", cache=False
                )
                captured = _captured(
                    task, "float32", "eager", overrides, (), symbolic=True, full=False, tried=tried
                )
            except CutedgeError as error:
                refused = str(error)
            found.append(Checked(phase, tuple(tried), captured, refused))
    return type(module).__name__, found


def _captured(
    task: Task,
    dtype: str,
    attn: str,
    overrides: Mapping[str, Any],
    notes: Iterable[str],
    *,
    symbolic: bool,
    full: bool,
    tried: list[tuple[str, str | None]] | None = None,
    runnable: bool = False,
) -> Capture:
    """The op graph of a task, by the first way that carries it; ``tried`` is told of each."""
    tried = [] if tried is None else tried
    notes = [*notes, *task.notes()]
    ways = [way for way in task.ways() if symbolic or not way.symbolic]
    failures: list[Untraceable] = []
    stacks = () if task.given is not None else find_stacks(task)
    hopeless: Sequence[Untraceable | None] = [None] * len(ways)
    if task.given is None and ways[0].symbolic:
        with stage("looking at the sizes"):
            hopeless = without_hope(task, stacks, ways)
    repeated = () if full else stacks
    by_steps = next((why for why in hopeless if why is not None and why.steps), None)
    if by_steps is not None:
        _count_ops(task, repeated, by_steps, insists=full or has_limit())
    for way, why in zip(ways, hopeless, strict=True):
        try:
            if why is not None:
                raise why
            program = _program(task, way, repeated, runnable)
            if program.unsure:
                _confirm(program, _program(task, ways[-1], repeated), task.run_sizes)
            tried.append((str(way), None))
            break
        except Untraceable as error:
            tried.append((str(way), str(error)))
            failures.append(error)
    else:
        raise task.refusal(failures[-1], overrides) from failures[-1]
    if program.conditions:
        notes.append(f"the formulas hold where {' and '.join(program.conditions)}")
    if changed := written_state(program):
        names = ", ".join(sorted(program.values[index].name for index in changed))
        notes.append(
            f"a run changes {names}: what it holds then is not sent to other devices that read it"
        )
    if way.note and (way.symbolic or not task.ways()[0].symbolic):
        notes.append(way.note)
    if not way.symbolic and failures:
        reason = failures[0]
        notes.append(
            f"{task.model} cannot be traced for every batch and seq ({reason}): {way.note}"
        )
    meta = TraceMeta(
        model=task.model,
        phase=task.phase,
        **task.sizes,  # type: ignore[arg-type]  # sizes alone
        dtype=dtype,
        attn=attn,
        logits=task.logits,
        symbolic=way.symbolic,
        parameters=parameter_count(task.module),
        overrides=tuple((k, json.dumps(v)) for k, v in sorted(overrides.items())),
        versions=tuple((name, version(name)) for name in ("cutedge", "torch", "transformers")),
        repeated_layers=program.repeated,
        model_class=task.name,
    )
    with stage("building the graph"):
        graph = build_graph(program, meta)
    if (kind := attention_kind(graph)) != attn:
        graph = graph.with_meta(replace(meta, attn=kind))
        if kind != "no" and task.given is None:
            notes.append(f"{task.name} has {kind} attention alone, whatever --attn says")
    if has_unknown_masks(graph):
        unknown = program.masks_unknown or ("its scores come to its values by no softmax alone",)
        notes.append(f"causal FLOPs are not known: {'; '.join(unknown)}")
    reach = _reach(task, way, program, failures, notes)
    warned = reach.warnings(task.model, meta.variables)
    captured = Capture(graph, warned, reach, None if full else program.unrepeated_reason)
    captured = replace(captured, draws=sum(node.draws for node in program.nodes))
    if not runnable:
        return captured
    ids = tensor_ids(program, graph)
    returned = tuple(ids[value] for value in program.returned)
    return replace(
        captured, invocations=invocations(program, graph), returned=returned, data=program.data
    )


def _reach(
    task: Task, way: Way, program: Program, failures: Iterable[Untraceable], notes: Iterable[str]
) -> Reach:
    repeats = all(failure.repeats for failure in failures)
    return Reach(
        bounds=task.alike(way if program.assumed is not None and repeats else None),
        holding=program.assumed or (),
        failing=tuple(failure.condition for failure in failures if failure.condition),
        positions=task.positions,
        source_positions=task.source_positions,
        notes=tuple(notes),
        defaults=tuple(task.defaults.items()),
    )


MOST_OPS = 300_000
"""Code that does something for each token is traced up to so many ops unless a user insists."""


@stage("counting its ops")
def _count_ops(task: Task, stacks: Sequence[Stack], why: Untraceable, *, insists: bool) -> None:
    """Say how many ops a trace has of code that adds as many for each of a size.

    They are counted in two traces of few, where a run of a few of its blocks lets expect many.
    Raises InputError where they are more than ``MOST_OPS``, unless a user ``insists``.
    """
    assert why.steps is not None
    name, seen = why.steps
    if seen * max((s.depth / len(s.traced) for s in stacks), default=1) < MOST_OPS:
        return
    ways = [Way({}, task.at(**{name: size}).sizes) for size in FEW[-2:]]
    try:
        few, more = (op_count(_program(task.at(**way.examples), way, stacks)) for way in ways)
    except Untraceable:  # at so few, or at all, which the trace itself says
        return
    each, least = more - few, FEW[-2]
    count = few + each * (task.sizes[name] - least)
    task.much = f" {count:,} ops, {each:,} for each of {name}"
    if count > MOST_OPS and not insists:
        most = max(1, least + (MOST_OPS - few) // each)
        step = name == "seq" and task.phase == "prefill" and cache_argument(task.reading.options)
        decode = ", one token over a cache (--phase decode)" if step else ""
        raise InputError(
            f"{task.model}: its code runs {each:,} ops for each token{why.where}: {count:,} ops at "
            f"{name} {task.sizes[name]:,}. Trace at most {most:,} tokens (--{name} {most})"
            f"{decode}, or other code in its place as file.py:function; with --time-limit SECONDS "
            "it is tried all the same"
        )


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
    """Trace what a model does when it runs.

    Without what transformers does for an export alone (``compat.without_detours``). An einsum is
    what torch makes of it, since no shape tells what it multiplies.
    """
    with without_detours(), patch.object(torch, "einsum", spelled_out):
        yield


def _program(task: Task, way: Way, stacks: Sequence[Stack] = (), runnable: bool = False) -> Program:
    """The program of a task, exported in one way; of ``stacks`` what runs alike is repeated."""
    if task.given is not None:
        return _lowered(task.given, task, way, runnable=runnable)
    stacks = running_alike(task, stacks, way)
    exported = None
    if not stacks:
        why = unlike(task.module)
    else:
        try:
            with shortened(task.module, stacks) as short:
                exported = _export(task, way, short.layers, short.rename)
            program = _lowered(exported, task, way, short.layers, short.rename)
        except Untraceable as error:
            if error.by_torch or exported is not None:
                raise  # the whole model is no better at these sizes
            # code of the model that stumbled, maybe over a stack shorter than it counts on
            why = f"a few of its layers cannot be traced alone: {error}"
        else:
            if (repeated := _instantiated(program, stacks)) is not None:
                return repeated
            why = "its layers run alike but do not export alike"
    program = _lowered(_export(task, way), task, way, runnable=runnable)
    program.unrepeated_reason = why
    if exported is not None:  # why no block could be repeated may be a matter of the sizes
        program.assumed = None
    return program


@stage("checking the formulas")
def _confirm(program: Program, concrete: Program, sizes: Mapping[str, int]) -> None:
    """Raise Untraceable unless a program does at ``sizes`` what one of these sizes alone does."""
    if not same_work(program, concrete, sizes):
        raise Untraceable(f"its code takes another way where {program.unsure}")


@stage("lowering")
def _lowered(
    exported: ExportedProgram,
    task: Task,
    way: Way,
    layers: Collection[int] | None = None,
    rename: Callable[[str], str] = lambda path: path,
    runnable: bool = False,
) -> Program:
    """The program of an export; of one with the state of some ``layers`` and parts renamed."""
    inputs = task.axes(layers)
    named = symbols(exported, inputs)
    found, unsure = conditions(exported, named, way.bounds, task.run_sizes)
    program = lower(
        exported,
        task.module,
        task.run_sizes,
        inputs=inputs,
        states=task.states,
        rename=lru_cache(None)(
            lambda path: rename(f"{path}.".removeprefix(f"{WRAPPED}.").removesuffix("."))
        ),
        returned=_states_returned(exported) if task.given is None else task.returned,
        conditions=found,
        samples=fitting(exported, named, task.samples(way)),
        runnable=runnable,
        fixed=task.fixed,
    )
    program.unsure = unsure
    if program.assumed is not None:
        program.assumed = None if unsure else assumptions(exported, named)
    return program


def _states_returned(exported: ExportedProgram) -> int:
    """How many of the results of a ``StatelessModel`` are state: it returns (results, states)."""
    count: int = exported.call_spec.out_spec.child(1).num_leaves
    return count


@stage("repeating layers")
def _instantiated(program: Program, stacks: Iterable[Stack]) -> Program | None:
    for stack in stacks:
        repeated = instantiate(program, stack)
        if repeated is None:
            return None
        program = repeated
    return program


def _export(
    task: Task,
    way: Way,
    layers: Collection[int] | None = None,
    rename: Callable[[str], str] = lambda path: path,
) -> ExportedProgram:
    # Dim.AUTO lets torch note conditions on sizes; ``guards`` judges them.
    shapes = {
        name: {i: Dim.AUTO for i, axis in enumerate(axes) if axis in way.bounds}
        for name, axes in task.axes(layers).items()
    }
    try:
        with (
            stage(f"exporting{task.much}"),
            untouched(task.module),
            remembering(),
            without_debugging(),
            located(task.module, rename),
        ):
            return torch.export.export(
                task.exported,
                (),
                task.inputs(way, layers),
                dynamic_shapes=task.sorted(shapes),
                strict=False,
            )
    except Exception as error:  # torch and the model's own code may raise anything here
        raise failure(error, task.module, rename) from error
