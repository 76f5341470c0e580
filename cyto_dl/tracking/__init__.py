"""MLflow: runs that survive their process and its outages, and the registry of a group's models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
