"""How weights and cached state are stored, as users name it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costmodels.checkpoints import storage_of
from costmodels.weights import cache_encoding, cache_in, load_weights, stored
from tracer.errors import InputError
from tracer.graph import OpGraph


def check_storage(weights: str | Path | None, kv_dtype: str | None) -> None:
    """Raise InputError for formats that are not known."""
    if weights is not None and not _is_file(weights):
        load_weights(str(weights))
    if kv_dtype is not None:
        cache_encoding(kv_dtype)


def in_storage(graph: OpGraph, weights: str | Path | None, kv_dtype: str | None) -> OpGraph:
    """A graph with weights and cached state in formats: ``Trace.stored``; costs are of before."""
    if weights is not None and _is_file(weights):
        graph = _as_file(graph, Path(weights))
    elif weights is not None:
        graph = stored(graph, load_weights(str(weights)))
    return graph if kv_dtype is None else cache_in(graph, kv_dtype)


def as_in_file(graph: OpGraph, file: Path) -> tuple[OpGraph, tuple[str, ...]]:
    """(a graph with weights as a model's own file has them, why they are not used)."""
    try:
        return _as_file(graph, file), ()
    except InputError as error:
        return graph, (f"the weights beside the config are not used: {error}",)


def _is_file(weights: str | Path) -> bool:
    from costmodels.weight_files import SUFFIXES

    return str(weights).endswith(SUFFIXES)


def _as_file(graph: OpGraph, file: Path) -> OpGraph:
    from costmodels.weight_files import stored_as

    return stored_as(graph, file)


def as_published(graph: OpGraph, config: Mapping[str, Any]) -> tuple[OpGraph, tuple[str, ...]]:
    """(a graph with weights as its config's checkpoint has them, what of that is not known)"""
    found, unknown = storage_of(config)
    return graph if found is None else stored(graph, found), (unknown,) if unknown else ()
