"""Local paths and s3:// addresses: write atomically, bring remote files near, publish files for others."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
