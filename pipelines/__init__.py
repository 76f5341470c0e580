"""Pipelines of the components, and the command that lists, compiles, runs and submits them: `python -m pipelines`."""
