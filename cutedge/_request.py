"""What is asked of ``trace``: a model, its sizes and options; and how it is answered."""

import hashlib
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer.errors import InputError, choose
from tracer.stages import stage

if TYPE_CHECKING:
    from cutedge._sources import Program, Source
    from tracer.capture.runnable import Runnable
    from tracer.capture.user import Own
    from tracer.captured import Checked
    from tracer.graph import OpGraph
    from tracer.reach import Reach


Overrides = Mapping[str, Any] | Sequence[str] | None
"""Fields of a config and their values, or texts ``key=value``."""


OWN_DTYPE = "config"
"""The ``--dtype`` that a config names."""


def _fields(overrides: Overrides) -> dict[str, Any]:
    """Overrides as fields and values."""
    from tracer.presets import parse_overrides

    if overrides is None or isinstance(overrides, Mapping):
        return dict(overrides or {})
    return parse_overrides(list(overrides))


def with_senses(
    overrides: Overrides,
    images: int | None,
    image_size: int | str | None = None,
    sounds: int | None = None,
) -> Overrides:
    """Overrides with the images that a model sees in each sequence, their size in pixels, and the
    sounds that it hears.

    Raises InputError for a size that is no number and no ``HEIGHTxWIDTH``.
    """
    if sounds:
        overrides = {**_fields(overrides), "sounds": [sounds]}
    if images is None and image_size is None:
        return overrides
    sides = str(image_size or "").split("x") if image_size is not None else []
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        raise InputError(f"--image-size {image_size}: give pixels, as in 448 or 336x448")
    seen = [1 if images is None else images, *map(int, sides)]
    return {**_fields(overrides), "images": seen} if seen[0] else overrides


