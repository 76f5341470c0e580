"""The functions that a configuration names under `cyto_dl.model.utils.postprocessing`."""
