"""What a user may do about a model that cannot be traced: an option is tried before it is said."""

import json
import re
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tracer.capture.compat import PreTrainedModel
from tracer.capture.configs import LAYER_COUNTS, config_class, described
from tracer.capture.errors import Untraceable
from tracer.capture.forms import POSITIONS
from tracer.capture.inputs import IMAGES, SOUNDS
from tracer.capture.models import CHECK, part_classes
from tracer.capture.senses import HEARD, SEEN
from tracer.errors import CutedgeError, InputError

_SIZES = ("seq", "past", "source")

_MOST = 4
"""Remedies that are tried."""

Trace = Callable[..., Any]
"""As ``capture`` with the options that a remedy changes; raises CutedgeError where it fails."""


@dataclass(frozen=True, slots=True)
class _Remedy:
    """An option that may help."""

    said: str
    """As a user writes it."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    """``attn`` or ``phase``."""


def led_on(
    error: CutedgeError, config: Mapping[str, Any], asked: Mapping[str, Any], trace: Trace
) -> CutedgeError:
    """The error of a model that cannot be built or traced, with what helps as far as that is known.

    ``asked`` has the ``phase``, ``attn``, ``overrides`` and sizes of the trace that failed. Each
    remedy is traced, at small sizes and with two layers, before it is advised.
    """
    cause = error.__cause__
    by_user = not isinstance(cause, Untraceable) and "Check --set" in str(error)
    if cause is None or isinstance(cause, InputError) or by_user:
        return error
    reason = str(error)
    for advice in (CHECK, _advice(cause, asked)):
        reason = reason.removesuffix(f" {advice}")
    inner = cause.cause if isinstance(cause, Untraceable) and cause.cause is not None else cause
    missing = _missing_inputs(inner)
    if missing:
        reason += f" It reads {' and '.join(missing)} too, which this trace does not give."
    tried: list[str] = []
    for remedy in islice(_remedies(cause, inner, missing, config, asked), _MOST):
        if _works(remedy, config, asked, trace):
            return InputError(f"{reason} It is traced with {remedy.said}.")
        tried.append(remedy.said)
    if isinstance(cause, Untraceable) and tried:
        advice = _advice(cause, asked)
        return type(error)(f"{reason} It is not with {' or '.join(tried)} either. {advice}".strip())
    return type(error)(f"{reason} {_advice(cause, asked)}".strip()) if missing else error


def _advice(cause: BaseException, asked: Mapping[str, Any]) -> str:
    """What is said where nothing better is known."""
    return cause.advice(asked["overrides"]) if isinstance(cause, Untraceable) else ""


def _works(
    remedy: _Remedy, config: Mapping[str, Any], asked: Mapping[str, Any], trace: Trace
) -> bool:
    small = {
        name: 2
        for name in LAYER_COUNTS
        if type(config.get(name)) is int and config[name] > 2 and name not in asked["overrides"]
    }
    overrides = {**asked["overrides"], **small, **remedy.overrides}
    most = None if {IMAGES, SOUNDS} & {*overrides} else 8  # where images or sounds count too
    sizes = {name: asked[name] and min(asked[name], most or asked[name]) for name in _SIZES}
    options = {**{name: asked[name] for name in ("phase", "attn")}, **sizes, **remedy.options}
    if options["phase"] == "encoder":
        options |= {"past": None, "source": None}
    try:
        trace(overrides=overrides, symbolic=False, **options)
    except Exception:  # of a config that is odd in other ways too: it does not help then
        return False
    return True


def _remedies(
    cause: BaseException,
    inner: BaseException,
    missing: Collection[str],
    config: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> Iterator[_Remedy]:
    """What may help, the likeliest first."""
    text = f"{cause} {inner}"
    if match := re.search(r"Field '(\w+)' expected (\w+), got", text):
        for path, value in _fields(config, lambda key: key == match[1]):
            if (meant := _meant(value, match[2])) is not None:
                yield _set(path, meant)
    if "adding_idx" in text or "no padding token is defined" in text:
        for path, _ in _fields(config, lambda key: key == "vocab_size"):
            yield _set([*path[:-1], "pad_token_id"], 0)
    for option, names in ((IMAGES, SEEN), (SOUNDS, HEARD)):
        if {*names} & {*missing} and option not in asked["overrides"]:
            yield _Remedy(f"--{option} 1", {option: [1]})
    if missing:
        kind = config_class(config, "")
        yield from (_set(["architectures"], name) for name in part_classes(kind))
        if asked["phase"] != "encoder" and described(kind, {}).get("is_encoder_decoder"):
            yield _Remedy("--phase encoder", options={"phase": "encoder"})
    by_data = isinstance(cause, Untraceable) and cause.by_data
    if by_data:
        other = "sdpa" if asked["attn"] == "eager" else "eager"
        yield _Remedy(f"--attn {other}", options={"attn": other})
    code = "".join(traceback.format_tb(inner.__traceback__))
    if by_data or re.search("rope|rotary", f"{text} {code}"):
        for path, value in _fields(config, lambda key: key in POSITIONS):
            if value is not None:
                yield _set(path, None)
    if isinstance(inner, KeyError) and inner.args and isinstance(inner.args[0], str):
        default = described(config_class(config, ""), {})
        for path, value in _fields(config, lambda key: key in default):
            if value == inner.args[0] and len(path) == 1 and default[path[0]] != value:
                yield _set(path, default[path[0]])


def _set(path: list[str], value: Any) -> _Remedy:
    key = ".".join(path)
    text = value if isinstance(value, str) else json.dumps(value)
    return _Remedy(f"--set {key}={text}", {key: value})


def _fields(
    config: Mapping[str, Any], wanted: Callable[[str], bool], path: tuple[str, ...] = ()
) -> Iterator[tuple[list[str], Any]]:
    """(path, value) of the fields of a config, and of the configs inside, that are wanted."""
    for key, value in config.items():
        if wanted(key):
            yield [*path, key], value
        elif isinstance(value, dict) and key.endswith("_config") and len(path) < 3:
            yield from _fields(value, wanted, (*path, key))


def _meant(value: Any, kind: str) -> Any:
    """A value in the type that its field takes, where that is plain; None where it is not."""
    if isinstance(value, str):
        try:
            value = json.loads(value.lower() if kind == "bool" else value)
        except (ValueError, RecursionError):
            return None
    if kind == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value).__name__ == kind else None


def _missing_inputs(error: BaseException) -> list[str]:
    """The arguments of a model that its code stumbled over since they were not given."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    models = [
        frame
        for frame in frames
        if frame.f_code.co_name == "forward"
        and isinstance(frame.f_locals.get("self"), PreTrainedModel)
    ]
    if match := re.search(r"missing \d+ required positional arguments?: (.*)", str(error)):
        return re.findall(r"'(\w+)'", match[1])
    if not models or not isinstance(error, AttributeError | TypeError | ValueError):
        return []
    where = traceback.extract_tb(error.__traceback__)
    lines = [frame.line or "" for frame in where if "/transformers/models/" in frame.filename][-1:]
    asked = " ".join([str(error), *lines])
    code = models[0].f_code
    arguments = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    given = models[0].f_locals
    return [
        name
        for name in arguments
        if name not in given or given[name] is None
        if re.search(rf"\b{name}\b", asked) and not name.endswith(("_embeds", "_mask"))
    ]