class Request:
    """A model, and how it is to be traced: what the options of ``trace`` come to.

    ``model`` is what a user calls one (``trace``), a config, or a module with its example
    ``inputs``.
    """

    def __init__(
        self,
        model: Any,
        sizes: Mapping[str, int | None],
        *,
        phase: str,
        cache: bool = False,
        dtype: str | None = None,
        attn: str = "eager",
        logits: str = "last",
        overrides: Overrides = None,
        inputs: Any = None,
        weights: str | Path | None = None,
        kv_dtype: str | None = None,
    ) -> None:
        """Raises InputError for options that do not go together."""
        from cutedge._sources import find_source
        from cutedge._storage import check_storage
        from tracer.graph import MODEL_DTYPES, QUANTISED_DTYPES
        from tracer.presets import FUNCTION, check_config

        if dtype not in (None, OWN_DTYPE):
            choose(dtype, (*MODEL_DTYPES, *QUANTISED_DTYPES, OWN_DTYPE), "--dtype")
        self._quantised = dtype if dtype in QUANTISED_DTYPES else None
        dtype = None if self._quantised else dtype
        check_storage(weights, kv_dtype)
        self._storage = weights, kv_dtype
        self._sizes: dict[str, Any] = {size: n for size, n in sizes.items() if n is not None}
        self._options: dict[str, Any] = {
            "dtype": dtype,
            "attn": attn,
            "overrides": _fields(overrides),
        }
        self._file: dict[str, str] = {}
        self._module: tuple[Any, Any] | None = None
        self._program: Program | None = None
        self._source: Source | None = None
        self._config: Mapping[str, Any] = {}
        self.name = ""
        """What the model's tables are called by."""
        given = str(model) if isinstance(model, Path) else model
        own = FUNCTION.fullmatch(given) if isinstance(given, str) else None
        if own or not isinstance(given, str | Mapping):
            what = given if own else type(given).__name__
            if phase != "prefill" or cache:
                raise InputError(f"{what} says itself what runs: leave --phase and --cache out")
            if dtype == OWN_DTYPE:
                raise InputError(
                    f"--dtype {OWN_DTYPE} is of a model by config, and {what} has none"
                )
            if own:
                self._file = {"file": own[1], "function": own[2]}
                self.name = own[2]
            else:
                self._module = given, inputs
                self.name = what
            return
        if inputs is not None:
            raise InputError("inputs are of a module; a model by name has those of its phase")
        if isinstance(given, str):
            source = self._source = find_source(given)
            self.name, self._config, self._program = source.name, source.config, source.program
            if self._program is not None:
                self._check_program(self._program, phase, cache, dtype)
                return
        else:
            self._config = check_config(dict(given), "the config")
            self.name = self._config.get("model_type") or "config"
        self._options |= {
            "dtype": self._own_dtype() if dtype == OWN_DTYPE else dtype or "float32",
            "model": self.name,
            "logits": logits,
            "phase": phase,
            "cache": cache,
        }

    def _check_program(
        self, program: "Program", phase: str, cache: bool, dtype: str | None
    ) -> None:
        """Raise InputError for options of what a file says itself."""
        given = {
            "--phase": phase != "prefill",
            "--cache": cache,
            "--dtype": dtype is not None and "dtype" not in program.takes,
            "--set": bool(self._options["overrides"]) and "overrides" not in program.takes,
        }
        if said := [option for option, is_given in given.items() if is_given]:
            raise InputError(
                f"{program.called} says itself what runs: leave {' and '.join(said)} out"
            )
        if dtype == OWN_DTYPE:
            raise InputError(f"--dtype {OWN_DTYPE} is of a model by config, which this is not")
        self._options = {name: self._options[name] for name in program.takes}

    def _own_dtype(self) -> str:
        """The dtype that the config names."""
        from tracer.graph import MODEL_DTYPES
        from tracer.presets import config_dtype

        named = config_dtype(self._config)
        if named not in MODEL_DTYPES:
            raise InputError(
                f"--dtype {OWN_DTYPE}: the config of {self.name} names "
                f"{'no dtype' if named is None else f'{named}, in which no model is traced'}; give "
                f"one of {', '.join(MODEL_DTYPES)}"
            )
        return named

    @property
    def identity(self) -> list[Any]:
        """What is traced, apart from sizes: equal for equal models, as JSON."""
        weights, kv_dtype = self._storage[0] or self._beside, self._storage[1]
        asked = (weights, kv_dtype) if weights or kv_dtype else ()
        storage = [None if one is None else str(one) for one in asked]
        storage += [self._quantised] if self._quantised else []
        if self._file:
            text = Path(self._file["file"]).read_bytes()
            return [self._file, hashlib.sha256(text).hexdigest(), self._options, *storage]
        if self._program is not None:
            return [self._program.identity, self._options, *storage]
        return [self._config, self._options, *storage]

    def at(self, sizes: Mapping[str, int]) -> "Request":
        """The same model at other sizes."""
        there = copy(self)
        there._sizes = dict(sizes)
        return there

    def _own(self) -> "Own | None":
        """The user's own function; None, without a word to torch, for a model by config."""
        if not self._file and self._module is None:
            return None
        with stage("loading torch"):
            from tracer.capture import own_function, own_module

        if self._module is not None:
            return own_module(*self._module, self.name)
        return own_function(**self._file)

    def traced(
        self, *, full: bool, use_cache: bool
    ) -> "tuple[OpGraph, tuple[str, ...], Reach, bool]":
        """(trace without costs, warnings, where it holds, whether the cache had it)"""
        from costmodels.weights import quantised
        from cutedge._storage import as_in_file, as_published, in_storage

        graph, warnings, reach, cached = self._captured(full=full, use_cache=use_cache)
        if self._quantised:
            graph = quantised(graph, self._quantised)
        weights, kv_dtype = self._storage
        said: tuple[str, ...] = ()
        if weights is None and self._beside is not None:
            graph, said = as_in_file(graph, self._beside)
        elif weights is None and self._config:
            graph, said = as_published(graph, self._config)
        if self._source is not None:
            said = (*self._source.about(graph, changed=self._changed), *said)
        return in_storage(graph, weights, kv_dtype), (*warnings, *said), reach, cached

    @property
    def _changed(self) -> bool:
        """Whether it is another model than the one that was named."""
        return bool(self._options.get("overrides", {}).keys() - {"images", "sounds"})

    @property
    def _beside(self) -> Path | None:
        """The file of the model's own weights; None for a model that was changed."""
        return None if self._source is None or self._changed else self._source.weights

    def _captured(
        self, *, full: bool, use_cache: bool
    ) -> "tuple[OpGraph, tuple[str, ...], Reach, bool]":
        """The same, with every tensor in its dtype."""
        from tracer import cache

        options = {**self._options, "full": full}
        if own := self._own():
            from tracer.capture import capture_own

            made = capture_own(own, **self._sizes, **options)
            return made.graph, made.warnings, made.reach, False
        asked = self._config if self._program is None else {"program": self._program.identity}
        key = cache.key(asked, options) if use_cache else None
        if key is not None and (found := cache.find(key, self._sizes)):
            return found.graph, found.warnings, found.reach, True
        if self._program is not None:
            captured = self._program.capture(self._sizes, options)
        else:
            with stage("loading torch"):
                from tracer.capture import capture

            captured = capture(self._config, **self._sizes, **options)
        if key is not None:
            cache.keep(key, captured.graph, captured.reach)
        return captured.graph, captured.warnings, captured.reach, False

    def runnable(self) -> "Runnable":
        """The same model, to be run. Raises InputError for a file that is read as data, and for
        one that is counted as quantised."""
        if self._quantised:
            raise InputError(
                f"a model is counted in {self._quantised}, and nothing here runs it so: leave --dtype "
                "out to run it in float32"
            )
        if self._program is not None:
            raise InputError(
                f"{self._program.called} is traced, and nothing of it is run: hand the module over "
                "as file.py:function"
            )
        with stage("loading torch"):
            from tracer.capture import runnable, runnable_own

        if own := self._own():
            return runnable_own(own, **self._sizes, **self._options)
        return runnable(self._config, **self._sizes, **self._options)


