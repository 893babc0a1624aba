// bias_lrelu on the GPU: device code and launches. anifast/ops/bias_lrelu.py tells the three ops and their contract.
//
// Memory is [outer, channels, inner]. A row is a contiguous run of `length` elements that share something:
//
//   planes (inner > 1)   row (o, c), length = inner:     one bias for the row, noise along it
//   pixels (inner == 1)  row o,      length = channels:  one noise value for the row, bias along it
//
// Work moves in chunks of V elements: 16 bytes where sizes and addresses allow, else single elements. A thread block is
// `lanes` threads along a row by `groups` rows, and in one step each thread does one chunk. A thread keeps its channel
// (planes: blockIdx.x says which) or its columns (pixels), so it reads its bias once, sums its gradient in registers,
// and walks over the rest of the tensor by additions; blockIdx.y says which share of the steps is the block's.
// The loads of kBatch steps are issued before the first is used.
//
// Bytes moved per element of b bytes: forward 2b, + b with a residual, + 1/8 per plane of the mask, + b / channels of
// noise; backward and masked 2b + 1/8 per plane. Partial sums are under 1 %.
#include <algorithm>

#include "bias_lrelu.h"
#include "device.h"

namespace anifast {
namespace {

constexpr int kThreads = 256;
constexpr int kLongestBatch = 4;  // every Batch::kSteps divides it
// Blocks per multiprocessor in the whole grid: full waves for 2, 4 or 8 resident blocks, and few partial sums.
constexpr int kBlocksPerProcessor = 16;

// One launch: pointers, sizes and how the work is cut. Index is 32 bits wide where that is enough.
template <typename A, typename Index>
struct Task {
    const void *x, *bias, *noise, *strength, *residual;
    const uint8_t* saved;
    void* out;
    uint8_t* mask;
    A *partial_bias, *partial_strength;  // [splits, channels]; [splits, tiles]
    Index outer, channels, length, noise_rows;
    Index mask_stride, mask_plane;  // bytes of a row and of a plane
    Index row_steps;                // planes: steps along a row
    Index steps_per_split, steps;
    int lanes, lanes_log2, groups;
    bool bias_wide, strength_wide;
    Activation<A> act;
    A residual_gain;
};

// The position of a thread, from step to step.
template <int V, bool kPixels, typename Index>
struct Walk {
    int lane, group;
    Index channel;    // planes only
    Index outer;      // index into outer
    Index column;     // first element of the chunk in its row
    Index noise_row;  // outer % noise_rows
    bool inside;

    template <typename A>
    __device__ __forceinline__ explicit Walk(const Task<A, Index>& task) {
        lane = static_cast<int>(threadIdx.x) & (task.lanes - 1);
        group = static_cast<int>(threadIdx.x) >> task.lanes_log2;
        const Index step = static_cast<Index>(blockIdx.y) * task.steps_per_split;
        if constexpr (kPixels) {
            channel = 0;
            outer = step * task.groups + group;
            column = (static_cast<Index>(blockIdx.x) * task.lanes + lane) * V;
            inside = column < task.length;
        } else {
            channel = static_cast<Index>(blockIdx.x) * task.groups + group;
            outer = step / task.row_steps;
            column = ((step - outer * task.row_steps) * task.lanes + lane) * V;
            inside = channel < task.channels;
        }
        noise_row = outer % task.noise_rows;
    }

    template <typename A>
    __device__ __forceinline__ bool active(const Task<A, Index>& task) const {
        return inside && outer < task.outer && (kPixels || column < task.length);
    }

    template <typename A>
    __device__ __forceinline__ Index row(const Task<A, Index>& task) const {
        return kPixels ? outer : outer * task.channels + channel;
    }

    template <typename A>
    __device__ __forceinline__ void next(const Task<A, Index>& task) {
        if constexpr (kPixels) {
            outer += task.groups;
            noise_row += task.groups;
            while (noise_row >= task.noise_rows) noise_row -= task.noise_rows;
        } else {
            column += task.lanes * V;
            if (column >= task.row_steps * task.lanes * V) {
                column = lane * V;
                ++outer;
                if (++noise_row == task.noise_rows) noise_row = 0;
            }
        }
    }
};

// Where the chunks of one batch are, and the noise they take.
template <typename T, int V, bool kPixels, typename Index>
struct Batch {
    // 32 bytes on their way for each thread and operand keep the memory of a Hopper GPU busy at half its threads.
    static constexpr int kSteps = V == 1 && sizeof(Index) == 4 ? 4 : 2;
    bool active[kSteps];
    Index at[kSteps], noise_at[kSteps], byte[kSteps];

