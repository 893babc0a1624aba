// The real host code of upfirdn2d on the GPU, registered for CPU tensors under a name of its own (`<op>_played`).
#include <torch/library.h>

// As in played_bias_lrelu.cpp: not for CUDA tensors.
#pragma push_macro("TORCH_LIBRARY_IMPL")
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, key, m) [[maybe_unused]] static void on_##key(torch::Library& m)
#include "cuda/upfirdn2d.cpp"
#pragma pop_macro("TORCH_LIBRARY_IMPL")

namespace anifast {

TORCH_LIBRARY_IMPL(anifast, CPU, m) { m.impl("upfirdn2d_played", &upfirdn2d_cuda); }

}  // namespace anifast
