// lpips_layer on the CPU: see anifast/ops/lpips_layer.py for the formulas and the two ops.
//
// A block of pixels is read twice, the second time from the caches: the norms of its vectors must be known before their
// difference. In N,C,H,W lanes are pixels and a block is as many as there are registers for; in channels last lanes are
// channels, and a block is a vector of pixels whose two maps stay in the caches. Work is cut into tasks whose borders
// depend on the sizes alone, each leaves its sum in a slot of its own, and slots are added in order, so that results
// are the same whatever the number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/layout.h"
#include "../common/vec.h"
#include "dispatch.h"
#include "memory.h"

namespace anifast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Values of a task in one of the maps, about.
constexpr int64_t kTask = 1 << 15;
// Vectors of pixels beside each other in N,C,H,W.
#if defined(ANIFAST_AVX512)
constexpr int kPixelVectors = 4;
#else
constexpr int kPixelVectors = 2;
#endif

struct Maps {
    int64_t images, channels, pixels;
    int64_t together;  // pixels of a task, a whole number of blocks
    int64_t pieces;    // tasks of an image

    explicit Maps(const Tensor& a) {
        constexpr int64_t kBlock = 64;
        images = a.size(0), channels = a.size(1), pixels = a.size(2) * a.size(3);
        const int64_t blocks = std::max<int64_t>(1, kTask / std::max<int64_t>(1, channels) / kBlock);
        together = std::min(blocks * kBlock, std::max<int64_t>(1, pixels));
        pieces = (pixels + together - 1) / together;
    }
    int64_t tasks() const { return images * pieces; }
    // Calls run(task, image, first pixel, pixels) for every task.
    template <class Run>
    void each(const Run& run) const {
        at::parallel_for(0, tasks(), 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t first = task % pieces * together;
                run(task, task / pieces, first, std::min(together, pixels - first));
            }
        });
    }
};

struct Norm {
    double eps;
    bool inside;
};

// Keeps a product from being fused with the difference that it goes into: equal maps are at distance 0 exactly.
template <class A>
inline Vec<A> rounded(Vec<A> product) {
#if defined(ANIFAST_AVX512)
    asm("" : "+v"(product));
#elif defined(__AVX2__)
    if constexpr (sizeof(product) == 32) {
        asm("" : "+x"(product));
    } else {
        asm("" : "+m"(product));
    }
#else
    asm("" : "+m"(product));
#endif
    return product;
}

template <class A>
inline Vec<A> square_root(Vec<A> x) {
    Vec<A> out;
    for (int i = 0; i < kWidth<A>; ++i) out[i] = std::sqrt(x[i]);
    return out;
}

// From the square of a vector's length: the factor that normalises it, and what the projection on it in a gradient is
// multiplied by besides. (Their product is beyond the range of float for short vectors.)
template <class A>
inline void factors(Vec<A> square, const Norm& norm, Vec<A>& normalising, Vec<A>& projecting) {
    const Vec<A> one = broadcast<A>(1), eps = broadcast<A>(static_cast<A>(norm.eps));
    const LaneMask<A> some = square != 0;  // also NaN
    const Vec<A> safe = select<A>(some, square, one);
    Vec<A> inverse, projection;
    if (norm.inside) {
        inverse = one / square_root<A>(safe + eps);
        projection = inverse;
    } else {
        const Vec<A> length = square_root<A>(safe);
        inverse = one / (length + eps);
        projection = one / length;
    }
    normalising = select<A>(some, inverse, Vec<A>{});
    projecting = select<A>(some, projection, Vec<A>{});
}

// A gradient for each pixel, or the same for all pixels of an image.
template <class A>
struct PerPixel {
    const A* values;
    int64_t step;  // 1, or 0 where it is the same for all
};

