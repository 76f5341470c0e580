"""CytoDL: from a table of microscope images to a trusted prediction service."""

__version__ = "0.1.0"
