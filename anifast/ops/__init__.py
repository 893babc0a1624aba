"""The fused ops: one public function each, with several backends behind it."""

from anifast.ops.bias_lrelu import bias_lrelu

__all__ = ["bias_lrelu"]