// N,C,H,W: V vectors of pixels, of which the last may be partly filled. Returns the sum of their values.
template <int V, bool kFull, class T, class A>
inline A block_forward(const T* a, const T* b, const A* weight, int64_t channels, int64_t pixels, int64_t n,
                       const Norm& norm, A* map, A* stats, int64_t stats_step) {
    constexpr int W = kWidth<A>;
    Vec<A> p[V] = {}, q[V] = {}, k[V], l[V];
    for (int64_t c = 0; c < channels; ++c) {
        const T *from_a = a + c * pixels, *from_b = b + c * pixels;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const Vec<A> x = load_n<kFull>(from_a + v * W, n), y = load_n<kFull>(from_b + v * W, n);
            p[v] += x * x;
            q[v] += y * y;
        }
    }
    for (int v = 0; v < V; ++v) {
        factors<A>(Vec<A>(p[v]), norm, p[v], k[v]);
        factors<A>(Vec<A>(q[v]), norm, q[v], l[v]);
    }
    Vec<A> value[V] = {}, on_a[V] = {}, on_b[V] = {};
    for (int64_t c = 0; c < channels; ++c) {
        const T *from_a = a + c * pixels, *from_b = b + c * pixels;
        const Vec<A> w = broadcast<A>(weight[c]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const Vec<A> x = load_n<kFull>(from_a + v * W, n), y = load_n<kFull>(from_b + v * W, n);
            const Vec<A> d = rounded<A>(x * p[v]) - rounded<A>(y * q[v]), wd = w * d;
            value[v] += wd * d;
            on_a[v] += wd * x;
            on_b[v] += wd * y;
        }
    }
    Vec<A> total{};
    for (int v = 0; v < V; ++v) {
        if (map) store_n<kFull>(map + v * W, value[v], n);
        store_n<kFull>(stats + v * W, p[v], n);
        store_n<kFull>(stats + stats_step + v * W, q[v], n);
        store_n<kFull>(stats + 2 * stats_step + v * W, on_a[v] * k[v] * p[v], n);
        store_n<kFull>(stats + 3 * stats_step + v * W, on_b[v] * l[v] * q[v], n);
        total += value[v];  // lanes beyond n are 0
    }
    return sum_lanes<A>(total);
}

// Calls visit(first, vectors, n, full) for the blocks of `pixels` pixels.
template <int W, class Visit>
inline void for_blocks(int64_t pixels, const Visit& visit) {
    constexpr std::integral_constant<int, kPixelVectors> many{};
    constexpr std::integral_constant<int, 1> one{};
    int64_t first = 0;
    for (; first + kPixelVectors * W <= pixels; first += kPixelVectors * W) visit(first, many, W, std::true_type{});
    for (; first + W <= pixels; first += W) visit(first, one, W, std::true_type{});
    if (first < pixels) visit(first, one, pixels - first, std::false_type{});
}

// Channels last: a vector of pixels, `n` of which are there.
template <class T, class A>
inline A pixels_forward(const T* a, const T* b, const A* weight, int64_t channels, int64_t n, const Norm& norm, A* map,
                        A* stats, int64_t stats_step) {
    constexpr int W = kWidth<A>;
    A lengths_a[W] = {}, lengths_b[W] = {};
    for (int64_t i = 0; i < n; ++i) {
        const T *from_a = a + i * channels, *from_b = b + i * channels;
        Vec<A> sum_a[2] = {}, sum_b[2] = {};
        int v = 0;
        for_vectors<W>(0, channels, [&](int64_t c, int64_t count, auto full) {
            const Vec<A> x = load_n<decltype(full)::value>(from_a + c, count);
            const Vec<A> y = load_n<decltype(full)::value>(from_b + c, count);
            sum_a[v] += x * x;
            sum_b[v] += y * y;
            v ^= 1;
        });
        lengths_a[i] = sum_lanes<A>(sum_a[0] + sum_a[1]);
        lengths_b[i] = sum_lanes<A>(sum_b[0] + sum_b[1]);
    }
    Vec<A> p, q, k, l;
    factors<A>(load(lengths_a), norm, p, k);
    factors<A>(load(lengths_b), norm, q, l);
    A values[W] = {}, on_a[W] = {}, on_b[W] = {};
    for (int64_t i = 0; i < n; ++i) {
        const T *from_a = a + i * channels, *from_b = b + i * channels;
        const Vec<A> pi = broadcast<A>(p[i]), qi = broadcast<A>(q[i]);
        Vec<A> value{}, sum_a{}, sum_b{};
        for_vectors<W>(0, channels, [&](int64_t c, int64_t count, auto full) {
            constexpr bool kFull = decltype(full)::value;
            const Vec<A> x = load_n<kFull>(from_a + c, count), y = load_n<kFull>(from_b + c, count);
            const Vec<A> d = rounded<A>(x * pi) - rounded<A>(y * qi), wd = load_n<kFull>(weight + c, count) * d;
            value += wd * d;
            sum_a += wd * x;
            sum_b += wd * y;
        });
        values[i] = sum_lanes<A>(value);
        on_a[i] = sum_lanes<A>(sum_a);
        on_b[i] = sum_lanes<A>(sum_b);
    }
    if (map) store_first(map, load(values), n);
    store_first(stats, p, n);
    store_first(stats + stats_step, q, n);
    store_first(stats + 2 * stats_step, load(on_a) * k * p, n);
    store_first(stats + 3 * stats_step, load(on_b) * l * q, n);
    return sum_lanes<A>(load(values));
}

