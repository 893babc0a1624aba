// The Python module anifast._C: loading it registers the kernels with the dispatcher. It tells what it is, and has the
// short ways to ops that are called often on small tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "autograd/bias_lrelu.h"
#include "autograd/gated_residual.h"
#include "autograd/gradients.h"
#include "autograd/upfirdn2d.h"
#include "common/vec.h"

#ifndef ANIFAST_CUDA
#define ANIFAST_CUDA 0
#endif
#ifndef ANIFAST_CUDA_ARCHS
#define ANIFAST_CUDA_ARCHS ""
#endif

namespace {

const char* isa() {
#if defined(ANIFAST_AVX512)
    return "avx512";
#elif defined(__AVX2__)
    return "avx2";
#else
    return "default";
#endif
}

pybind11::dict build_info() {
    pybind11::dict info;
    info["torch"] = TORCH_VERSION;
    info["isa"] = isa();
    info["compiler"] = __VERSION__;
    info["cuda"] = bool(ANIFAST_CUDA);
    info["cuda_archs"] = ANIFAST_CUDA_ARCHS;
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of anifast; importing this registers them with PyTorch's dispatcher.";
    module.def("build_info", &build_info,
               "What this extension was built with: torch, isa, compiler, cuda, cuda_archs.");
    module.def("transforms_are_active", &anifast::transforms_are_active,
               "Whether a transform of torch.func (grad, vjp, jvp, vmap) is going on in this thread.");
    module.def("bias_lrelu_if_plain", torch::wrap_pybind_function_no_gil(&anifast::bias_lrelu_if_plain),
               "bias_lrelu(x, bias, dim, noise, strength, slope, gain, clamp, residual, residual_gain), or None where "
               "an argument needs a cast or is wrong.");
    module.def("gated_residual_if_plain", torch::wrap_pybind_function_no_gil(&anifast::gated_residual_if_plain),
               "gated_residual(x, shortcut, gate, shortcut_gate, slope, bias, mean, std, up, crop), or None where an "
               "argument needs a cast or is wrong.");
    module.def(
        "upfirdn2d_if_plain", torch::wrap_pybind_function_no_gil(&anifast::upfirdn2d_if_plain),
        "upfirdn2d(x, kernel, up, down, padding, flip, gain, add, scale, bias, noise, noise_strength, act, slope, "
        "act_gain, clamp), or None where an argument needs a cast, a second pass, or is wrong.");
}
