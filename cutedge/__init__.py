"""What it costs to split a model between two machines."""
