// The Python module anifast._C: loading it registers the kernels with the dispatcher; it itself only tells what it is.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#ifndef ANIFAST_CUDA
#define ANIFAST_CUDA 0
#endif
#ifndef ANIFAST_CUDA_ARCHS
#define ANIFAST_CUDA_ARCHS ""
#endif

namespace {

const char* isa() {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
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
}
