from .defaults import default_metrics as default_metrics
from .intensity import PSNR as PSNR
from .intensity import R2 as R2
from .intensity import Pearson as Pearson
from .overlap import Dice as Dice
from .overlap import IoU as IoU
from .per_image import PerImageMetric as PerImageMetric
from .similarity import SSIM as SSIM
