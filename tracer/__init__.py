"""From a model's config to its op graph: the bottom layer of cutedge."""
