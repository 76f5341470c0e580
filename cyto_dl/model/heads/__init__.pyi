from .convolution import ConvolutionHead as ConvolutionHead
from .identity import IdentityHead as IdentityHead
from .projection import ProjectionHead as ProjectionHead
from .upsampling import UpsamplingHead as UpsamplingHead
