from .convolution import ConvolutionHead as ConvolutionHead
from .denoising import DenoisingHead as DenoisingHead
from .identity import IdentityHead as IdentityHead
from .instance import InstanceHead as InstanceHead
from .projection import ProjectionHead as ProjectionHead
from .upsampling import UpsamplingHead as UpsamplingHead
