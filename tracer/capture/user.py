"""A user's own module: a function that returns (module, example inputs), in a file or not."""

import builtins
import copy
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._pytree import SequenceKey, tree_flatten_with_path, tree_unflatten

from tracer.capture.errors import first_line
from tracer.capture.memory import plain_tensors, remade
from tracer.capture.readings import MANY_TOKENS, Reading
from tracer.capture.senses import Axis, Input
from tracer.errors import InputError, suggest

DEFAULTS = {"batch": 1, "seq": MANY_TOKENS, "past": 0, "source": MANY_TOKENS}
"""The sizes that a function may ask for, by the names of its parameters."""

STEPS = {"batch": 2, "seq": 3, "past": 5, "source": 7}
"""How much each size is raised, to see which axes of the inputs follow it."""


@dataclass(frozen=True, slots=True)
class Own:
    """A function of the user's that returns (module, example inputs)."""

    build: Callable[..., Any]
    name: str
    """What the model's tables are called by."""
    called: str
    """What the user calls it."""


def own_function(file: str, function: str) -> Own:
    """The ``function`` in a Python ``file``. Raises InputError where there is no such function."""
    return Own(_load(file, function), f"{Path(file).stem}.{function}", f"{file}:{function}")


def own_module(module: torch.nn.Module, inputs: Any, name: str) -> Own:
    """A module that is there already. What is done to it for a trace is done to a copy.

    The copy shares the module's tensors: no number is copied.
    """
    kept = [*module.parameters(), *module.buffers(), *plain_tensors(module).values()]

    def build() -> tuple[torch.nn.Module, Any]:
        return copy.deepcopy(module, {id(tensor): tensor for tensor in kept}), inputs

    return Own(build, name, name)


def user_model(
    own: Own,
    sizes: Mapping[str, int | None],
    arguments: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> tuple[torch.nn.Module, Reading]:
    """The module that a function of the user's returns, without data, and what it reads.

    What floats is of ``dtype``, where one is given.

    The example inputs are a tensor, a tuple of arguments, or a dict of arguments by name. A
    function may take sizes (``batch``, ``seq``, ``past``, ``source``): they stay symbols where an
    axis of an input is such a size, which a second call with larger sizes shows. Where anything
    else of inputs or parameters changes with them, none is a symbol. The function may take other
    ``arguments`` by name. Raises InputError for what is no such function.
    """
    build, name = own.build, own.called
    accepted = inspect.signature(build).parameters
    open_ = any(one.kind is one.VAR_KEYWORD for one in accepted.values())
    for key in arguments:
        if (key not in accepted and not open_) or key in DEFAULTS:
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
    own: Own,
    sizes: Mapping[str, int],
    arguments: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> torch.nn.Module:
    """The module as the user's function makes it, with its data, at ``sizes`` that it may have."""
    accepted = inspect.signature(own.build).parameters
    asked = {size: number for size, number in sizes.items() if size in accepted}
    module, _ = _built(own.build, own.called, {**arguments, **asked})
    return remade(module, "cpu", dtype).eval()


OURS = ("tracer", "partition", "costmodels", "cli", "cutedge")
"""The names under which cutedge itself can be imported."""


def _load(file: str, function: str) -> Callable[..., Any]:
    path = Path(file).resolve()
    if not path.is_file() or path.suffix != ".py":
        raise InputError(f"{file} is no Python file that exists")
    beside = _Neighbours(path.parent)
    sys.path.append(str(path.parent))  # for what looks there by itself; ``beside`` comes first
    sys.meta_path.insert(0, beside)
    try:
        loaded = beside.load(path.stem, path)
    except (Exception, SystemExit) as error:  # it is the user's code
        raise InputError(f"{file} cannot be imported: {first_line(error)}") from error
    build: Any = getattr(loaded, function, None)
    if not callable(build):
        own = [name for name, value in vars(loaded).items() if inspect.isfunction(value)]
        raise InputError(f"{file} has no function {function}." + suggest(function, own))
    return build  # type: ignore[no-any-return]


class _Neighbours:
    """A user's folder, whose files win over ours of the same name in what is imported there.

    A ``partition.py`` beside a user's model is what the model's ``import partition`` means, also in
    other files beside it. The user's modules alone import in this way: each has an ``__import__``
    of its own, so that what cutedge imports meanwhile is still cutedge's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: set[str] = set()
        """What was found here, by the first part of its name in ``sys.modules``."""
        self._private = {
            name: place
            for name in OURS
            for place in (folder / f"{name}.py", folder / name / "__init__.py")
            if place.is_file() and not _is_ours(name, place)
        }

    def load(self, name: str, path: Path) -> ModuleType:
        """The module in a file, under a private name: a user's json.py is not Python's."""
        private = f"_{name}_of_the_user"
        loader = _Own(private, str(path), self._import)
        places = [str(path.parent)] if path.name == "__init__.py" else None
        found = importlib.util.spec_from_file_location(
            private, path, loader=loader, submodule_search_locations=places
        )
        assert found is not None  # there is a loader
        loaded = importlib.util.module_from_spec(found)
        sys.modules[private] = loaded
        self._own.add(private)
        loader.exec_module(loaded)
        return loaded

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """As finders of ``sys.meta_path`` do: the modules of this folder, as the user's."""
        first, _, rest = name.partition(".")
        if first in OURS:
            return None
        if rest:
            found = PathFinder.find_spec(name, path) if first in self._own else None
        else:
            found = PathFinder.find_spec(name, [str(self._folder)])
        if found is None or not isinstance(found.loader, SourceFileLoader):
            return found
        self._own.add(first)
        found.loader = _Own(name, found.loader.path, self._import)
        return found

    def _import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        first, _, rest = name.partition(".")
        if level or first not in self._private:
            return builtins.__import__(name, globals, locals, fromlist, level)
        private = f"_{first}_of_the_user"
        if private not in self._own:
            self.load(first, self._private[first])
        named = importlib.import_module(f"{private}.{rest}" if rest else private)
        if not fromlist:
            return sys.modules[private]
        for wanted in fromlist:  # what is in the module, or a module of the package
            if not hasattr(named, wanted) and hasattr(named, "__path__"):
                with suppress(ModuleNotFoundError):  # from ... import says so better
                    importlib.import_module(f"{named.__name__}.{wanted}")
        return named


def _is_ours(name: str, place: Path) -> bool:
    ours = getattr(sys.modules.get(name), "__file__", None)
    return ours is not None and place.resolve() == Path(ours).resolve()


class _Own(SourceFileLoader):
    """Loads a module whose imports go another way."""

    def __init__(self, name: str, path: str, importing: Callable[..., Any]) -> None:
        super().__init__(name, path)
        self._importing = importing

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code; its functions keep the builtins that it was run with."""
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._importing}
        super().exec_module(module)


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