    template <typename A>
    __device__ __forceinline__ void take(Walk<V, kPixels, Index>& walk, const Task<A, Index>& task) {
#pragma unroll
        for (int u = 0; u < kSteps; ++u) {
            active[u] = walk.active(task);
            const Index row = active[u] ? walk.row(task) : 0;
            at[u] = row * task.length + walk.column;
            noise_at[u] = kPixels ? walk.noise_row : walk.noise_row * task.length + walk.column;
            byte[u] = row * task.mask_stride + walk.column / 8;
            walk.next(task);
        }
    }
};

// The noise of a chunk: along the row of a plane, one value for a pixel.
template <typename T, int V, bool kPixels>
using Noise = Chunk<T, kPixels ? 1 : V>;

// What tells f for a chunk: bits of the elements where f is the gain, and of those not clamped.
struct Saved {
    unsigned positive, kept;

    template <typename A, typename Index>
    __device__ __forceinline__ void load(const Task<A, Index>& task, Index byte) {
        positive = task.saved ? task.saved[byte] : kFullWarp;
        kept = task.act.clamped ? task.saved[task.mask_plane + byte] : kFullWarp;
    }

    // `shift` is the first element's bit in a byte of the mask.
    template <int V, typename A, typename Index>
    __device__ __forceinline__ void apply(const Task<A, Index>& task, int shift, A (&value)[V]) const {
        const unsigned up = positive >> shift, in = kept >> shift;
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const A scaled = value[i] * ((up >> i) & 1 ? task.act.gain : task.act.negative_gain);
            value[i] = (in >> i) & 1 ? scaled : A(0);  // also where the value is inf or NaN, as torch.clamp has it
        }
    }
};

// forward (kMasked false) and masked: f * (x + strength * noise + bias), f from the value itself or from what was
// saved.
template <typename T, int V, bool kPixels, bool kMasked, typename Index>
__global__ void __launch_bounds__(kThreads) bias_lrelu_kernel(const Task<Accumulate<T>, Index> task) {
    using A = Accumulate<T>;
    Batch<T, V, kPixels, Index> batch;
    constexpr int kSteps = batch.kSteps;
    Walk<V, kPixels, Index> walk(task);
    const int shift = walk.column % 8;
    A bias[kPixels ? V : 1] = {};
    if (task.bias && walk.inside) {
#pragma unroll
        for (int i = 0; i < (kPixels ? V : 1); ++i) {
            bias[i] = load_widened<T>(task.bias, task.bias_wide, kPixels ? walk.column + i : walk.channel);
        }
    }
    const A strength = task.strength ? load_widened<T>(task.strength, task.strength_wide, 0) : A(1);

    for (Index done = 0; done < task.steps_per_split; done += kSteps) {
        batch.take(walk, task);
        Chunk<T, V> x[kSteps], residual[kSteps];
        Noise<T, V, kPixels> noise[kSteps];
        Saved saved[kSteps];
#pragma unroll
        for (int u = 0; u < kSteps; ++u) {
            if (batch.active[u]) x[u] = load_chunk<T, V>(task.x, batch.at[u]);
        }
        if (task.noise) {
#pragma unroll
            for (int u = 0; u < kSteps; ++u) {
                if (batch.active[u]) noise[u] = load_chunk<T, kPixels ? 1 : V>(task.noise, batch.noise_at[u]);
            }
        }
        if (kMasked) {
#pragma unroll
            for (int u = 0; u < kSteps; ++u) {
                if (batch.active[u]) saved[u].load(task, batch.byte[u]);
            }
        } else if (task.residual) {
#pragma unroll
            for (int u = 0; u < kSteps; ++u) {
                if (batch.active[u]) residual[u] = load_chunk<T, V>(task.residual, batch.at[u]);
            }
        }
#pragma unroll
        for (int u = 0; u < kSteps; ++u) {
            unsigned positive = 0, kept = 0;
            if (batch.active[u]) {
                A value[V];
#pragma unroll
                for (int i = 0; i < V; ++i) value[i] = element(x[u], i) + bias[kPixels ? i : 0];
                if (task.noise) {
#pragma unroll
                    for (int i = 0; i < V; ++i) value[i] += strength * element(noise[u], kPixels ? 0 : i);
                }
                if (kMasked) {
                    saved[u].apply(task, shift, value);
                } else {
                    task.act.apply(value, positive, kept);
                    if (task.residual) {
#pragma unroll
                        for (int i = 0; i < V; ++i) value[i] += task.residual_gain * element(residual[u], i);
                    }
                }
                Chunk<T, V> out;
#pragma unroll
                for (int i = 0; i < V; ++i) narrow(value[i], out.value[i]);
                store_chunk(task.out, batch.at[u], out);
            }
            if (!kMasked && task.mask) {
                store_bits<V>(task.mask + batch.byte[u], positive, shift, batch.active[u]);
                if (task.act.clamped) {
                    store_bits<V>(task.mask + task.mask_plane + batch.byte[u], kept, shift, batch.active[u]);
                }
            }
        }
    }
}

// backward: gx = f * g, and with it this block's parts of sum gx per channel and of sum gx * noise.
template <typename T, int V, bool kPixels, typename Index>
__global__ void __launch_bounds__(kThreads) bias_lrelu_backward_kernel(const Task<Accumulate<T>, Index> task) {
    using A = Accumulate<T>;
    constexpr int kSums = kPixels ? V : 1;
    ANIFAST_SHARED(A, shared, kThreads * kSums);
    Batch<T, V, kPixels, Index> batch;
    constexpr int kSteps = batch.kSteps;
    Walk<V, kPixels, Index> walk(task);
    const Index first_column = walk.column;
    const int shift = walk.column % 8;
    A sum[kSums] = {}, strength_sum = 0;

    for (Index done = 0; done < task.steps_per_split; done += kSteps) {
        batch.take(walk, task);
        Chunk<T, V> grad[kSteps];
        Noise<T, V, kPixels> noise[kSteps];
        Saved saved[kSteps];
#pragma unroll
        for (int u = 0; u < kSteps; ++u) {
            if (batch.active[u]) {
                grad[u] = load_chunk<T, V>(task.x, batch.at[u]);
                saved[u].load(task, batch.byte[u]);
            }
        }
        if (task.partial_strength) {
#pragma unroll
            for (int u = 0; u < kSteps; ++u) {
                if (batch.active[u]) noise[u] = load_chunk<T, kPixels ? 1 : V>(task.noise, batch.noise_at[u]);
            }
        }
#pragma unroll
        for (int u = 0; u < kSteps; ++u) {
            if (!batch.active[u]) continue;
            A value[V];
#pragma unroll
            for (int i = 0; i < V; ++i) value[i] = element(grad[u], i);
            saved[u].apply(task, shift, value);
            Chunk<T, V> out;
#pragma unroll
            for (int i = 0; i < V; ++i) {
                narrow(value[i], out.value[i]);
                sum[kPixels ? i : 0] += value[i];
            }
            store_chunk(task.out, batch.at[u], out);
            if (task.partial_strength) {
#pragma unroll
                for (int i = 0; i < V; ++i) strength_sum += value[i] * element(noise[u], kPixels ? 0 : i);
            }
        }
    }

    const int thread = static_cast<int>(threadIdx.x);
    const Index split = blockIdx.y;
    if (task.partial_bias && kPixels) {
        // over the groups, whose threads of one lane hold the same columns
#pragma unroll
        for (int i = 0; i < kSums; ++i) shared[i * kThreads + thread] = sum[i];
        __syncthreads();
        for (int offset = task.groups / 2; offset > 0; offset /= 2) {
            if (walk.group < offset) {
#pragma unroll
                for (int i = 0; i < kSums; ++i) {
                    const int mine = i * kThreads + thread;
                    shared[mine] += shared[mine + offset * task.lanes];
                }
            }
            __syncthreads();
        }
        if (walk.group == 0 && walk.inside) {
#pragma unroll
            for (int i = 0; i < kSums; ++i) {
                task.partial_bias[split * task.channels + first_column + i] = shared[i * kThreads + thread];
            }
        }
        __syncthreads();
    } else if (task.partial_bias) {
        const A total = sum_over_lanes(sum[0], task.lanes, shared);
        if (walk.lane == 0 && walk.inside) task.partial_bias[split * task.channels + walk.channel] = total;
    }
    if (task.partial_strength) {
        const A total = sum_over_lanes(strength_sum, kThreads, shared);
        if (thread == 0) task.partial_strength[split * gridDim.x + blockIdx.x] = total;
    }
}

// The second stage: partial sums in a fixed order. The first blocks do 32 channels each, the last one the strength.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    bias_lrelu_sums_kernel(const A* partial_bias, const A* partial_strength, A* bias, A* strength, int64_t channels,
                           int64_t splits, int64_t strength_parts) {
    constexpr int kRows = kThreads / 32;
    ANIFAST_SHARED(A, shared, kThreads);
    const int thread = static_cast<int>(threadIdx.x);
    A sum = 0;
    if (strength && blockIdx.x == gridDim.x - 1) {
        for (int64_t i = thread; i < strength_parts; i += kThreads) sum += partial_strength[i];
        sum = sum_over_lanes(sum, kThreads, shared);
        if (thread == 0) *strength = sum;
        return;
    }
    const int64_t channel = static_cast<int64_t>(blockIdx.x) * 32 + thread % 32;
    if (channel < channels) {
        for (int64_t split = thread / 32; split < splits; split += kRows)
            sum += partial_bias[split * channels + channel];
    }
    shared[thread] = sum;
    __syncthreads();
    if (thread < 32 && channel < channels) {
        for (int row = 1; row < kRows; ++row) sum += shared[row * 32 + thread];
        bias[channel] = sum;
    }
}

