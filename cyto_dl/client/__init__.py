"""Ask a server of `python -m serving`: numpy in, numpy out, without torch and without KServe."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
