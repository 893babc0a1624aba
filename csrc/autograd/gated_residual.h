// gated_residual for callers from Python.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace anifast {

// The op where its arguments are as most calls have them: fitting sizes and types, a dense x. Else nothing, and
// anifast/ops/gated_residual.py casts what may be cast or says what is wrong.
std::optional<at::Tensor> gated_residual_if_plain(const at::Tensor& x, const at::Tensor& shortcut,
                                                  const at::Tensor& gate, const at::Tensor& shortcut_gate,
                                                  const std::optional<at::Tensor>& slope,
                                                  const std::optional<at::Tensor>& bias, double mean, double std,
                                                  int64_t up, int64_t crop);

}  // namespace anifast
