// lpips_layer on the GPU: device code and launches. anifast/ops/lpips_layer.py tells the formulas of the two ops.
//
// A pixel's norms must be known before its vectors can be compared, so forward sweeps over its channels twice; the
// second time they are still in registers. A thread block has a tile of pixels, all channels of them:
//
//   planes (N,C,H,W)          `lanes` threads along the pixels, `groups` of them share the channels of a pixel
//   pixels (channels last)    `lanes` threads, part of a warp, along a pixel's channels, `groups` pixels in a block
//
// A thread moves chunks of V elements: of 16 bytes in a pixel, of 4 in a plane, where a warp's are a run of memory
// anyway and small tiles leave enough blocks for small maps. It holds kHeld chunks of either map, 32 or 64 bytes; where
// a pixel has more channels, it goes through them in batches, and in the second sweep backwards, reading again all but
// the batch it still holds, the latest first. All loads of a batch are issued before the first is used.
//
// Bytes moved per element of b bytes: forward 2b, backward 2b + b for each gradient, and four numbers a pixel in both.
#include <algorithm>
#include <cmath>

#include "device.h"
#include "lpips_layer.h"

namespace anifast {
namespace {

constexpr int kThreads = 256;
constexpr int kFewestLanes = 8;  // of a plane: 32 bytes, what memory moves at least

// Elements of a chunk where sizes and addresses allow.
constexpr int chunk_of(int bytes, bool pixels) { return pixels ? 16 / bytes : bytes < 4 ? 4 / bytes : 1; }

// Chunks of either map that a thread holds. Compilers load the weights of a whole batch early, so beside many small
// chunks, eight weights for each or sums of doubles fewer bytes fit into the registers of a thread.
constexpr int held_chunks(int bytes, int vector) {
    const int most = vector == 4 ? 64 : 32, chunk = bytes * vector;
    return most / (chunk < 4 ? 4 : chunk);
}
template <typename T, int V>
constexpr int kHeld = held_chunks(sizeof(T), V);

// One launch: pointers, sizes and how the work is cut. Index is 32 bits wide where that is enough.
template <typename A, typename Index>
struct Task {
    const void *a, *b;
    const A *weight, *grad, *saved;
    A *out, *stats, *sums;  // out: null with the mean, whose sums of blocks, over `divisor`, go to `sums`
    void *ga, *gb;
    Index channels, length, pixels;  // pixels of all images: from one number of a pixel to the next
    Index tiles;                     // of an image
    Index channel_step, step;        // from chunk to chunk of a thread, in channels and in elements
    int batches, lanes, lanes_log2, groups;
    bool eps_inside, mean;
    A eps, divisor, factor;  // factor: of the gradient
};

// Where a thread is at work: its first chunk.
template <int V, bool kPixels, typename Index>
struct Place {
    int lane, group;
    Index image, pixel;  // the pixel counts over all images
    Index channel, at;
    int chunks;  // 0 outside of the map
    bool inside;

    template <typename A>
    __device__ __forceinline__ explicit Place(const Task<A, Index>& task) {
        lane = static_cast<int>(threadIdx.x) & (task.lanes - 1);
        group = static_cast<int>(threadIdx.x) >> task.lanes_log2;
        image = static_cast<Index>(blockIdx.x) / task.tiles;
        const Index tile = blockIdx.x - image * task.tiles;
        const Index first = kPixels ? tile * task.groups + group : (tile * task.lanes + lane) * V;
        inside = first < task.length;
        pixel = image * task.length + first;
        channel = kPixels ? lane * V : group;
        at = kPixels ? pixel * task.channels + channel : (image * task.channels + channel) * task.length + first;
        const Index rest = inside && channel < task.channels ? task.channels - channel : 0;
        chunks = static_cast<int>((rest + task.channel_step - 1) / task.channel_step);
    }
};

// Some neighbouring chunks of both maps.
template <typename T, int V, int kCount>
struct Batch {
    Chunk<T, V> a[kCount], b[kCount];

