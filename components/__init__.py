"""The steps of a pipeline, one a file: each is one import from `cyto_dl` and one call."""
