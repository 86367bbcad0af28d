"""What a config says of sizes, beside what its type reads: nothing of it is left out in silence."""

import copy
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from tracer.capture.compat import CONFIG_MAPPING, GenerationConfig
from tracer.capture.forms import in_todays_form
from tracer.errors import InputError

LAYERS, WIDTH, HEADS, VOCABULARY = "layers", "width", "heads", "vocabulary"

_SPELLINGS: Mapping[str, str] = {
    LAYERS: "num_hidden_layers num_layers n_layers n_layer layers depth depths num_blocks n_blocks "
    "encoder_layers decoder_layers num_encoder_layers num_decoder_layers n_encoder_layers "
    "n_decoder_layers",
    WIDTH: "hidden_size hidden_dim dim d_model model_dim dim_model n_embd n_embed embed_dim "
    "emb_dim embedding_dim width hidden_sizes embed_dims",
    HEADS: "num_attention_heads num_heads n_heads n_head attention_heads encoder_attention_heads "
    "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads",
    VOCABULARY: "vocab_size n_vocab vocabulary_size padded_vocab_size",
    "inner width": "intermediate_size ffn_dim ffn_hidden_size ffn_size d_ff n_inner mlp_dim "
    "dim_feedforward encoder_ffn_dim decoder_ffn_dim",
    "heads of keys": "num_key_value_heads n_kv_heads num_kv_heads n_head_kv multi_query_group_num "
    "num_query_groups",
    "width of a head": "head_dim d_kv kv_channels head_size attention_head_dim",
    "positions": "max_position_embeddings n_positions max_seq_len max_seq_length seq_length n_ctx "
    "max_sequence_length context_length",
    "experts": "num_experts num_local_experts n_routed_experts moe_num_experts n_experts",
}
"""What a size is -> how configs spell it."""

LAYER_COUNTS = tuple(_SPELLINGS[LAYERS].split())
"""How configs spell the number of layers."""

_MEANING = {name: meaning for meaning, names in _SPELLINGS.items() for name in names.split()}
_MAIN = (LAYERS, WIDTH, HEADS, VOCABULARY)
"""The sizes that no model is without, where its config has a field for them."""

_LIKE_A_SIZE = re.compile(
    r"(^|_)(n|d|num|dims?|sizes?|layers?|heads?|width|depths?|hidden|experts?|channels|rank|vocab|"
    r"positions|length|blocks|groups|embd|ffn|inner)(_|$)"
)
MOST_LAYERS = 10_000
"""More in one stack is a slip: building them would take hours, and no model has a tenth of it."""

_ATTENTION = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
_DTYPE = ("dtype", "torch_dtype")
_WITHOUT_USE = {
    "pruned_heads": "every head is traced",
    "auto_map": "code that comes with a checkpoint is not run, that of transformers is traced; "
    "for the other write a function that builds it, and trace that as file.py:function",
}
"""What no trace uses -> what is done instead."""
_STORAGE = ("quantization_config", "compression_config", "quantization")
"""How a checkpoint is stored: a trace computes in its own dtype (``costmodels.checkpoints``)."""


def config_class(config: Mapping[str, Any], model: str) -> Any:
    """The class of transformers that reads a config. Raises InputError where there is no such."""
    return CONFIG_MAPPING[in_todays_form(config, model)[0]["model_type"]]