    // Of `chunks` that there are, from the one at `at` on.
    template <typename A, typename Index>
    __device__ __forceinline__ void load(const Task<A, Index>& task, Index at, int chunks) {
#pragma unroll
        for (int u = 0; u < kCount; ++u) {
            if (u < chunks) {
                a[u] = load_chunk<T, V>(task.a, at);
                b[u] = load_chunk<T, V>(task.b, at);
            }
            at += task.step;
        }
    }
};

// The weights of a chunk: along a pixel, one for a plane.
template <int kCount, typename A>
__device__ __forceinline__ void load_weights(const A* from, A (&weight)[kCount]) {
    constexpr int kPart = kCount * sizeof(A) <= 16 ? kCount : 16 / sizeof(A);
#pragma unroll
    for (int i = 0; i < kCount; i += kPart) {
        const auto part = load_chunk<A, kPart>(from, i);
#pragma unroll
        for (int j = 0; j < kPart; ++j) weight[i + j] = part.value[j];
    }
}

// A product that is rounded before it is subtracted from another, where the compiler would fuse the two: equal maps are
// at a distance of exactly 0.
__device__ __forceinline__ float product(float x, float y) { return __fmul_rn(x, y); }
__device__ __forceinline__ double product(double x, double y) { return __dmul_rn(x, y); }

// From the square of a vector's length: the factor that normalises it, and what k is of the normalised vector's
// projection. A zero vector has 0 for both.
template <typename A>
__device__ __forceinline__ void factors(A square, A eps, bool inside, A& normalising, A& projecting) {
    const A length = std::sqrt(inside ? square + eps : square);
    normalising = square > 0 ? A(1) / (inside ? length : length + eps) : A(0);
    projecting = square > 0 ? A(1) / length : A(0);
}

// Sums over the threads that share pixels, in a fixed order: for all of these threads, or, with `first_only`, for the
// first lanes of the block. All threads of the block must call it; `shared` holds kCount values a thread.
template <bool kPixels, int kCount, typename A>
__device__ __forceinline__ void sum_channels(A (&value)[kCount], int lanes, bool first_only, A* shared) {
    const int from = kPixels ? lanes / 2 : 16, to = kPixels ? 1 : lanes;
    for (int offset = from; offset >= to; offset /= 2) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) value[i] += __shfl_xor_sync(kFullWarp, value[i], offset);
    }
    if constexpr (!kPixels) {
        const int thread = static_cast<int>(threadIdx.x);
        const int width = lanes < 32 ? 32 : lanes;  // what differs now
        if (width == kThreads) return;
#pragma unroll
        for (int i = 0; i < kCount; ++i) shared[i * kThreads + thread] = value[i];
        __syncthreads();
        if (!first_only || thread < width) {
            const int column = thread & (width - 1);
#pragma unroll
            for (int i = 0; i < kCount; ++i) value[i] = shared[i * kThreads + column];
            for (int row = width; row < kThreads; row += width) {
#pragma unroll
                for (int i = 0; i < kCount; ++i) value[i] += shared[i * kThreads + row + column];
            }
        }
        __syncthreads();  // `shared` may be written again at once
    }
}

template <typename T, int V, bool kPixels, typename Index>
__global__ void __launch_bounds__(kThreads, sizeof(Index) == 4 ? 4 : 2)
    lpips_layer_kernel(const Task<Accumulate<T>, Index> task) {
    using A = Accumulate<T>;
    constexpr int kOwn = kPixels ? 1 : V;  // pixels of a thread
    constexpr int kBatch = kHeld<T, V>;
    ANIFAST_SHARED(A, shared, kThreads * 3 * kOwn);
    const Place<V, kPixels, Index> place(task);
    Batch<T, V, kBatch> batch;

    A squares[2 * kOwn] = {};
#pragma unroll 1
    for (int i = 0; i < task.batches; ++i) {
        const int chunks = place.chunks - i * kBatch;
        batch.load(task, place.at + static_cast<Index>(i * kBatch) * task.step, chunks);
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            if (u >= chunks) continue;
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const int own = kPixels ? 0 : j;
                const A a = element(batch.a[u], j), b = element(batch.b[u], j);
                squares[own] += a * a;
                squares[kOwn + own] += b * b;
            }
        }
    }
    sum_channels<kPixels>(squares, task.lanes, false, shared);
    A p[kOwn], q[kOwn], to_k[kOwn], to_l[kOwn];
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
        factors(squares[own], task.eps, task.eps_inside, p[own], to_k[own]);
        factors(squares[kOwn + own], task.eps, task.eps_inside, q[own], to_l[own]);
    }

    A sums[3 * kOwn] = {};  // the value, and the projections on both vectors
