"""Losses that torch and MONAI lack. Everything else is named in a configuration as it is: `torch.nn.MSELoss`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
