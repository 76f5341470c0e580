"""How good a model is on images that it has not seen, measured through the predictor that serves it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