#pragma unroll 1
    for (int i = task.batches - 1; i >= 0; --i) {
        const int chunks = place.chunks - i * kBatch;
        const Index first = static_cast<Index>(i * kBatch);
        if (i != task.batches - 1) batch.load(task, place.at + first * task.step, chunks);
        Index channel = place.channel + first * task.channel_step;
#pragma unroll
        for (int u = 0; u < kBatch; ++u, channel += task.channel_step) {
            if (u >= chunks) continue;
            A weight[kPixels ? V : 1];
            load_weights(task.weight + channel, weight);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const int own = kPixels ? 0 : j;
                const A a = product(p[own], element(batch.a[u], j)), b = product(q[own], element(batch.b[u], j));
                const A difference = a - b, weighted = weight[kPixels ? j : 0] * difference;
                sums[own] += weighted * difference;
                sums[kOwn + own] += weighted * a;
                sums[2 * kOwn + own] += weighted * b;
            }
        }
    }
    sum_channels<kPixels>(sums, task.lanes, true, shared);

    A total = 0;
    if (place.inside && (kPixels ? place.lane : place.group) == 0) {
        Chunk<A, kOwn> value, numbers[4];
#pragma unroll
        for (int own = 0; own < kOwn; ++own) {
            value.value[own] = sums[own];
            total += sums[own];
            numbers[0].value[own] = p[own];
            numbers[1].value[own] = q[own];
            numbers[2].value[own] = sums[kOwn + own] * to_k[own];
            numbers[3].value[own] = sums[2 * kOwn + own] * to_l[own];
        }
        if (task.out) store_chunk(task.out, place.pixel, value);
#pragma unroll
        for (int i = 0; i < 4; ++i) store_chunk(task.stats, place.pixel + i * task.pixels, numbers[i]);
    }
    if (task.sums) {
        total = sum_over_lanes(total, kPixels ? kThreads : task.lanes, shared);
        if (threadIdx.x == 0) task.sums[blockIdx.x] = total / task.divisor;
    }
}

// The second stage of the mean: a block adds an image's sums in a fixed order.
template <typename A>
__global__ void __launch_bounds__(kThreads) lpips_layer_mean_kernel(const A* sums, A* mean, int64_t tiles, A divisor) {
    ANIFAST_SHARED(A, shared, kThreads);
    A total = 0;
    for (int64_t tile = threadIdx.x; tile < tiles; tile += kThreads) total += sums[blockIdx.x * tiles + tile];
    total = sum_over_lanes(total, kThreads, shared);
    if (threadIdx.x == 0) mean[blockIdx.x] = total / divisor;
}

template <typename T, int V, bool kPixels, typename Index>
__global__ void __launch_bounds__(kThreads, sizeof(Index) == 4 ? 4 : 2)
    lpips_layer_backward_kernel(const Task<Accumulate<T>, Index> task) {
    using A = Accumulate<T>;
    constexpr int kOwn = kPixels ? 1 : V;
    constexpr int kBatch = kHeld<T, V>;
    const Place<V, kPixels, Index> place(task);
    if (!place.inside) return;
    Chunk<A, kOwn> numbers[4], grad;
#pragma unroll
    for (int i = 0; i < 4; ++i) numbers[i] = load_chunk<A, kOwn>(task.saved, place.pixel + i * task.pixels);
    if (!task.mean) grad = load_chunk<A, kOwn>(task.grad, place.pixel);
    const auto& [p, q, k, l] = numbers;
    A of_a[kOwn], of_b[kOwn];
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
        const A twice = task.factor * (task.mean ? task.grad[place.image] : grad.value[own]);
        of_a[own] = twice * p.value[own];
        of_b[own] = -twice * q.value[own];
    }

