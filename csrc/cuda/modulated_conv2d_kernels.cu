// The gradient passes of modulated_conv2d on the GPU: device code and launches. anifast/ops/modulated_conv2d.py tells
// the formulas of the two.
//
// Each pass reads two maps, writes one, and sums over every plane, an (image, channel):
//
//   planes (N,C,H,W)          a plane is a run of memory: `lanes` threads along it, `groups` planes in a block
//   pixels (channels last)    a pixel's channels are a run: `lanes` threads along it, `groups` pixels in a block
//
// Work moves in chunks of V elements: 16 bytes where sizes and addresses allow, else single elements; in one step each
// thread does one chunk. A thread keeps its plane, or its columns of pixels of one image, so it reads what belongs to
// the channel once and sums in registers. A plane, or the pixels of an image, are split among blocks; each block leaves
// its sums, and a second kernel adds them in a fixed order. The loads of kBatch steps are issued before the first is
// used.
//
// Bytes moved per element of b bytes: 3b, + b / channels of noise. Partial sums are a few per cent.
#include <algorithm>

#include "device.h"
#include "modulated_conv2d.h"

namespace anifast {
namespace {

constexpr int kThreads = 256;
constexpr int kLongestBatch = 4;  // every kBatch divides it
// Steps of a block where there are as many: below it, partial sums would be too much beside the maps.
constexpr int kFewestSteps = 8;
// Blocks per multiprocessor in the whole grid: full waves for 2, 4 or 8 resident blocks, and few partial sums.
constexpr int kBlocksPerProcessor = 16;

// One launch: pointers, sizes and how the work is cut. Index is 32 bits wide where that is enough.
template <typename A, typename Index>
struct Task {
    const void *grad, *map, *factor, *bias, *noise, *strength;
    void* result;
    A *partial_factor, *partial_bias, *partial_strength;  // [splits, planes] twice; [blocks]
    Index channels, length, planes;
    Index tiles, splits, steps;  // pixels: blocks along a pixel; blocks that share a plane or image; steps of a block
    int lanes, lanes_log2, groups;
    bool clamped, shared_noise, factor_wide, bias_wide, strength_wide;
    A gain, negative_gain, inverse, negative_inverse, clamp;
};

// Sums of a block's planes to their places in `to`: over the lanes of one plane, or, where threads of one lane hold the
// same kChannels channels, over the groups. All threads of the block must call it; `shared` holds kChannels a thread.
template <bool kPixels, int kChannels, typename A>
__device__ __forceinline__ void store_sums(const A (&sum)[kChannels], A* to, int lanes, int groups, bool inside,
                                           A* shared) {
    const int thread = static_cast<int>(threadIdx.x);
    if constexpr (kPixels) {
#pragma unroll
        for (int i = 0; i < kChannels; ++i) shared[i * kThreads + thread] = sum[i];
        __syncthreads();
        for (int offset = groups / 2; offset > 0; offset /= 2) {
            if (thread < offset * lanes) {
#pragma unroll
                for (int i = 0; i < kChannels; ++i) {
                    shared[i * kThreads + thread] += shared[i * kThreads + thread + offset * lanes];
                }
            }
            __syncthreads();
        }
        if (thread < lanes && inside) {
#pragma unroll
            for (int i = 0; i < kChannels; ++i) to[i] = shared[i * kThreads + thread];
        }
        __syncthreads();  // `shared` may be written again at once
    } else {
        const A total = sum_over_lanes(sum[0], lanes, shared);
        if ((thread & (lanes - 1)) == 0 && inside) *to = total;
    }
}

// epilogue_grad: gz = f * g, result = factor * gz, sums of gz * c, gz and gz * noise. f and z, the value before the
// activation, are known from the output: the sign tells f, and what the limit stopped lies at the limit as the output's
// type rounds it. style_grad: result = factor * g, sum of map * g.
template <typename T, int V, bool kPixels, bool kEpilogue, typename Index>
__global__ void __launch_bounds__(kThreads, sizeof(Index) == 4 ? 4 : 2)
    modulated_conv2d_pass_kernel(const Task<Accumulate<T>, Index> task) {
    using A = Accumulate<T>;
    constexpr int kBatch = V == 1 && sizeof(Index) == 4 ? 4 : 2;
    constexpr int kChannels = kPixels ? V : 1;  // of a thread
    ANIFAST_SHARED(A, shared, kThreads * kChannels);
    const int lane = static_cast<int>(threadIdx.x) & (task.lanes - 1);
    const int group = static_cast<int>(threadIdx.x) >> task.lanes_log2;
    const Index block = blockIdx.x;
    Index split, image, channel, plane;
    Index place, stride;  // of the thread's chunk in the plane, and from step to step
    Index at, at_stride;  // the same in the maps
    bool inside;
    if constexpr (kPixels) {
        const Index part = block / task.tiles;
        image = part / task.splits;
        split = part - image * task.splits;
        channel = ((block - part * task.tiles) * task.lanes + lane) * V;
        inside = channel < task.channels;
        plane = image * task.channels + channel;
        place = split * task.steps * task.groups + group;
        stride = task.groups;
        at = (image * task.length + place) * task.channels + channel;
        at_stride = stride * task.channels;
    } else {
        const Index tile = block / task.splits;
        split = block - tile * task.splits;
        plane = tile * task.groups + group;
        inside = plane < task.planes;
        image = plane / task.channels;
        channel = plane - image * task.channels;
        place = (split * task.steps * task.lanes + lane) * V;
        stride = task.lanes * V;
        at = plane * task.length + place;
        at_stride = stride;
    }
    Index noise_at = (task.shared_noise ? 0 : image * task.length) + place;

    A factor[kChannels], bias[kChannels], factor_sum[kChannels] = {}, bias_sum[kChannels] = {}, strength_sum = 0;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
        factor[i] = task.factor && inside ? load_widened<T>(task.factor, task.factor_wide, plane + i) : A(1);
        bias[i] = task.bias && inside ? load_widened<T>(task.bias, task.bias_wide, channel + i) : A(0);
    }
    const A strength = task.strength ? load_widened<T>(task.strength, task.strength_wide, 0) : A(1);
    T rounded;
    narrow(task.clamp, rounded);
    const A limit = widen(rounded);

#pragma unroll 1
    for (Index done = 0; done < task.steps; done += kBatch) {
        bool active[kBatch];
        Chunk<T, V> grad[kBatch], map[kBatch];
        Chunk<T, kPixels ? 1 : V> noise[kBatch];
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            active[u] = inside && place + u * stride < task.length;
            if (!active[u]) continue;
            grad[u] = load_chunk<T, V>(task.grad, at + u * at_stride);
            map[u] = load_chunk<T, V>(task.map, at + u * at_stride);
            if (kEpilogue && task.noise) {
                noise[u] = load_chunk<T, kPixels ? 1 : V>(task.noise, noise_at + u * stride);
            }
        }
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            if (!active[u]) continue;
            Chunk<T, V> result;
            // of the chunk, so that a thread's sums are of fewer numbers
            A of_factor[kChannels] = {}, of_bias[kChannels] = {}, of_strength = 0;
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const int own = kPixels ? i : 0;
                A g = element(grad[u], i);
                const A y = element(map[u], i);
                if constexpr (kEpilogue) {
                    const bool positive = y > 0;  // as the activation asks, so 0 and NaN take the slope
                    g *= positive ? task.gain : task.negative_gain;
                    if (task.clamped && !(y < limit && y > -limit)) g = 0;
                    // c bare of noise and bias at once: their sums apart would cancel where the bias is large
                    A c = y * (positive ? task.inverse : task.negative_inverse) - bias[own];
                    if (task.noise) {
                        const A drawn = element(noise[u], kPixels ? 0 : i);
                        c -= strength * drawn;
                        of_strength += g * drawn;
                    }
                    of_factor[own] += g * c;
                    of_bias[own] += g;
                } else {
                    of_factor[own] += g * y;
                }
                narrow(g * factor[own], result.value[i]);
            }
            store_chunk(task.result, at + u * at_stride, result);
#pragma unroll
            for (int i = 0; i < kChannels; ++i) factor_sum[i] += of_factor[i], bias_sum[i] += of_bias[i];
            strength_sum += of_strength;
        }
        place += kBatch * stride;
        at += kBatch * at_stride;
        noise_at += kBatch * stride;
    }

    const Index to = split * task.planes + plane;
    if (task.partial_factor) {
        store_sums<kPixels>(factor_sum, task.partial_factor + to, task.lanes, task.groups, inside, shared);
    }
    if constexpr (kEpilogue) {
        if (task.partial_bias) {
            store_sums<kPixels>(bias_sum, task.partial_bias + to, task.lanes, task.groups, inside, shared);
        }
        if (task.partial_strength) {
            const A total = sum_over_lanes(strength_sum, kThreads, shared);
            if (threadIdx.x == 0) task.partial_strength[block] = total;
        }
    }
}

