from .robust import CharbonnierLoss as CharbonnierLoss
