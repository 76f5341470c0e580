from .combination import WeightedSum as WeightedSum
from .foreground import ForegroundMSELoss as ForegroundMSELoss
from .gradient import GradientLoss as GradientLoss
from .instance import InstanceLoss as InstanceLoss
from .masked import MaskedMSELoss as MaskedMSELoss
from .robust import CharbonnierLoss as CharbonnierLoss