// `out` is N (the means) or N,H*W.
template <class T, bool kChannelsLast, class A>
void forward(const Maps& maps, const T* a, const T* b, const A* weight, const Norm& norm, bool mean, A* out, A* stats) {
    constexpr int W = kWidth<A>;
    const int64_t step = maps.images * maps.pixels;
    std::vector<A> sums(maps.tasks());
    maps.each([&](int64_t task, int64_t image, int64_t first, int64_t count) {
        const int64_t at = image * maps.channels * maps.pixels + first * (kChannelsLast ? maps.channels : 1);
        const int64_t pixel = image * maps.pixels + first;
        A sum = 0;
        if constexpr (kChannelsLast) {
            for (int64_t i = 0; i < count; i += W) {
                sum += pixels_forward(a + at + i * maps.channels, b + at + i * maps.channels, weight, maps.channels,
                                      std::min<int64_t>(W, count - i), norm, mean ? nullptr : out + pixel + i,
                                      stats + pixel + i, step);
            }
        } else {
            for_blocks<W>(count, [&](int64_t i, auto vectors, int64_t n, auto full) {
                sum += block_forward<decltype(vectors)::value, decltype(full)::value>(
                    a + at + i, b + at + i, weight, maps.channels, maps.pixels, n, norm,
                    mean ? nullptr : out + pixel + i, stats + pixel + i, step);
            });
        }
        sums[task] = sum;
    });
    if (!mean) return;
    for (int64_t image = 0; image < maps.images; ++image) {
        double sum = 0;
        for (int64_t piece = 0; piece < maps.pieces; ++piece) sum += sums[image * maps.pieces + piece];
        out[image] = static_cast<A>(sum / static_cast<double>(maps.pixels));
    }
}

// N,C,H,W: ga = u (w d - k a), gb = r (w d - l b) with u = 2 g p, r = -2 g q.
template <int V, bool kFull, bool kWantA, bool kWantB, class T, class A>
inline void block_backward(const PerPixel<A>& grad, A factor, const T* a, const T* b, const A* weight, int64_t channels,
                           int64_t pixels, int64_t n, const A* stats, int64_t stats_step, T* ga, T* gb) {
    constexpr int W = kWidth<A>;
    Vec<A> p[V], q[V], k[V], l[V], u[V], r[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        const A* here = stats + v * W;
        p[v] = load_n<kFull>(here, n), q[v] = load_n<kFull>(here + stats_step, n);
        k[v] = load_n<kFull>(here + 2 * stats_step, n), l[v] = load_n<kFull>(here + 3 * stats_step, n);
        const Vec<A> g = grad.step ? load_n<kFull>(grad.values + v * W, n) : broadcast<A>(*grad.values);
        u[v] = factor * g * p[v], r[v] = -factor * g * q[v];
    }
    for (int64_t c = 0; c < channels; ++c) {
        const Vec<A> w = broadcast<A>(weight[c]);
        const int64_t at = c * pixels;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const Vec<A> x = load_n<kFull>(a + at + v * W, n), y = load_n<kFull>(b + at + v * W, n);
            const Vec<A> wd = w * (rounded<A>(x * p[v]) - rounded<A>(y * q[v]));
            if constexpr (kWantA) store_n<kFull>(ga + at + v * W, u[v] * (wd - k[v] * x), n);
            if constexpr (kWantB) store_n<kFull>(gb + at + v * W, r[v] * (wd - l[v] * y), n);
        }
    }
}

