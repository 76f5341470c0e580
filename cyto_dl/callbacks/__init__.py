"""What happens beside the training loop: checkpoints that survive a crash, random states, previews."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