#pragma unroll 1
    for (int i = 0; i < task.batches; ++i) {
        const int chunks = place.chunks - i * kBatch;
        const Index first = static_cast<Index>(i * kBatch);
        Index at = place.at + first * task.step, channel = place.channel + first * task.channel_step;
        Batch<T, V, kBatch> batch;
        batch.load(task, at, chunks);
#pragma unroll
        for (int u = 0; u < kBatch; ++u, at += task.step, channel += task.channel_step) {
            if (u >= chunks) continue;
            A weight[kPixels ? V : 1];
            load_weights(task.weight + channel, weight);
            Chunk<T, V> ga, gb;
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const int own = kPixels ? 0 : j;
                const A a = element(batch.a[u], j), b = element(batch.b[u], j);
                const A difference = product(p.value[own], a) - product(q.value[own], b);
                const A weighted = weight[kPixels ? j : 0] * difference;
                narrow(of_a[own] * (weighted - k.value[own] * a), ga.value[j]);
                narrow(of_b[own] * (weighted - l.value[own] * b), gb.value[j]);
            }
            if (task.ga) store_chunk(task.ga, at, ga);
            if (task.gb) store_chunk(task.gb, at, gb);
        }
    }
}

// How the work is cut: by the sizes and the number of multiprocessors alone, so that sums are always the same.
struct Plan {
    LpipsLayerParams params;  // as memory lies, which one pixel or a map for each pixel leaves open
    bool wide_index;
    bool whole_chunks;
    int lanes, groups;
    int64_t tiles, batches;
};

int64_t power_of_two_from(int64_t least) {
    int64_t power = 1;
    while (power < least) power *= 2;
    return power;
}

Plan make_plan(const LpipsLayerParams& given) {
    Plan plan{given};
    LpipsLayerParams& params = plan.params;
    if (params.length == 1) {
        params.channels_last = true;
        params.mean = false;
    }
    if (params.channels_last && !params.mean) {
        params.length *= params.images;
        params.images = 1;
    }
    const int64_t most = std::max<int64_t>(params.channels, 4);  // the four numbers have indices too
    plan.wide_index = params.images * most * params.length >= ANIFAST_WIDE_INDEX_FROM;
    const int bytes = element_size(params.dtype);
    const int chunk = chunk_of(bytes, params.channels_last);
    plan.whole_chunks = (params.channels_last ? params.channels : params.length) % chunk == 0;
    for (const void* memory : {params.a, params.b, params.weight, params.grad, params.saved,
                               static_cast<const void*>(params.out), static_cast<const void*>(params.stats),
                               static_cast<const void*>(params.ga), static_cast<const void*>(params.gb)}) {
        plan.whole_chunks = plan.whole_chunks && aligned(memory, 16);
    }
    const int vector = plan.whole_chunks ? chunk : 1;
    const int held = held_chunks(bytes, vector);
    const int64_t chunks = divide_up(params.channels_last ? params.channels : params.length, vector);
    const auto cut = [&](int64_t lanes) {
        plan.lanes = static_cast<int>(lanes);
        plan.groups = kThreads / plan.lanes;
        plan.tiles = params.channels_last ? divide_up(params.length, plan.groups) : divide_up(chunks, plan.lanes);
    };
    const auto idle = [&] { return params.images * plan.tiles < params.processors; };
    if (params.channels_last) {
        // as few as hold a pixel, but runs of 64 bytes, and more where there are too few blocks
        const int64_t most = std::min<int64_t>(32, power_of_two_from(chunks));
        const int64_t least = std::max<int64_t>(power_of_two_from(divide_up(chunks, held)), 64 / (bytes * vector));
        cut(std::min(least, most));
        while (idle() && plan.lanes < most) cut(plan.lanes * 2);
        plan.batches = divide_up(chunks, int64_t{plan.lanes} * held);
    } else {
        const int64_t groups = power_of_two_from(divide_up(params.channels, held));
        const int64_t lanes = std::max<int64_t>(kThreads / groups, kFewestLanes);
        cut(std::min(lanes, power_of_two_from(chunks)));
        while (idle() && plan.lanes > kFewestLanes && plan.groups < params.channels) cut(plan.lanes / 2);
        plan.batches = divide_up(params.channels, int64_t{plan.groups} * held);
    }
    return plan;
}

