// What host and device code of CUDA ops both know: the element types, and sizes. Plain C++.
#pragma once

#include <cstdint>

namespace anifast {

enum class DType : int { float32, float64, float16, bfloat16 };

inline int element_size(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace anifast
