"""The commands: parse, compose, print."""
