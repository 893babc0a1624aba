// The two memory layouts that every op keeps.
#pragma once

#include <ATen/core/Tensor.h>

namespace anifast {

// Whether x lies in memory as N,H,W,C (or N,D,H,W,C) and not also as N,C,H,W.
inline bool is_channels_last(const at::Tensor& x) {
    return !x.is_contiguous() && ((x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast)) ||
                                  (x.dim() == 5 && x.is_contiguous(at::MemoryFormat::ChannelsLast3d)));
}

inline at::MemoryFormat memory_format(int64_t rank, bool channels_last) {
    if (!channels_last) return at::MemoryFormat::Contiguous;
    return rank == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
}

}  // namespace anifast
