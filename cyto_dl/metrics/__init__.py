"""Measures of a prediction against its target: one value per image, then the mean over images."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
