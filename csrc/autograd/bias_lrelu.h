// bias_lrelu for callers from Python.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace anifast {

// The op where its arguments are as most calls have them: fitting sizes and types, a dense x. Else nothing, and
// anifast/ops/bias_lrelu.py casts what may be cast or says what is wrong. On a small tensor its checks and the
// dispatcher's Python binding together take longer than everything else.
std::optional<at::Tensor> bias_lrelu_if_plain(const at::Tensor& x, const std::optional<at::Tensor>& bias, int64_t dim,
                                              const std::optional<at::Tensor>& noise,
                                              const std::optional<at::Tensor>& strength, double slope, double gain,
                                              std::optional<double> clamp, const std::optional<at::Tensor>& residual,
                                              double residual_gain);

}  // namespace anifast
