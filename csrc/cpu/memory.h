// Outputs of CPU kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace anifast {

// Linux is asked to back a large output by huge pages: it is written once, front to back, and the page faults of 4 KiB
// pages cost more than the writing itself (measured: benchmarks/LOG.md).
inline at::Tensor with_huge_pages(at::Tensor out) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kHugePage = uintptr_t(2) << 20;
    const auto address = reinterpret_cast<uintptr_t>(out.data_ptr());
    const uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = (address + out.nbytes()) / kHugePage * kHugePage;
    if (out.nbytes() >= 4 * kHugePage) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
    return out;
}

inline at::Tensor empty_like(const at::Tensor& x, at::MemoryFormat format) {
    return with_huge_pages(at::empty_like(x, format));
}

inline at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options, at::MemoryFormat format) {
    return with_huge_pages(at::empty(sizes, options.memory_format(format)));
}

}  // namespace anifast