def described(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with all its defaults; empty when it is not valid."""
    try:
        complete: dict[str, Any] = kind.from_dict(copy.deepcopy(dict(config))).to_dict()
    except Exception:  # a config class raises anything; building the model says what is wrong
        return {}
    return complete


@cache
def _defaults_of(kind: Any) -> dict[str, Any]:
    return described(kind, {})


# --- what options decide --------------------------------------------------------------------------


def without_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what the options of a trace decide, at any depth."""
    return {
        key: without_options(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in (*_ATTENTION, *_DTYPE, *_WITHOUT_USE, *_STORAGE)
    }


def unused(config: Mapping[str, Any], *, dtype: str, attn: str) -> tuple[str, ...]:
    """A line on what of a config is not used, where it says other than what is traced."""
    said: dict[str, list[str]] = {}
    for path, key, value in _entries(config):
        name = ".".join((*path, key))
        if key in _ATTENTION and value not in (None, attn):
            said.setdefault(f"--attn {attn} is what is traced", []).append(f"{name} = {value}")
        elif key in _DTYPE and str(value).removeprefix("torch.") not in ("None", "auto", dtype):
            said.setdefault(f"--dtype {dtype} is what is traced", []).append(f"{name} = {value}")
        elif key in _WITHOUT_USE and value:
            said.setdefault(_WITHOUT_USE[key], []).append(name)
    if not said:
        return ()
    parts = (f"{', '.join(names)} ({why})" for why, names in said.items())
    return (f"not used of its config: {'; '.join(parts)}",)


def _entries(
    config: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """(tables, key, value) of all in a config but what is inside of what has no use."""
    for key, value in config.items():
        yield path, key, value
        if isinstance(value, dict) and key not in (*_WITHOUT_USE, *_STORAGE):
            yield from _entries(value, (*path, key))


# --- sizes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Table:
    """A config, or one inside of it."""

    path: str
    """``text_config.``, empty for the whole."""
    given: Mapping[str, Any]
    kind: Any
    """The class of transformers that reads it."""
    known: frozenset[str]
    """The fields that the class has."""

    def of(self, meaning: str) -> list[str]:
        """The fields that the class has for a size."""
        return [f"{self.path}{n}" for n in _SPELLINGS[meaning].split() if n in self.known]


def check_sizes(config: Mapping[str, Any], model: str) -> tuple[str, ...]:
    """What a user must know of a config's sizes: fields that its type does not have, defaults.

    Raises InputError for a size that no model has, and where a size is given under a name that the
    type does not read, so that its default would be traced.
    """
    tables = _tables(config, config_class(config, model))
    for table in tables:
        _refuse_absurd(table, model)
    sized: list[tuple[_Table, str]] = []
    unread: list[tuple[_Table, str]] = []
    for table in tables:
        for key, value in table.given.items():
            if _is_size(key, value):
                read = key in table.known or _is_read(table, key)
                (sized if read else unread).append((table, key))
    meant = {(t.path, key): _meant(t, key, tables, sized) for t, key in unread}
    lost = [
        (table, key) for table, key in unread if not sized or meant[table.path, key][0] in _MAIN
    ]
    if lost:
        kinds = sorted({table.kind.__name__ for table, _ in lost})
        instead = "; ".join(
            f"{' or '.join(read_for[:3])} for {table.path}{key}"
            for table, key in lost
            if (read_for := meant[table.path, key][1])
        ) or ", ".join(field for meaning in _MAIN for t in tables for field in t.of(meaning))
        raise InputError(
            f"{model}: {' and '.join(kinds)} does not read "
            f"{', '.join(f'{table.path}{key}' for table, key in lost)}, and would take defaults of "
            f"its own. It reads {instead or 'no sizes'}"
        )
    notes = []
    if unread:
        names: dict[str, list[str]] = {}
        for table, key in unread:
            said = f"{table.path}{key}"
            if read_for := meant[table.path, key][1]:
                said += f" (what it reads is {' or '.join(read_for[:3])})"
            names.setdefault(table.kind.__name__, []).append(said)
        parts = (f"{kind} has no {', '.join(some)}" for kind, some in names.items())
        notes.append(f"fields of its config that are not read: {'; '.join(parts)}")
    if not sized:
        notes += _defaults(tables)
    return tuple(notes)


def _tables(config: Mapping[str, Any], kind: Any, path: str = "") -> list[_Table]:
    """A config and those inside of it, the whole first."""
    default = _defaults_of(kind)
    complete = described(kind, config) or default
    known = {*default, *kind.attribute_map, *(field.name for field in fields(kind))}
    # What was set and is no field is an attribute all the same.
    known |= {key for key in complete if key not in config}
    found = [_Table(path, config, kind, frozenset(known))]
    for name in kind.sub_configs:
        inside = config.get(name)
        inside = inside if isinstance(inside, dict) else {}
        kinds = (inside.get("model_type"), (complete.get(name) or {}).get("model_type"))
        inner = next((k for k in kinds if k in CONFIG_MAPPING), None)
        if inner is not None:
            found += _tables(inside, CONFIG_MAPPING[inner], f"{path}{name}.")
    return found


def _is_size(key: str, value: Any) -> bool:
    """Whether a field of a config looks like a size that is given."""
    numbers = value if isinstance(value, list) else [value]
    if not numbers or any(type(number) is not int for number in numbers) or not any(numbers):
        return False
    if key in GenerationConfig._get_default_generation_params() or key.endswith(("_id", "_ids")):
        return False
    return key in _MEANING or bool(_LIKE_A_SIZE.search(key))


def _is_read(table: _Table, key: str) -> bool:
    """Whether a field that a class does not have makes a difference all the same."""
    without = {k: v for k, v in table.given.items() if k != key}
    value = table.given[key]  # which may be what is taken where it is not there
    larger = [n + 1 for n in value] if isinstance(value, list) else value + 1
    one, *others = (
        {k: v for k, v in described(table.kind, config).items() if k != key}
        for config in (table.given, without, {**table.given, key: larger})
    )
    if any(other != one for other in others):
        return True
    if table.kind.sub_configs:  # the code of a model of many parts speaks of those parts
        return False
    code = Path(inspect.getfile(table.kind)).parent.glob("modeling_*.py")
    asked = re.compile(rf"\bconfig(\.|, *[\"']){re.escape(key)}\b")
    return any(asked.search(file.read_text(encoding="utf-8")) for file in code)


def _meant(
    table: _Table, key: str, tables: Sequence[_Table], sized: Sequence[tuple[_Table, str]]
) -> tuple[str | None, list[str]]:
    """(what a field that is not read says, the fields that are read for it where not one is set)"""
    inside = [t for t in tables if t.path.startswith(table.path)]
    meaning = _MEANING.get(key)
    if meaning is None:
        near = get_close_matches(key, table.known, n=1, cutoff=0.85)
        found = [name for name in near if name not in table.given]
        return (_MEANING.get(found[0]), [table.path + found[0]]) if found else (None, [])
    if meaning in {_MEANING.get(name) for t, name in sized if t in inside}:
        return None, []
    read_for = [field for t in inside for field in t.of(meaning)]
    return (meaning, read_for) if read_for else (None, [])  # an encoder of images has no vocabulary


def _refuse_absurd(table: _Table, model: str) -> None:
    """Raise InputError for a number that is no size."""
    default = _defaults_of(table.kind)
    for key, value in table.given.items():
        meaning = _MEANING.get(key)
        if meaning is None or key not in table.known:
            continue
        for number in value if isinstance(value, list) else [value]:
            if type(number) is not int or number == default.get(key):
                continue
            if meaning in _MAIN and number < 1:
                thing = {LAYERS: "layer", HEADS: "head", VOCABULARY: "token in its vocabulary"}
                raise InputError(
                    f"{model}: {table.path}{key} is {number}: a model has one "
                    f"{thing.get(meaning, 'feature')} or more"
                )
            if number < 0 or (number == 0 and meaning != "experts"):  # a dense model has 0
                raise InputError(f"{model}: {table.path}{key} is {number}, which is no size")
            if meaning == LAYERS and number > MOST_LAYERS:
                raise InputError(
                    f"{model}: {table.path}{key} is {number:,}: a stack of more than "
                    f"{MOST_LAYERS:,} layers is not built"
                )


def _defaults(tables: Sequence[_Table]) -> Iterator[str]:
    """That a config which sets no size is traced with those of its type."""
    for table in tables:
        default = _defaults_of(table.kind)
        main = [
            next((n for n in _SPELLINGS[m].split() if type(default.get(n)) is int), None)
            for m in _MAIN
        ]
        if known := [f"{name} {default[name]:,}" for name in main if name]:
            yield (
                f"its config sets no size: they are the defaults of {table.kind.__name__} "
                f"({', '.join(known)})"
            )
            return
