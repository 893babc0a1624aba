"""The fused ops: one public function each, with several backends behind it."""

from anifast.ops.bias_lrelu import bias_lrelu
from anifast.ops.domain_norm import domain_norm
from anifast.ops.gated_residual import gated_residual
from anifast.ops.gram import gram
from anifast.ops.instance_norm import instance_norm
from anifast.ops.lpips_layer import lpips_layer
from anifast.ops.modulated_conv2d import modulated_conv2d
from anifast.ops.upfirdn2d import upfirdn2d

__all__ = [
    "bias_lrelu",
    "domain_norm",
    "gated_residual",
    "gram",
    "instance_norm",
    "lpips_layer",
    "modulated_conv2d",
    "upfirdn2d",
]
