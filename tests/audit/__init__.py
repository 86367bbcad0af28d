"""An audit of the tables by a second accounting."""