// The second stage: partial sums in a fixed order. Null pointers are sums that nobody wants.
template <typename A>
struct Sums {
    const A *partial_factor, *partial_bias, *partial_strength;
    A *factor, *bias, *strength;
    const void* divisor;  // [planes], of the factor's sums; null: 1
    bool divisor_wide;
    int64_t planes, channels, splits, strength_parts;
    unsigned factor_blocks;  // of kThreads planes each
    unsigned bias_blocks;    // of 32 channels each, behind them; the last block does the strength
};

template <typename T>
__global__ void __launch_bounds__(kThreads) modulated_conv2d_sums_kernel(const Sums<Accumulate<T>> task) {
    using A = Accumulate<T>;
    constexpr int kRows = kThreads / 32;
    ANIFAST_SHARED(A, shared, kThreads);
    const int thread = static_cast<int>(threadIdx.x);
    A sum = 0;
    if (blockIdx.x < task.factor_blocks) {
        const int64_t plane = static_cast<int64_t>(blockIdx.x) * kThreads + thread;
        if (plane >= task.planes) return;
        for (int64_t split = 0; split < task.splits; ++split) sum += task.partial_factor[split * task.planes + plane];
        task.factor[plane] = task.divisor ? sum / load_widened<T>(task.divisor, task.divisor_wide, plane) : sum;
    } else if (blockIdx.x < task.factor_blocks + task.bias_blocks) {
        const int64_t channel = static_cast<int64_t>(blockIdx.x - task.factor_blocks) * 32 + thread % 32;
        if (channel < task.channels) {
            for (int64_t at = thread / 32 * task.channels; at < task.splits * task.planes; at += kRows * task.channels)
                sum += task.partial_bias[at + channel];
        }
        shared[thread] = sum;
        __syncthreads();
        if (thread < 32 && channel < task.channels) {
            for (int row = 1; row < kRows; ++row) sum += shared[row * 32 + thread];
            task.bias[channel] = sum;
        }
    } else {
        for (int64_t i = thread; i < task.strength_parts; i += kThreads) sum += task.partial_strength[i];
        sum = sum_over_lanes(sum, kThreads, shared);
        if (thread == 0) *task.strength = sum;
    }
}

