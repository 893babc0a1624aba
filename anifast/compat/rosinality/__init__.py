"""The package `op` of rosinality/stylegan2-pytorch and its descendants, over anifast's ops.

Its modules import one another relatively, because they run under the name of the package whose place they take.
"""

# upfirdn2d names a module and, for whoever imports it from the package, the function in it: the function comes last
from . import conv2d_gradfix
from .fused_act import FusedLeakyReLU, fused_leaky_relu
from .upfirdn2d import upfirdn2d

__all__ = ["FusedLeakyReLU", "conv2d_gradfix", "fused_leaky_relu", "upfirdn2d"]
