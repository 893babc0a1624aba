// upfirdn2d for callers from Python.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <variant>
#include <vector>

namespace anifast {

// One number for all, or several.
using Numbers = std::variant<int64_t, std::vector<int64_t>>;

// The op where its arguments are as most calls have them: fitting sizes and types, a dense x, and a mask that fits
// where one is needed. Else nothing, and anifast/ops/upfirdn2d.py goes the long way or says what is wrong.
std::optional<at::Tensor> upfirdn2d_if_plain(
    const at::Tensor& x, const at::Tensor& kernel, const Numbers& up, const Numbers& down, const Numbers& padding,
    bool flip, double gain, const std::optional<at::Tensor>& add, const std::optional<at::Tensor>& scale,
    const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& noise,
    const std::optional<at::Tensor>& strength, bool act, double slope, double act_gain, std::optional<double> clamp);

}  // namespace anifast