// Channels last: one pixel.
template <bool kWantA, bool kWantB, class T, class A>
inline void pixel_backward(A grad, const T* a, const T* b, const A* weight, int64_t channels, const A* stats,
                           int64_t stats_step, T* ga, T* gb) {
    const A p = stats[0], q = stats[stats_step];
    const Vec<A> by_p = broadcast<A>(p), by_q = broadcast<A>(q);
    const Vec<A> k = broadcast<A>(stats[2 * stats_step]), l = broadcast<A>(stats[3 * stats_step]);
    const Vec<A> u = broadcast<A>(grad * p), r = broadcast<A>(-grad * q);
    for_vectors<kWidth<A>>(0, channels, [&](int64_t c, int64_t count, auto full) {
        constexpr bool kFull = decltype(full)::value;
        const Vec<A> x = load_n<kFull>(a + c, count), y = load_n<kFull>(b + c, count);
        const Vec<A> wd = load_n<kFull>(weight + c, count) * (rounded<A>(x * by_p) - rounded<A>(y * by_q));
        if constexpr (kWantA) store_n<kFull>(ga + c, u * (wd - k * x), count);
        if constexpr (kWantB) store_n<kFull>(gb + c, r * (wd - l * y), count);
    });
}

template <class T, bool kChannelsLast, bool kWantA, bool kWantB, class A>
void backward(const Maps& maps, const A* grad, bool mean, const T* a, const T* b, const A* weight, const A* stats,
              T* ga, T* gb) {
    const int64_t step = maps.images * maps.pixels;
    const A factor = static_cast<A>(mean ? 2.0 / static_cast<double>(maps.pixels) : 2.0);
    maps.each([&](int64_t, int64_t image, int64_t first, int64_t count) {
        const int64_t at = image * maps.channels * maps.pixels + first * (kChannelsLast ? maps.channels : 1);
        const int64_t pixel = image * maps.pixels + first;
        const PerPixel<A> per{mean ? grad + image : grad + pixel, mean ? 0 : 1};
        if constexpr (kChannelsLast) {
            for (int64_t i = 0; i < count; ++i) {
                const int64_t here = at + i * maps.channels;
                pixel_backward<kWantA, kWantB>(factor * per.values[i * per.step], a + here, b + here, weight,
                                               maps.channels, stats + pixel + i, step, ga + here, gb + here);
            }
        } else {
            for_blocks<kWidth<A>>(count, [&](int64_t i, auto vectors, int64_t n, auto full) {
                block_backward<decltype(vectors)::value, decltype(full)::value, kWantA, kWantB>(
                    PerPixel<A>{per.values + i * per.step, per.step}, factor, a + at + i, b + at + i, weight,
                    maps.channels, maps.pixels, n, stats + pixel + i, step, ga + at + i, gb + at + i);
            });
        }
    });
}

// The arguments that both ops have, checked and in one layout.
struct Call {
    Tensor a, b, weight;
    bool channels_last;
    at::MemoryFormat format;
    at::ScalarType wide;

    Call(const Tensor& a_any, const Tensor& b_any, const OptionalTensor& weight_any) {
        TORCH_CHECK(a_any.dim() == 4, "lpips_layer: a must have rank 4, got ", a_any.dim());
        TORCH_CHECK(b_any.sizes() == a_any.sizes() && b_any.scalar_type() == a_any.scalar_type() && b_any.is_cpu(),
                    "lpips_layer: b is ", b_any.scalar_type(), " of shape ", b_any.sizes(), " on ", b_any.device(),
                    ", expected ", a_any.scalar_type(), " of shape ", a_any.sizes(), " on cpu");
        channels_last = is_channels_last(a_any);
        format = memory_format(4, channels_last);
        a = a_any.contiguous(format), b = b_any.contiguous(format);
        wide = a.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
        if (weight_any) {
            TORCH_CHECK(weight_any->scalar_type() == wide && weight_any->dim() == 1 &&
                            weight_any->numel() == a.size(1) && weight_any->is_cpu(),
                        "lpips_layer: weight is ", weight_any->scalar_type(), " of shape ", weight_any->sizes(),
                        ", expected ", wide, " of shape [", a.size(1), "] on cpu");
            weight = weight_any->contiguous();
        } else {
            weight = at::empty({a.size(1)}, a.options().dtype(wide)).fill_(1);
        }
    }
    at::TensorOptions numbers() const { return a.options().dtype(wide); }
};