def traced_model(
    model: str, overrides: Overrides, *, phase: str, **sizes: int
) -> "tuple[OpGraph, tuple[str, ...]]":
    """(the annotated graph of a model as its config has it, warnings)."""
    from costmodels.flops import annotate

    asked = Request(model, sizes, phase=phase, overrides=overrides)
    graph, warnings, *_ = asked.traced(full=False, use_cache=True)
    return annotate(graph), warnings


def decodes(
    model: str, overrides: Overrides
) -> "tuple[OpGraph, tuple[OpGraph, ...], tuple[str, ...]]":
    """(annotated decode over few cached tokens, others beyond all windows, warnings).

    The others are there where the model is another program far out: one, or two that are a cached
    token apart where no formula has the cached tokens in it. No warning says where the first trace
    ends.
    """
    from costmodels.flops import annotate

    def traced(past: int) -> "tuple[OpGraph, Reach]":
        asked = Request(model, {"past": past}, phase="decode", overrides=overrides)
        graph, warnings, reach, _ = asked.traced(full=False, use_cache=True)
        said.update(dict.fromkeys(one for one in warnings if one not in reach.notes))
        return annotate(graph), reach

    said: dict[str, None] = {}
    near, reach = traced(16)
    most = (reach.positions or 2**20) - 1
    far: list[OpGraph] = []
    if not reach.covers({**near.meta.variables, "past": most}):
        far.append(traced(most)[0])
        if "past" not in far[0].meta.symbolic:
            far.append(traced(most - 1)[0])
    return near, tuple(far), tuple(said)


def check(
    model: str, seq: int | None, overrides: Overrides
) -> "tuple[str, str, list[Checked], list[OpGraph | None]]":
    """(name, class, how far each phase can be traced, its annotated graph or None) of a model."""
    from costmodels.flops import annotate
    from cutedge._sources import find_source
    from tracer.capture import check as check_phases

    source = find_source(model)
    if source.program is not None:
        raise InputError(f"{model} says itself what runs: cutedge trace {model}")
    name, config = source.name, source.config
    kind, found = check_phases(config, model=name, seq=seq, overrides=_fields(overrides))
    graphs = [None if one.captured is None else annotate(one.captured.graph) for one in found]
    return name, kind, found, graphs