// Elements of a chunk. In channels last epilogue_grad has two sums and two operands for each: eight would not fit into
// the registers of a thread.
constexpr int chunk_of(int element_bytes, bool crowded) { return std::min(16 / element_bytes, crowded ? 4 : 8); }

// How the work is cut: by the sizes and the number of multiprocessors alone, so that sums are always the same.
struct Plan {
    bool wide_index;
    int vector;  // elements of a chunk
    int lanes, groups;
    int64_t planes, tiles, splits, steps, blocks;
};

Plan make_plan(const ModulatedConv2dPassParams& params) {
    Plan plan;
    plan.planes = params.images * params.channels;
    plan.wide_index = plan.planes * params.length >= ANIFAST_WIDE_INDEX_FROM;
    const int64_t run = params.channels_last ? params.channels : params.length;
    const int vector = chunk_of(element_size(params.dtype), params.channels_last && params.epilogue);
    const bool fits = run % vector == 0 && aligned(params.grad, 16) && aligned(params.map, 16) &&
                      aligned(params.result, 16) && (params.channels_last || aligned(params.noise, 16));
    plan.vector = fits ? vector : 1;
    const int64_t chunks = divide_up(run, plan.vector);
    // along a plane a thread has a batch of chunks if there are enough
    const int64_t enough = params.channels_last ? chunks : divide_up(chunks, kLongestBatch);
    plan.lanes = 1;
    while (plan.lanes < kThreads && plan.lanes < enough) plan.lanes *= 2;
    plan.groups = kThreads / plan.lanes;
    plan.tiles = params.channels_last ? divide_up(chunks, plan.lanes) : divide_up(plan.planes, plan.groups);
    const int64_t steps = params.channels_last ? divide_up(params.length, plan.groups) : divide_up(chunks, plan.lanes);
    const int64_t whole = params.channels_last ? params.images * plan.tiles : plan.tiles;
    const int64_t wanted = std::max<int64_t>(1, int64_t{kBlocksPerProcessor} * params.processors / whole);
    const int64_t least = std::max<int64_t>(divide_up(steps, wanted), std::min<int64_t>(steps, kFewestSteps));
    plan.steps = divide_up(least, kLongestBatch) * kLongestBatch;
    plan.splits = divide_up(steps, plan.steps);
    plan.blocks = whole * plan.splits;
    return plan;
}

