"""Many points at once: models over sizes, policies, links and devices, from formulas."""
