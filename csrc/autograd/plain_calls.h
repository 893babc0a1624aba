// What the short ways of ops from Python share: tests whether arguments are as most calls have them.
#pragma once

#include <ATen/core/Tensor.h>

namespace anifast {

inline bool is_half(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

inline bool is_supported(at::ScalarType type) { return is_half(type) || type == at::kFloat || type == at::kDouble; }

// Whether a parameter may stand beside x as it is: x's dtype, or float32 beside a half type.
inline bool fits(const at::Tensor& value, const at::Tensor& x, bool float32_too) {
    const auto type = value.scalar_type();
    return value.device() == x.device() &&
           (type == x.scalar_type() || (float32_too && type == at::kFloat && is_half(x.scalar_type())));
}

}  // namespace anifast
