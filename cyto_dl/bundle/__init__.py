"""The bundle: a trained model as a folder that describes itself, is safe to load and proves that it still works."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