// How the work is cut: by the sizes and the number of multiprocessors alone, so that sums are always the same.
struct Plan {
    bool pixels, wide_index;
    int vector;  // elements of a chunk
    int lanes, groups;
    int64_t length, row_steps, steps, steps_per_split, tiles, splits;
};

Plan make_plan(const BiasLreluParams& params) {
    Plan plan;
    plan.pixels = params.inner == 1;
    plan.length = plan.pixels ? params.channels : params.inner;
    plan.wide_index = params.outer * params.channels * params.inner >= ANIFAST_WIDE_INDEX_FROM;
    const int vector = 16 / element_size(params.dtype);
    const bool fits = plan.length % vector == 0 && aligned(params.x, 16) && aligned(params.out, 16) &&
                      aligned(params.residual, 16) && (plan.pixels || aligned(params.noise, 16));
    plan.vector = fits ? vector : 1;
    const int64_t chunks = divide_up(plan.length, plan.vector);
    plan.lanes = 8 / plan.vector;  // so that the threads that share a byte of the mask are neighbours in one row
    while (plan.lanes < kThreads && plan.lanes < chunks) plan.lanes *= 2;
    plan.groups = kThreads / plan.lanes;
    if (plan.pixels) {
        plan.tiles = divide_up(chunks, plan.lanes);
        plan.row_steps = 1;
        plan.steps = divide_up(params.outer, plan.groups);
    } else {
        plan.tiles = divide_up(params.channels, plan.groups);
        plan.row_steps = divide_up(chunks, plan.lanes);
        plan.steps = params.outer * plan.row_steps;
    }
    const int64_t wanted = std::max<int64_t>(1, int64_t{kBlocksPerProcessor} * params.processors / plan.tiles);
    plan.steps_per_split = divide_up(divide_up(plan.steps, wanted), kLongestBatch) * kLongestBatch;
    plan.splits = divide_up(plan.steps, plan.steps_per_split);
    return plan;
}

