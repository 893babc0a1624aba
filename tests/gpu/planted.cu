// One write behind the end of an array, to show that compute-sanitizer finds such on this machine.
#include <cuda_runtime.h>

namespace anifast {
__global__ void planted_kernel(float* out) { out[threadIdx.x] = 1.0f; }
}  // namespace anifast

int main() {
    float* out = nullptr;
    if (cudaMalloc(&out, 31 * sizeof(float)) != cudaSuccess) return 1;
    anifast::planted_kernel<<<1, 32>>>(out);
    return cudaDeviceSynchronize() == cudaSuccess ? 0 : 2;
}