template <typename A, typename Index>
Task<A, Index> make_task(const ModulatedConv2dPassParams& params, const Plan& plan) {
    Task<A, Index> task{};
    task.grad = params.grad;
    task.map = params.map;
    task.factor = params.factor;
    task.bias = params.bias;
    task.noise = params.noise;
    task.strength = params.strength;
    task.result = params.result;
    A* partials = static_cast<A*>(params.partials);
    const auto take = [&](const void* wanted, int64_t count) {
        A* const own = wanted ? partials : nullptr;
        partials += wanted ? count : 0;
        return own;
    };
    task.partial_factor = take(params.sums_factor, plan.splits * plan.planes);
    task.partial_bias = take(params.sums_bias, plan.splits * plan.planes);
    task.partial_strength = take(params.sums_strength, plan.blocks);
    task.channels = static_cast<Index>(params.channels);
    task.length = static_cast<Index>(params.length);
    task.planes = static_cast<Index>(plan.planes);
    task.tiles = static_cast<Index>(plan.tiles);
    task.splits = static_cast<Index>(plan.splits);
    task.steps = static_cast<Index>(plan.steps);
    task.lanes = plan.lanes;
    while (1 << task.lanes_log2 < plan.lanes) ++task.lanes_log2;
    task.groups = plan.groups;
    task.clamped = params.clamped;
    task.shared_noise = params.shared_noise;
    task.factor_wide = params.factor_wide;
    task.bias_wide = params.bias_wide;
    task.strength_wide = params.strength_wide;
    task.gain = static_cast<A>(params.gain);
    task.negative_gain = static_cast<A>(params.gain * params.slope);
    task.inverse = static_cast<A>(1.0 / params.gain);
    // of a ReLU z is lost where gz is 0
    task.negative_inverse = params.slope > 0.0 ? static_cast<A>(1.0 / (params.gain * params.slope)) : A(0);
    task.clamp = static_cast<A>(params.clamp);
    return task;
}

template <typename T, bool kEpilogue>
cudaError_t pass_launch(const ModulatedConv2dPassParams& params, const Plan& plan, bool at_once, cudaStream_t stream) {
    return with_bool(plan.vector > 1, [&](auto vector) {
        return with_bool(params.channels_last, [&](auto pixels) {
            return with_bool(plan.wide_index, [&](auto wide) {
                using A = Accumulate<T>;
                using Index = std::conditional_t<decltype(wide)::value, int64_t, uint32_t>;
                constexpr bool kPixels = decltype(pixels)::value;
                constexpr int kVector = decltype(vector)::value ? chunk_of(sizeof(T), kPixels && kEpilogue) : 1;
                auto task = make_task<A, Index>(params, plan);
                if (at_once) task.partial_factor = static_cast<A*>(params.sums_factor);
                const auto kernel = &modulated_conv2d_pass_kernel<T, kVector, kPixels, kEpilogue, Index>;
                ANIFAST_LAUNCH(kernel, dim3(static_cast<unsigned>(plan.blocks)), kThreads, stream, task);
                return cudaGetLastError();
            });
        });
    });
}

template <typename T>
cudaError_t sums_launch(const ModulatedConv2dPassParams& params, const Plan& plan, cudaStream_t stream) {
    using A = Accumulate<T>;
    const auto task = make_task<A, int64_t>(params, plan);
    Sums<A> sums{task.partial_factor, task.partial_bias, task.partial_strength};
    sums.factor = static_cast<A*>(params.sums_factor);
    sums.bias = static_cast<A*>(params.sums_bias);
    sums.strength = static_cast<A*>(params.sums_strength);
    sums.divisor = params.epilogue ? params.factor : nullptr;
    sums.divisor_wide = params.factor_wide;
    sums.planes = plan.planes;
    sums.channels = params.channels;
    sums.splits = plan.splits;
    sums.strength_parts = plan.blocks;
    sums.factor_blocks = params.sums_factor ? static_cast<unsigned>(divide_up(plan.planes, kThreads)) : 0;
    sums.bias_blocks = params.sums_bias ? static_cast<unsigned>(divide_up(params.channels, 32)) : 0;
    const unsigned blocks = sums.factor_blocks + sums.bias_blocks + (params.sums_strength ? 1 : 0);
    const auto kernel = &modulated_conv2d_sums_kernel<T>;
    ANIFAST_LAUNCH(kernel, dim3(blocks), kThreads, stream, sums);
    return cudaGetLastError();
}

}  // namespace

int64_t modulated_conv2d_pass_partials(const ModulatedConv2dPassParams& params) {
    const Plan plan = make_plan(params);
    const int64_t arrays = (params.sums_factor ? 1 : 0) + (params.sums_bias ? 1 : 0);
    return arrays * plan.splits * plan.planes + (params.sums_strength ? plan.blocks : 0);
}

cudaError_t modulated_conv2d_pass_launch(const ModulatedConv2dPassParams& params, cudaStream_t stream) {
    const Plan plan = make_plan(params);
    // sums of whole planes that nothing is left to be done with are the pass's own
    const bool at_once = !params.epilogue && plan.splits == 1;
    const bool sums = params.sums_factor || params.sums_bias || params.sums_strength;
    return with_type(params.dtype, [&](auto zero) {
        using T = decltype(zero);
        const cudaError_t error = with_bool(params.epilogue, [&](auto epilogue) {
            return pass_launch<T, decltype(epilogue)::value>(params, plan, at_once, stream);
        });
        return error != cudaSuccess || at_once || !sums ? error : sums_launch<T>(params, plan, stream);
    });
}

}  // namespace anifast