std::tuple<Tensor, Tensor> forward_cpu(const Tensor& a, const Tensor& b, const OptionalTensor& weight, double eps,
                                       bool eps_inside, bool mean) {
    const Call call(a, b, weight);
    const Maps maps(call.a);
    Tensor out = mean ? at::empty({maps.images, 1, 1, 1}, call.numbers())
                      : at::empty({maps.images, 1, a.size(2), a.size(3)}, call.numbers());
    Tensor stats = at::empty({4, maps.images, maps.pixels}, call.numbers());
    if (call.a.numel() == 0) return {out.zero_(), stats.zero_()};
    ANIFAST_DISPATCH(a.scalar_type(), "lpips_layer", [&] {
        using A = Accumulate<scalar_t>;
        const auto run = [&](auto channels_last) {
            forward<scalar_t, decltype(channels_last)::value>(
                maps, call.a.const_data_ptr<scalar_t>(), call.b.const_data_ptr<scalar_t>(),
                call.weight.const_data_ptr<A>(), Norm{eps, eps_inside}, mean, out.mutable_data_ptr<A>(),
                stats.mutable_data_ptr<A>());
        };
        call.channels_last ? run(std::true_type{}) : run(std::false_type{});
    });
    return {out, stats};
}

std::tuple<Tensor, Tensor> backward_cpu(const Tensor& grad_any, const Tensor& a, const Tensor& b,
                                        const OptionalTensor& weight, const Tensor& stats, double, bool, bool mean,
                                        bool want_a, bool want_b) {
    const Call call(a, b, weight);
    const Maps maps(call.a);
    const int64_t numbers = mean ? maps.images : maps.images * maps.pixels;
    TORCH_CHECK(grad_any.scalar_type() == call.wide && grad_any.numel() == numbers, "lpips_layer: grad is ",
                grad_any.scalar_type(), " with ", grad_any.numel(), " values, expected ", call.wide, " with ", numbers);
    TORCH_CHECK(
        stats.scalar_type() == call.wide && stats.is_contiguous() && stats.numel() == 4 * maps.images * maps.pixels,
        "lpips_layer: stats must be ", call.wide, " of shape [4, ", maps.images, ", ", maps.pixels, "], got ",
        stats.scalar_type(), " of shape ", stats.sizes());
    const Tensor grad = grad_any.contiguous();
    Tensor ga = want_a ? empty_like(call.a, call.format) : at::empty({0}, call.a.options());
    Tensor gb = want_b ? empty_like(call.b, call.format) : at::empty({0}, call.b.options());
    if (call.a.numel() == 0 || !(want_a || want_b)) return {ga, gb};
    ANIFAST_DISPATCH(a.scalar_type(), "lpips_layer_backward", [&] {
        using A = Accumulate<scalar_t>;
        const auto run = [&](auto channels_last, auto wants_a, auto wants_b) {
            backward<scalar_t, decltype(channels_last)::value, decltype(wants_a)::value, decltype(wants_b)::value>(
                maps, grad.const_data_ptr<A>(), mean, call.a.const_data_ptr<scalar_t>(),
                call.b.const_data_ptr<scalar_t>(), call.weight.const_data_ptr<A>(), stats.const_data_ptr<A>(),
                ga.mutable_data_ptr<scalar_t>(), gb.mutable_data_ptr<scalar_t>());
        };
        const auto in_layout = [&](auto channels_last) {
            if (want_a && want_b) return run(channels_last, std::true_type{}, std::true_type{});
            want_a ? run(channels_last, std::true_type{}, std::false_type{})
                   : run(channels_last, std::false_type{}, std::true_type{});
        };
        call.channels_last ? in_layout(std::true_type{}) : in_layout(std::false_type{});
    });
    return {ga, gb};
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CPU, m) {
    m.impl("lpips_layer", &forward_cpu);
    m.impl("lpips_layer_backward", &backward_cpu);
}

}  // namespace anifast
