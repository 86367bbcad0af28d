"""What a model reads in a phase, and how it is run on that: tokens, encoded ones, images, sounds."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._pytree import tree_leaves, tree_map

from tracer.capture.compat import MODEL_FOR_CAUSAL_LM_MAPPING
from tracer.capture.encoded import of_decoder, of_encoder
from tracer.capture.errors import failure
from tracer.capture.pictures import (
    Shown,
    by_text,
    maker,
    over_tokens,
    pictures,
    rows,
    sounds,
    taken_beside,
    tower,
)
from tracer.capture.readings import (
    MANY_TOKENS,
    NO_SOURCE,
    Reading,
    new_tokens,
    of_sense,
    plainly,
    stumbles,
    tokens_of,
    zeros,
)
from tracer.capture.runs import run_on_meta
from tracer.capture.senses import HEARD, SEEN, Axis, Input, sensed
from tracer.capture.told import Placed, Told, constant, telling
from tracer.errors import CutedgeError, InputError

PHASES = ("prefill", "decode", "encoder")

IMAGES, SOUNDS = "images", "sounds"
"""Where overrides of a config say how many images a sequence has, and their height and width, and
how many sounds."""


@dataclass(frozen=True, slots=True)
class _Given:
    """How a model is given images or sounds."""

    reads: tuple[Input, ...]
    run: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    """(the model, the inputs by name) -> the arguments of its forward."""
    told: bool
    """Whether it is told more of them than they are."""
    notes: tuple[str, ...] = ()
    """What a user must know."""
    tokens: int = 0
    """How many they make."""


def reading(
    module: torch.nn.Module,
    model: str,
    phase: str,
    images: Sequence[int] = (),
    heard: Sequence[int] = (),
) -> Reading:
    """What ``module``, a model of transformers, reads in ``phase``.

    ``images`` is how many it sees in each sequence, and what height and width they have;
    ``heard`` how many sounds it hears.

    Raises InputError for a phase that such a model does not have, CutedgeError for one that reads
    something else than tokens or images.
    """
    accepted = inspect.signature(module.forward).parameters
    if phase not in PHASES:
        raise InputError(f"unknown phase {phase!r}: {', '.join(PHASES)}")
    if _is_encoder_decoder(module, accepted):
        if phase == "encoder" and images and sees_among_tokens(module, accepted):
            return _encoder_and_images(module, model, images)
        if images or heard:
            option = "--images" if images else "--sounds"
            raise InputError(
                f"{model}: {type(module).__name__} reads images and sounds in its encoder, if any, "
                f"which is a phase of its own: leave {option} out"
            )
        if phase != "encoder":
            return of_decoder(module, phase)
        alone = of_encoder(module, model)
        return replace(alone, notes=_TEXT_ALONE) if sees_among_tokens(module, accepted) else alone
    sees, hears = sees_among_tokens(module, accepted), hears_among_tokens(module, accepted)
    beside = sees_beside_tokens(module, accepted)
    if (sees or beside) and phase == "prefill" and not heard:
        needed = accepted["pixel_values"].default is inspect.Parameter.empty
        images = images or ((1,) if needed else ())
    if images and not (sees or beside):
        raise InputError(f"{model}: {type(module).__name__} reads no images among its tokens")
    if heard and not hears:
        raise InputError(f"{model}: {type(module).__name__} reads no sounds among its tokens")
    if heard and images:
        raise InputError("--images and --sounds in one text are not traced: give one of them")
    if phase == "encoder" and (sees or hears):
        kind = "audio" if heard or not sees else "image"
        return _shown(module, model, kind, heard or images or (1,))
    if (images and sees) or heard:
        kind = "audio" if heard else "image"
        both = _tokens_and(module, model, kind, accepted, heard or images)
        return both if phase == "prefill" else _over(both, accepted)
    if beside and phase == "encoder":
        return _seen_beside(module, model, images or (1,))
    if beside and images:
        both = _tokens_beside_images(module, model, accepted, images)
        return both if phase == "prefill" else _over(both, accepted)
    if phase == "encoder":
        raise InputError(f"{model}: {type(module).__name__} has no encoder apart: use prefill")
    if _is_two_towers(module, accepted):
        return _two_towers(module, model, phase, accepted)
    if "input_ids" in accepted:
        tokens = tokens_of(module, "input_ids", plainly)
        sizes = {"seq": new_tokens(phase)}
        notes = _TEXT_ALONE * (sees or beside)
        if hears:
            notes += ("it hears nothing here: --sounds 1 for a sound before its text",)
        return Reading((tokens,), plainly, sizes, NO_SOURCE, notes, options=accepted)
    if (read := sensed(module, accepted, lambda inputs: module(**inputs))) is not None:
        if phase != "prefill":
            what = "images" if read.given.name in SEEN else "sounds"
            raise InputError(f"{model}: {type(module).__name__} reads {what}: it has no {phase}")
        return of_sense(read, plainly)
    raise CutedgeError(
        f"{model}: {type(module).__name__} reads no tokens, images or sounds but "
        f"{next(iter(accepted), 'nothing')}; hand over such a model as file.py:function"
    )


def phases(module: Any) -> list[str]:
    """The phases that a model of transformers has, in the order of a run."""
    accepted = inspect.signature(module.forward).parameters
    if _is_encoder_decoder(module, accepted):
        reads = inspect.signature(module.get_encoder().forward).parameters
        known = {"input_ids", *SEEN, *HEARD} & {*reads}
        return [*(["encoder"] if known else []), "prefill", "decode"]
    steps = cache_argument(accepted) and not is_encoder(module)
    apart = sees_among_tokens(module, accepted) and not _is_two_towers(module, accepted)
    apart = apart or sees_beside_tokens(module, accepted) or hears_among_tokens(module, accepted)
    return [*(["encoder"] if apart else []), "prefill", *(["decode"] if steps else [])]


def is_encoder(module: torch.nn.Module) -> bool:
    """Whether every token of a model looks at all others, so that no step can add one to a cache.

    Most attentions of transformers say whether they are causal. Of the others the config does, for
    types that are encoders unless told to be decoders, or else whether the type generates text.
    """
    settings: Any = module.config
    with suppress(AttributeError, ValueError):  # no config, or more than one that reads tokens
        settings = module.config.get_text_config(decoder=True)
    if getattr(settings, "use_bidirectional_attention", None) in (True, "all"):
        return True
    causal = [bool(part.is_causal) for part in module.modules() if hasattr(part, "is_causal")]
    told = getattr(settings, "is_decoder", None)
    if any(causal) or told:
        return False
    generates = any(type(c) in MODEL_FOR_CAUSAL_LM_MAPPING for c in (module.config, settings))
    return told is False or (bool(causal) and not generates)


def cache_argument(accepted: Collection[str]) -> str | None:
    """The argument of a forward that takes a cache; None when no argument does."""
    return next((name for name in ("past_key_values", "cache_params") if name in accepted), None)


def _is_encoder_decoder(module: torch.nn.Module, accepted: Collection[str]) -> bool:
    return getattr(module.config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted


def _is_two_towers(module: torch.nn.Module, accepted: Mapping[str, Any]) -> bool:
    """Whether a model compares texts to images or sounds, each in a tower of its own."""
    compares = any(hasattr(module, f"get_{kind}_features") for kind in ("image", "audio", "video"))
    return compares and hasattr(module, "get_text_features") and "input_ids" in accepted


def _two_towers(
    module: torch.nn.Module, model: str, phase: str, accepted: Mapping[str, Any]
) -> Reading:
    """A text and an image or sound in each of the batch."""
    if phase != "prefill":
        raise InputError(f"{model}: {type(module).__name__} reads all at once: it has no {phase}")
    tokens = Input("input_ids", ("batch", "seq"))

    def run(inputs: Mapping[str, Any]) -> Any:
        return module(input_ids=torch.zeros(2, 8, dtype=torch.int64), **inputs)

    read = sensed(module, accepted, run)
    if read is None or "seq" in read.sizes:
        raise CutedgeError(f"{model}: {type(module).__name__} reads what is not known here")
    if maker(module) is not None and stumbles(module, plainly, (tokens, read.given), {"seq": 8}):
        for way in pictures(module, None):  # patches, in rows and columns that it is told
            shown = _laid(way, 1, read.given.dtype)
            inputs = (tokens, *shown.reads)

            def both(
                module: Any, inputs: Mapping[str, Any], run: Any = shown.run, **options: Any
            ) -> Any:
                with telling(module):
                    told = run(module, inputs)
                    return module(input_ids=inputs["input_ids"], **told, **options)

            if stumbles(module, both, inputs, {"seq": 8}) is None:
                notes = (f"each of the batch is a text and {way.what}",)
                sizes = {"seq": MANY_TOKENS}
                return Reading(inputs, both, sizes, _ALONE, notes, by_one=True, told=shown.told)
    other = "image" if read.given.name in SEEN else "sound"
    said = (f"each of the batch is a text and one {other}", *read.notes)
    return Reading((tokens, read.given), plainly, {"seq": MANY_TOKENS}, _ALONE, said)


_TEXT_ALONE = ("it reads text alone here: --images 1 for an image before it",)

_ALONE = {"past": "it keeps no cache", "source": "it reads no encoded tokens"}


def sees_among_tokens(module: torch.nn.Module, accepted: Mapping[str, Any]) -> bool:
    """Whether a model takes images for some of the tokens of a text."""
    return {"input_ids", "pixel_values"} <= {*accepted} and maker(module) is not None


def hears_among_tokens(module: torch.nn.Module, accepted: Mapping[str, Any]) -> bool:
    """Whether a model takes sounds for some of the tokens of a text."""
    heard = "input_ids" in accepted and any(name in accepted for name in HEARD)
    return heard and maker(module, "audio") is not None and not _is_two_towers(module, accepted)


def sees_beside_tokens(module: torch.nn.Module, accepted: Mapping[str, Any]) -> bool:
    """Whether a model reads images that take no place among the tokens of its text."""
    return (
        {"input_ids", "pixel_values"} <= {*accepted}
        and maker(module) is None
        and tower(module) is not None
        and not _is_two_towers(module, accepted)
    )


def _over(both: Reading, accepted: Collection[str]) -> Reading:
    """A step over cached images or sounds and text."""
    tokens = Input("input_ids", ("batch", "seq"))
    note = f"{both.taken} of the cached tokens are not of text: --past counts them"
    return Reading(
        (tokens,),
        plainly,
        {"seq": 1},
        NO_SOURCE,
        (note,) if both.taken else ("the keys and values of its images are cached too",),
        options=accepted,
        seen=both.taken,
        fills=None if both.taken else both,
    )


def _tokens_beside_images(
    module: torch.nn.Module, model: str, accepted: Collection[str], images: Sequence[int]
) -> Reading:
    tokens = Input("input_ids", ("batch", "seq"))
    seen = _beside(module, model, accepted, images)

    def both(module: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
        return _run_beside(seen, images[0], accepted, module, inputs, **options)

    return Reading(
        (tokens, *seen.reads),
        both,
        {"seq": MANY_TOKENS + seen.tokens},
        NO_SOURCE,
        seen.notes,
        accepted,
        taken=seen.tokens,
        by_one=True,
        told=seen.told,
    )


def _run_beside(
    seen: _Given,
    count: int,
    accepted: Collection[str],
    module: Any,
    inputs: Mapping[str, Any],
    **options: Any,
) -> Any:
    """A run over tokens, and ``count`` images a text that are encoded outside of them."""
    tokens = inputs["input_ids"]
    told = over_tokens(accepted, tokens, count, seen.tokens)
    return module(input_ids=tokens, **seen.run(module, inputs), **told, **options)


def _seen_beside(module: torch.nn.Module, model: str, images: Sequence[int]) -> Reading:
    seen = _beside(module, model, inspect.signature(module.forward).parameters, images)

    def encoded(
        module: Any, inputs: Mapping[str, Any], *, alone: bool = False, **options: Any
    ) -> Any:
        encoder, projector = tower(module)
        known = inspect.signature(encoder.forward).parameters
        told = {name: value for name, value in seen.run(module, inputs).items() if name in known}
        if alone:  # each image by itself, whatever text it is of
            told = {name: value.flatten(0, 1) for name, value in told.items()}
        hidden = encoder(**told, return_dict=True).last_hidden_state
        return hidden if projector is None else projector(hidden)

    fixed = dict.fromkeys(("seq", "past", "source"), "it reads images, not tokens")
    alone = stumbles(module, encoded, seen.reads, {}) is not None
    run = partial(encoded, alone=alone)
    return Reading(seen.reads, run, {}, fixed, seen.notes, by_one=True, told=seen.told)


def _beside(
    module: torch.nn.Module, model: str, accepted: Collection[str], images: Sequence[int]
) -> _Given:
    """How a model is given images that it encodes outside of its tokens."""
    count, *size = images
    dtype = next(module.parameters()).dtype
    tokens = Input("input_ids", ("batch", "seq"))
    failures: list[Exception] = []
    for way in pictures(module, (size[0], size[-1]) if size else None):
        taken = count * taken_beside(module, accepted)
        note = f"{way.what} is read beside the tokens: --seq does not count it"
        if taken:
            note = f"{way.what} makes {taken // count} tokens, which --seq counts among its own"
        seen = replace(_laid(way, count, dtype), notes=(note,), tokens=taken)
        both = partial(_run_beside, seen, count, accepted)
        if (error := stumbles(module, both, (tokens, *seen.reads), {"seq": taken + 8})) is None:
            return seen
        failures.append(error)
    raise CutedgeError(
        f"{model}: {type(module).__name__} takes images in no way known here: "
        f"{failure(failures[0], module)}; leave --images out for text alone"
    ) from failures[0]


def _shown(module: torch.nn.Module, model: str, kind: str, asked: Sequence[int]) -> Reading:
    """What a model makes of images or sounds alone: its tower, and the projector behind it."""
    shown = _ways(module, model, kind, asked)

    def features(module: Any, inputs: Mapping[str, Any], *, projected: bool, **options: Any) -> Any:
        made = _features(module, kind, shown.run(module, inputs))
        if not projected:
            made = tree_map(maker(module, kind).multi_modal_projector, made)
        return made if len(made) > 1 else made[0]

    projector = getattr(maker(module, kind), "multi_modal_projector", None)
    projected: list[bool] = []
    if projector is not None:  # one model runs it on what it has made, among its tokens
        with projector.register_forward_hook(lambda *run: projected.append(True)):
            stumbles(module, partial(features, projected=True), shown.reads, {})
    run = partial(features, projected=projector is None or bool(projected))
    fixed = dict.fromkeys(("seq", "past", "source"), f"it reads {_KINDS[kind]}, not tokens")
    return Reading(shown.reads, run, {}, fixed, shown.notes, by_one=True, told=shown.told)


def _tokens_and(
    module: torch.nn.Module, model: str, kind: str, accepted: Collection[str], asked: Sequence[int]
) -> Reading:
    """Text, and the images or sounds before it."""
    shown = _ways(module, model, kind, asked)
    made = shown.tokens
    tokens = Input("input_ids", ("batch", "seq"))

    def both(module: Any, inputs: Mapping[str, Any], *, placed: bool, **options: Any) -> Any:
        part, tokens = maker(module, kind), inputs["input_ids"]
        place = Placed(tokens, made, module.config) if placed else nullcontext()
        given = shown.run(module, inputs)
        if hasattr(part, "get_rope_index"):  # which text generation asks before a run
            places = torch.arange(tokens.shape[1], device=tokens.device)
            given["position_ids"] = places.expand(_channels(module), tokens.shape[0], -1)
        with patch.object(part, f"get_{kind}_features", _telling(part, kind)), place:
            return module(input_ids=tokens, **given, **options)

    sizes = {"seq": MANY_TOKENS + made}
    plain = partial(both, placed=False)
    inputs = (tokens, *shown.reads)
    asks = stumbles(module, plain, inputs, {"seq": made + 1}) is not None
    fixed = dict(NO_SOURCE)
    if asks and stumbles(module, plain, inputs, {"seq": made}) is None:  # one is added to each
        asks, sizes = False, {"seq": made}
        fixed["seq"] = f"it reads a token for each of the {made} that its {_KINDS[kind]} make"
        inputs = (replace(tokens, axes=("batch", made)), *shown.reads)
    return Reading(
        inputs,
        partial(both, placed=asks),
        sizes,
        fixed,
        shown.notes,
        accepted,
        taken=made,
        by_one=True,
        told=shown.told,
    )


def _encoder_and_images(module: torch.nn.Module, model: str, images: Sequence[int]) -> Reading:
    """An encoder that reads what is made of images, and text behind it."""
    shown = _ways(module, model, "image", images)

    def both(module: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
        text = module.get_input_embeddings()(inputs["input_ids"])[:, shown.tokens :]
        made = _features(module, "image", shown.run(module, inputs))[0]
        seen = made.reshape(text.shape[0], shown.tokens, text.shape[-1])
        return module.get_encoder()(inputs_embeds=torch.cat((seen, text), 1), **options)

    inputs = (Input("input_ids", ("batch", "seq")), *shown.reads)
    return replace(
        of_encoder(module, model),
        inputs=inputs,
        run=both,
        sizes={"seq": MANY_TOKENS + shown.tokens},
        notes=shown.notes,
        taken=shown.tokens,
        by_one=True,
        told=shown.told,
    )


def _channels(module: Any) -> int:
    """In how many directions a model counts its places: time, height and width for most."""
    rope = getattr(module.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return max(3, len(rope.get("mrope_section") or ()))


_KINDS = {"image": "images", "audio": "sounds"}
"""What a model makes tokens of, as its methods call it -> as an option does."""


def _features(module: Any, kind: str, given: Mapping[str, Any]) -> list[Any]:
    """What a model makes of images or sounds: what stands for its tokens, then what is added to
    these in layers of its text."""
    made = _telling(maker(module, kind), kind)(**given, return_dict=True)
    tokens = (getattr(made, name, None) for name in ("pooler_output", "last_hidden_state"))
    first = next((found for found in tokens if found is not None), None)
    added = getattr(made, "deepstack_features", None) or ()
    added = [one[1] if isinstance(one[0], int) else one for one in added]  # (layer, features)
    return [*([] if first is None else [first]), *added] or [made]


def _telling(part: Any, kind: str) -> Callable[..., Any]:
    """What makes tokens, with code that may look at what follows from sizes."""
    made = getattr(part, f"get_{kind}_features")

    def features(*args: Any, **kwargs: Any) -> Any:
        with telling(part):
            return made(*args, **kwargs)

    return features


def _ways(module: torch.nn.Module, model: str, kind: str, asked: Sequence[int]) -> _Given:
    """How a model is given images or sounds that it makes tokens of."""
    count, *size = asked
    dtype = next(module.parameters()).dtype
    failures: list[Exception] = []
    ways = (
        sounds(module)
        if kind == "audio"
        else pictures(module, (size[0], size[-1]) if size else None)
    )
    for way in ways:
        shown = _laid(way, count, dtype)
        try:
            with run_on_meta(module), torch.device("meta"):
                probe = zeros(shown.reads, {"batch": 1})
                made = tree_leaves(_features(module, kind, shown.run(module, probe))[0])
        except Exception as error:  # another shape than it reads may fail in any way
            failures.append(error)
            continue
        tokens = sum(t.numel() // t.shape[-1] for t in made if isinstance(t, torch.Tensor))
        note = f"{way.what} makes {tokens // count} tokens, which --seq counts among its own"
        return replace(shown, notes=(note,), tokens=tokens)
    what = _KINDS[kind]
    why = f": {failure(failures[0], module)}" if failures else " in a way known here"
    raise CutedgeError(
        f"{model}: its {what} cannot be encoded without data{why}; leave --{what} out for text alone"
    ) from (failures[0] if failures else None)


def _laid(seen: Shown, count: int, dtype: torch.dtype) -> _Given:
    """How a model is given ``count`` images or sounds a text."""
    axes: tuple[Axis, ...] = ("batch", *seen.axes)
    if seen.laid is rows:
        axes = ("batch", count * seen.axes[0], *seen.axes[1:])
    elif count > 1:
        axes = ("batch", count, *seen.axes)
    several = (count,) if count > 1 else ()
    also = [
        Input(name, ("batch", *several, *sides), torch.int64 if name.endswith("_ids") else dtype)
        for name, sides in seen.also.items()
    ]

    def given(module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        values = inputs[seen.name]
        place, batch = next(module.parameters()).device, values.shape[0]
        images = values.flatten(0, 1) if count > 1 and seen.laid is not rows else values
        told = {}
        if seen.told:
            texts = int(batch)
            told = {n: Told.of([row] * (texts * count), place) for n, row in seen.told.items()}
            if seen.laid is by_text:
                told = {n: t.unflatten(0, (texts, count)) for n, t in told.items()}
        if not seen.looked:
            told = {name: constant(numbers, place) for name, numbers in told.items()}
        beside = {one.name: inputs[one.name] for one in also}
        if count > 1:
            beside = {name: each.flatten(0, 1) for name, each in beside.items()}
        return {seen.name: seen.laid(images, count), **beside, **told}

    return _Given((Input(seen.name, axes, dtype), *also), given, bool(seen.told))
