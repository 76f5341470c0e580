"""Measures of a prediction against its target: per image and then the mean over images, or pooled over images."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
