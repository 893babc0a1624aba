// The real host code of modulated_conv2d's passes on the GPU, registered for CPU tensors under names of their own.
#include <torch/library.h>

// As in played_bias_lrelu.cpp: not for CUDA tensors.
#pragma push_macro("TORCH_LIBRARY_IMPL")
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, key, m) [[maybe_unused]] static void on_##key(torch::Library& m)
#include "cuda/modulated_conv2d.cpp"
#pragma pop_macro("TORCH_LIBRARY_IMPL")

namespace anifast {

TORCH_LIBRARY_IMPL(anifast, CPU, m) {
    m.impl("modulated_conv2d_epilogue_grad_played", &epilogue_grad_cuda);
    m.impl("modulated_conv2d_style_grad_played", &style_grad_cuda);
}

}  // namespace anifast