template <typename A, typename Index>
Task<A, Index> make_task(const BiasLreluParams& params, const Plan& plan) {
    Task<A, Index> task{};
    task.x = params.x;
    task.bias = params.bias;
    task.noise = params.noise;
    task.strength = params.strength;
    task.residual = params.residual;
    task.saved = params.saved;
    task.out = params.out;
    task.mask = params.mask;
    task.partial_bias = params.sums_bias ? static_cast<A*>(params.partials) : nullptr;
    if (params.sums_strength) {
        task.partial_strength =
            static_cast<A*>(params.partials) + (params.sums_bias ? plan.splits * params.channels : 0);
    }
    task.outer = static_cast<Index>(params.outer);
    task.channels = static_cast<Index>(params.channels);
    task.length = static_cast<Index>(plan.length);
    task.noise_rows = static_cast<Index>(std::max<int64_t>(1, params.noise_rows));
    const int64_t stride = divide_up(plan.length, 8);
    task.mask_stride = static_cast<Index>(stride);
    task.mask_plane = static_cast<Index>(stride * params.outer * (plan.pixels ? 1 : params.channels));
    task.row_steps = static_cast<Index>(plan.row_steps);
    task.steps_per_split = static_cast<Index>(plan.steps_per_split);
    task.steps = static_cast<Index>(plan.steps);
    task.lanes = plan.lanes;
    while (1 << task.lanes_log2 < plan.lanes) ++task.lanes_log2;
    task.groups = plan.groups;
    task.act.clamped = params.clamped;
    task.bias_wide = params.bias_wide;
    task.strength_wide = params.strength_wide;
    task.act.gain = static_cast<A>(params.gain);
    task.act.negative_gain = static_cast<A>(params.gain * params.slope);
    task.act.clamp = static_cast<A>(params.clamp);
    task.residual_gain = static_cast<A>(params.residual_gain);
    return task;
}

