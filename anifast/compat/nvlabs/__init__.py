"""The package `torch_utils.ops` of NVlabs' StyleGAN2-ADA and StyleGAN3 and their descendants, over anifast's ops.

Its modules import one another relatively, because they run under the name of the package whose place they take.
"""

from . import bias_act, conv2d_gradfix, conv2d_resample, fma, grid_sample_gradfix, upfirdn2d

__all__ = ["bias_act", "conv2d_gradfix", "conv2d_resample", "fma", "grid_sample_gradfix", "upfirdn2d"]
