"""A user's own module: a function in a Python file that returns (module, example inputs)."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import SequenceKey, tree_flatten_with_path, tree_unflatten

from tracer.capture.errors import first_line
from tracer.capture.inputs import MANY_TOKENS, Axis, Input, Reading
from tracer.capture.memory import remade
from tracer.errors import InputError, suggest

DEFAULTS = {"batch": 1, "seq": MANY_TOKENS, "past": 0, "source": MANY_TOKENS}
"""The sizes that a function may ask for, by the names of its parameters."""

STEPS = {"batch": 2, "seq": 3, "past": 5, "source": 7}
"""How much each size is raised, to see which axes of the inputs follow it."""


def user_model(
    file: str, function: str, sizes: Mapping[str, int | None], arguments: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> tuple[torch.nn.Module, Reading]:  # fmt: skip
    """The module that ``function`` in ``file`` returns, without data, and what it reads.

    What floats is of ``dtype``, where one is given.

    The example inputs are a tensor, a tuple of arguments, or a dict of arguments by name. A
    function may take sizes (``batch``, ``seq``, ``past``, ``source``): they stay symbols where an
    axis of an input is such a size, which a second call with larger sizes shows. Where anything
    else of inputs or parameters changes with them, none is a symbol. The function may take other
    ``arguments`` by name. Raises InputError for what is no such function.
    """
    name = f"{file}:{function}"
    build = _load(file, function)
    accepted = inspect.signature(build).parameters
    for key in arguments:
        if key not in accepted or key in DEFAULTS:
            known = [parameter for parameter in accepted if parameter not in DEFAULTS]
            raise InputError(
                f"--set {key}: {name} has no such parameter to set." + suggest(key, known)
            )
    asked = {
        size: accepted[size].default if type(accepted[size].default) is int else DEFAULTS[size]
        for size in DEFAULTS
        if size in accepted
    }
    asked.update((k, v) for k, v in sizes.items() if v is not None and k in asked)
    module, example = _built(build, name, {**arguments, **asked})
    leaves, spec = tree_flatten_with_path(_arguments(example))
    values = [leaf for _, leaf in leaves]
    axes: list[tuple[Axis, ...]] = [tuple(getattr(value, "shape", ())) for value in values]
    notes: tuple[str, ...] = ()
    if asked:
        raised = {size: number + STEPS[size] for size, number in asked.items()}
        other, later = _built(build, name, {**arguments, **raised})
        others, later_spec = tree_flatten_with_path(_arguments(later))
        followed = [
            _axes(value, more, asked, raised)
            for value, (_, more) in zip(values, others, strict=False)
        ]
        if spec == later_spec and None not in followed and _shapes(module) == _shapes(other):
            axes = [found for found in followed if found is not None]
        else:
            notes = (
                f"no size is a symbol: what {name} returns follows its sizes in other ways than "
                "an axis of an input that is such a size",
            )
    names = _names([path for path, _ in leaves], module)
    read = {
        i: Input(names[i], axes[i], _dtype(value, dtype))
        for i, value in enumerate(values)
        if isinstance(value, torch.Tensor)
    }

    def run(module: torch.nn.Module, given: Mapping[str, Any], **options: Any) -> Any:
        filled = [given[read[i].name] if i in read else value for i, value in enumerate(values)]
        args, kwargs = tree_unflatten(filled, spec)
        where = next((tensor.device for tensor in given.values()), "meta")
        with torch.device(where):  # what the code makes is where all else is
            return module(*args, **kwargs)

    fixed = {size: f"{name} takes no {size}" for size in DEFAULTS if size not in accepted}
    module = remade(module, "meta", dtype).eval()
    return module, Reading(tuple(read.values()), run, asked, fixed, notes)


def user_module(
    file: str, function: str, sizes: Mapping[str, int], arguments: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> torch.nn.Module:  # fmt: skip
    """The module as ``function`` makes it, with its data, at ``sizes`` that it may have."""
    build = _load(file, function)
    accepted = inspect.signature(build).parameters
    asked = {size: number for size, number in sizes.items() if size in accepted}
    module, _ = _built(build, f"{file}:{function}", {**arguments, **asked})
    return remade(module, "cpu", dtype).eval()


def _load(file: str, function: str) -> Callable[..., Any]:
    path = Path(file).resolve()
    private = f"_{path.stem}_of_the_user"  # a user's json.py is not Python's
    found = importlib.util.spec_from_file_location(private, path)
    if not path.is_file() or found is None or found.loader is None:
        raise InputError(f"{file} is no Python file that exists")
    loaded = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(path.parent))  # for what stands beside it
    sys.modules[private] = loaded
    try:
        found.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:  # it is the user's code
        raise InputError(f"{file} cannot be imported: {first_line(error)}") from error
    build: Any = getattr(loaded, function, None)
    if not callable(build):
        own = [name for name, value in vars(loaded).items() if inspect.isfunction(value)]
        raise InputError(f"{file} has no function {function}." + suggest(function, own))
    return build  # type: ignore[no-any-return]


def _built(
    build: Callable[..., Any], name: str, arguments: Mapping[str, Any]
) -> tuple[torch.nn.Module, Any]:
    try:
        made = build(**arguments)
    except (Exception, SystemExit) as error:  # it is the user's code
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise InputError(
            f"{name} fails at {given or 'no arguments'}: {first_line(error)}"
        ) from error
    match made:
        case (torch.nn.Module() as module, (torch.Tensor() | tuple() | list() | dict()) as example):
            return module, example
    raise InputError(
        f"{name} returns {type(made).__name__}: it must return (module, example inputs), the "
        "inputs as a tensor, a tuple of arguments or a dict of arguments by name"
    )


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as (arguments by position, arguments by name)."""
    if isinstance(example, dict):
        return (), example
    return ((example,) if isinstance(example, torch.Tensor) else tuple(example)), {}


def _axes(
    value: Any, later: Any, asked: Mapping[str, int], raised: Mapping[str, int]
) -> tuple[Axis, ...] | None:
    """The sizes that the axes of an example input follow, else their numbers.

    None where something of it changes with the sizes that is no axis of such a size.
    """
    if not isinstance(value, torch.Tensor) or not isinstance(later, torch.Tensor):
        return () if type(value) is type(later) and (value is later or value == later) else None
    if value.dim() != later.dim():
        return None
    found: list[Axis] = []
    for pair in zip(value.shape, later.shape, strict=True):
        size = next((size for size in asked if pair == (asked[size], raised[size])), None)
        if size is None and pair[0] != pair[1]:
            return None
        found.append(pair[0] if size is None else size)
    return tuple(found)


def _shapes(module: torch.nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in module.state_dict().items()]


def _dtype(value: torch.Tensor, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and value.is_floating_point() else value.dtype


def _names(paths: list[tuple[Any, ...]], module: torch.nn.Module) -> list[str]:
    """What the module calls its inputs: ``hidden``, ``masks.0`` for one in a list; no two alike."""
    positional = [
        parameter.name
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    names: list[str] = []
    for _, first, *inside in paths:
        steps = [key.idx if isinstance(key, SequenceKey) else key.key for key in (first, *inside)]
        if isinstance(first, SequenceKey) and first.idx < len(positional):
            steps[0] = positional[first.idx]
        name = ".".join(map(str, steps))
        names.append(name if name not in names else f"{name}#{len(names)}")
    return names