enum class Op { forward, masked, backward };

template <Op op>
cudaError_t launch(const BiasLreluParams& params, cudaStream_t stream) {
    const Plan plan = make_plan(params);
    const dim3 grid(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(plan.splits));
    return with_type(params.dtype, [&](auto zero) {
        return with_bool(plan.vector > 1, [&](auto vector) {
            return with_bool(plan.pixels, [&](auto pixels) {
                return with_bool(plan.wide_index, [&](auto wide) {
                    using T = decltype(zero);
                    using Index = std::conditional_t<decltype(wide)::value, int64_t, uint32_t>;
                    constexpr int kVector = decltype(vector)::value ? 16 / sizeof(T) : 1;
                    constexpr bool kPixels = decltype(pixels)::value;
                    const auto task = make_task<Accumulate<T>, Index>(params, plan);
                    if constexpr (op == Op::backward) {
                        const auto kernel = &bias_lrelu_backward_kernel<T, kVector, kPixels, Index>;
                        ANIFAST_LAUNCH(kernel, grid, kThreads, stream, task);
                        return cudaGetLastError();
                    } else {
                        const auto kernel = &bias_lrelu_kernel<T, kVector, kPixels, op == Op::masked, Index>;
                        ANIFAST_LAUNCH(kernel, grid, kThreads, stream, task);
                        return cudaGetLastError();
                    }
                });
            });
        });
    });
}

template <typename A>
cudaError_t sums_launch(const BiasLreluParams& params, cudaStream_t stream) {
    const Plan plan = make_plan(params);
    const auto task = make_task<A, int64_t>(params, plan);
    const int64_t blocks = (params.sums_bias ? divide_up(params.channels, 32) : 0) + (params.sums_strength ? 1 : 0);
    const auto kernel = &bias_lrelu_sums_kernel<A>;
    ANIFAST_LAUNCH(kernel, dim3(static_cast<unsigned>(blocks)), kThreads, stream, task.partial_bias,
                   task.partial_strength, static_cast<A*>(params.sums_bias), static_cast<A*>(params.sums_strength),
                   params.channels, plan.splits, plan.splits * plan.tiles);
    return cudaGetLastError();
}

}  // namespace

int64_t bias_lrelu_partials(const BiasLreluParams& params) {
    const Plan plan = make_plan(params);
    return plan.splits * ((params.sums_bias ? params.channels : 0) + (params.sums_strength ? plan.tiles : 0));
}

cudaError_t bias_lrelu_launch(const BiasLreluParams& params, cudaStream_t stream) {
    return launch<Op::forward>(params, stream);
}

cudaError_t bias_lrelu_masked_launch(const BiasLreluParams& params, cudaStream_t stream) {
    return launch<Op::masked>(params, stream);
}

cudaError_t bias_lrelu_backward_launch(const BiasLreluParams& params, cudaStream_t stream) {
    const cudaError_t error = launch<Op::backward>(params, stream);
    if (error != cudaSuccess || !(params.sums_bias || params.sums_strength)) return error;
    return params.dtype == DType::float64 ? sums_launch<double>(params, stream) : sums_launch<float>(params, stream);
}

}  // namespace anifast