template <typename A, typename Index>
Task<A, Index> make_task(const Plan& plan, int vector) {
    const LpipsLayerParams& params = plan.params;
    Task<A, Index> task{};
    task.a = params.a;
    task.b = params.b;
    task.weight = static_cast<const A*>(params.weight);
    task.grad = static_cast<const A*>(params.grad);
    task.saved = static_cast<const A*>(params.saved);
    task.stats = static_cast<A*>(params.stats);
    task.mean = params.mean;
    const bool at_once = plan.tiles == 1;
    task.out = params.mean ? nullptr : static_cast<A*>(params.out);
    task.sums = !params.mean ? nullptr : static_cast<A*>(at_once ? params.out : params.partials);
    task.divisor = at_once ? static_cast<A>(params.length) : A(1);
    task.ga = params.ga;
    task.gb = params.gb;
    task.channels = static_cast<Index>(params.channels);
    task.length = static_cast<Index>(params.length);
    task.pixels = static_cast<Index>(params.images * params.length);
    task.tiles = static_cast<Index>(plan.tiles);
    task.channel_step = static_cast<Index>(params.channels_last ? plan.lanes * vector : plan.groups);
    task.step = params.channels_last ? task.channel_step : task.channel_step * task.length;
    task.batches = static_cast<int>(plan.batches);
    task.lanes = plan.lanes;
    while (1 << task.lanes_log2 < plan.lanes) ++task.lanes_log2;
    task.groups = plan.groups;
    task.eps = static_cast<A>(params.eps);
    task.eps_inside = params.eps_inside;
    task.factor = static_cast<A>(params.mean ? 2.0 / static_cast<double>(params.length) : 2.0);
    return task;
}

template <bool kBackward>
cudaError_t launch(const Plan& plan, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(plan.params.images * plan.tiles));
    return with_type(plan.params.dtype, [&](auto zero) {
        return with_bool(plan.whole_chunks, [&](auto chunks) {
            return with_bool(plan.params.channels_last, [&](auto pixels) {
                return with_bool(plan.wide_index, [&](auto wide) {
                    using T = decltype(zero);
                    using Index = std::conditional_t<decltype(wide)::value, int64_t, uint32_t>;
                    constexpr bool kPixels = decltype(pixels)::value;
                    constexpr int kVector = decltype(chunks)::value ? chunk_of(sizeof(T), kPixels) : 1;
                    const auto task = make_task<Accumulate<T>, Index>(plan, kVector);
                    if constexpr (kBackward) {
                        const auto kernel = &lpips_layer_backward_kernel<T, kVector, kPixels, Index>;
                        ANIFAST_LAUNCH(kernel, grid, kThreads, stream, task);
                        return cudaGetLastError();
                    } else {
                        const auto kernel = &lpips_layer_kernel<T, kVector, kPixels, Index>;
                        ANIFAST_LAUNCH(kernel, grid, kThreads, stream, task);
                        return cudaGetLastError();
                    }
                });
            });
        });
    });
}

template <typename A>
cudaError_t mean_launch(const Plan& plan, cudaStream_t stream) {
    const LpipsLayerParams& params = plan.params;
    const auto kernel = &lpips_layer_mean_kernel<A>;
    ANIFAST_LAUNCH(kernel, dim3(static_cast<unsigned>(params.images)), kThreads, stream,
                   static_cast<const A*>(params.partials), static_cast<A*>(params.out), plan.tiles,
                   static_cast<A>(params.length));
    return cudaGetLastError();
}

bool in_two_stages(const Plan& plan) { return plan.params.mean && plan.tiles > 1; }

}  // namespace

int64_t lpips_layer_partials(const LpipsLayerParams& params) {
    const Plan plan = make_plan(params);
    return in_two_stages(plan) ? params.images * plan.tiles : 0;
}

cudaError_t lpips_layer_launch(const LpipsLayerParams& params, cudaStream_t stream) {
    const Plan plan = make_plan(params);
    const cudaError_t error = launch<false>(plan, stream);
    if (error != cudaSuccess || !in_two_stages(plan)) return error;
    return params.dtype == DType::float64 ? mean_launch<double>(plan, stream) : mean_launch<float>(plan, stream);
}

cudaError_t lpips_layer_backward_launch(const LpipsLayerParams& params, cudaStream_t stream) {
    return launch<true>(make_plan(params), stream);
}

}  // namespace anifast
