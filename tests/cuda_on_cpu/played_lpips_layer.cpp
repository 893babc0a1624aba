// The real host code of lpips_layer on the GPU, registered for CPU tensors under names of its own (`<op>_played`).
#include <torch/library.h>

// As in played_bias_lrelu.cpp: not for CUDA tensors.
#pragma push_macro("TORCH_LIBRARY_IMPL")
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, key, m) [[maybe_unused]] static void on_##key(torch::Library& m)
#include "cuda/lpips_layer.cpp"
#pragma pop_macro("TORCH_LIBRARY_IMPL")

namespace anifast {

TORCH_LIBRARY_IMPL(anifast, CPU, m) {
    m.impl("lpips_layer_played", &lpips_layer_cuda);
    m.impl("lpips_layer_backward_played", &lpips_layer_backward_cuda);
}

}  // namespace anifast
