"""How weights and cached state are stored, as users name it."""

from pathlib import Path

from costmodels.weights import cache_encoding, cache_in, load_weights, stored
from tracer.graph import OpGraph


def check_storage(weights: str | Path | None, kv_dtype: str | None) -> None:
    """Raise InputError for formats that are not known."""
    if weights is not None:
        load_weights(str(weights))
    if kv_dtype is not None:
        cache_encoding(kv_dtype)


def in_storage(graph: OpGraph, weights: str | Path | None, kv_dtype: str | None) -> OpGraph:
    """A graph with weights and cached state in formats: ``Trace.stored``; costs are of before."""
    if weights is not None:
        graph = stored(graph, load_weights(str(weights)))
    return graph if kv_dtype is None else cache_in(graph, kv_dtype)
