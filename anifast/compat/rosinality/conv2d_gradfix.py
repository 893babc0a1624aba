"""`op.conv2d_gradfix`: convolutions, and backward passes without the gradients of their weights."""

from __future__ import annotations

from anifast.compat.convolution import Convolutions

#: Whether `no_weight_gradients` concerns the convolutions from here on.
enabled = True
#: Whether backward passes leave the weights out now.
weight_gradients_disabled = False

_convolutions = Convolutions(globals())
conv2d = _convolutions.conv2d
conv_transpose2d = _convolutions.conv_transpose2d
no_weight_gradients = _convolutions.no_weight_gradients
