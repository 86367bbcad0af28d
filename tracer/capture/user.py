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
from tracer.errors import InputError, suggest

DEFAULTS = {"batch": 1, "seq": MANY_TOKENS, "past": 0, "source": MANY_TOKENS}
"""The sizes that a function may ask for, by the names of its parameters."""

STEPS = {"batch": 2, "seq": 3, "past": 5, "source": 7}
"""How much each size is raised, to see which axes of the inputs follow it."""


def user_model(
    file: str, function: str, sizes: Mapping[str, int | None], arguments: Mapping[str, Any]
) -> tuple[torch.nn.Module, Reading]:
    """The module that ``function`` in ``file`` returns, without data, and what it reads.

    The example inputs are a tensor, a tuple of arguments, or a dict of arguments by name. A
    function may take sizes (``batch``, ``seq``, ``past``, ``source``): they stay symbols where an
    axis of an input is such a size, which a second call with other sizes shows. It may take other
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
    asked = {size: DEFAULTS[size] for size in DEFAULTS if size in accepted}
    asked.update((k, v) for k, v in sizes.items() if v is not None and k in asked)
    module, example = _built(build, name, {**arguments, **asked})
    leaves, spec = tree_flatten_with_path(_arguments(example))
    raised = {size: number + STEPS[size] for size, number in asked.items()}
    others = leaves
    if asked:
        _, other = _built(build, name, {**arguments, **raised})
        others, _ = tree_flatten_with_path(_arguments(other))
    parameters = list(inspect.signature(module.forward).parameters)
    read: dict[int, Input] = {}
    for i, ((path, leaf), (_, later)) in enumerate(zip(leaves, others, strict=True)):
        if isinstance(leaf, torch.Tensor):
            pairs = zip(leaf.shape, later.shape, strict=True)
            axes = tuple(_axis(pair, asked, raised) for pair in pairs)
            read[i] = Input(_name(path, parameters), axes, leaf.dtype)
    values = [leaf for _, leaf in leaves]
    module = module.to("meta").eval()

    def run(given: Mapping[str, Any], **options: Any) -> Any:
        filled = [given[read[i].name] if i in read else value for i, value in enumerate(values)]
        args, kwargs = tree_unflatten(filled, spec)
        return module(*args, **kwargs)

    fixed = {size: f"{name} takes no {size}" for size in DEFAULTS if size not in accepted}
    return module, Reading(tuple(read.values()), run, asked, fixed)


def _load(file: str, function: str) -> Callable[..., Any]:
    path = Path(file).resolve()
    found = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or found is None or found.loader is None:
        raise InputError(f"{file} is no Python file that exists")
    loaded = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(path.parent))  # for what stands beside it
    sys.modules[path.stem] = loaded
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
    except Exception as error:  # it is the user's code
        raise InputError(f"{name} fails: {first_line(error)}") from error
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


def _axis(pair: tuple[int, int], asked: Mapping[str, int], raised: Mapping[str, int]) -> Axis:
    """The size that an axis follows, else its number: torch notices where it is neither."""
    return next((size for size in asked if pair == (asked[size], raised[size])), pair[0])


def _name(path: tuple[Any, ...], parameters: list[str]) -> str:
    """What the module calls an input: ``hidden``, and ``masks.0`` for one in a list."""
    _, first, *inside = path
    steps = [step.idx if isinstance(step, SequenceKey) else step.key for step in (first, *inside)]
    if isinstance(first, SequenceKey) and first.idx < len(parameters):
        steps[0] = parameters[first.idx]
    return ".".join(map(str, steps))
