// The real host code of bias_lrelu on the GPU, registered for CPU tensors under names of its own (`<op>_played`).
#include <torch/library.h>

// The file's own registration, for CUDA tensors, must not happen: a built extension may have made it already.
#pragma push_macro("TORCH_LIBRARY_IMPL")
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, key, m) [[maybe_unused]] static void on_##key(torch::Library& m)
#include "cuda/bias_lrelu.cpp"
#pragma pop_macro("TORCH_LIBRARY_IMPL")

namespace anifast {

TORCH_LIBRARY_IMPL(anifast, CPU, m) {
    m.impl("bias_lrelu_played", &bias_lrelu_cuda);
    m.impl("bias_lrelu_backward_played", &bias_lrelu_backward_cuda);
    m.impl("bias_lrelu_masked_played", &bias_lrelu_masked_cuda);
}

}  // namespace anifast
