// instance_norm on the CPU: see anifast/ops/instance_norm.py for the two ops and their contract.
//
// A statistic belongs to one (image, channel). In N,C,H,W its values are one run of memory; in channels last they are a
// lane of every pixel's run. Work is cut into tasks whose borders depend on the sizes alone, each leaves its sums in
// slots of its own, and slots are added in order, so that results are the same whatever the number of threads.
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

// Values of a task: they stay in the first caches between the passes over a task.
constexpr int64_t kTask = 8192;

// Vectors beside each other that lie in memory at base, base + stride, ...; n lanes of the last one count.
struct Strip {
    int64_t statistic, slot;  // of the first lane (pixels) or of all lanes (rows)
    int64_t base, steps, stride, n;
};

struct Plan {
    bool pixels;  // channels last: lanes are channels
    int64_t images, channels, length, statistics;
    int64_t pieces;    // of a row, or tasks of an image
    int64_t together;  // rows or pixels of a task
    int64_t tasks, slots;

    Plan(const Tensor& x, bool channels_last) {
        images = x.size(0), channels = x.size(1), statistics = images * channels;
        length = statistics ? x.numel() / statistics : 0;
        pixels = channels_last;
        if (pixels) {
            together = std::max<int64_t>(1, kTask / std::max<int64_t>(1, channels));
            pieces = (length + together - 1) / together;
            tasks = images * pieces;
            slots = tasks * channels;
        } else {
            pieces = std::max<int64_t>(1, (length + kTask - 1) / kTask);
            together = pieces > 1 ? 1 : std::max<int64_t>(1, kTask / std::max<int64_t>(1, length));
            tasks = pieces > 1 ? statistics * pieces : (statistics + together - 1) / together;
            slots = statistics * pieces;
        }
    }
    int64_t count(int64_t piece) const {
        const int64_t most = pixels ? together : pieces > 1 ? kTask : length;
        return std::min(most, length - piece * most);
    }

    // Calls visit(strip, vectors, full) for all values of a task; W lanes a vector.
    template <int W, class Visit>
    void walk(int64_t task, const Visit& visit) const {
        constexpr std::integral_constant<int, 4> four{};
        constexpr std::integral_constant<int, 1> one{};
        if (pixels) {
            const int64_t image = task / pieces, piece = task % pieces;
            const int64_t base = (image * length + piece * together) * channels, pixels_here = count(piece);
            const auto at = [&](int64_t c, int64_t n) {
                return Strip{image * channels + c, task * channels + c, base + c, pixels_here, channels, n};
            };
            int64_t c = 0;
            for (; c + 4 * W <= channels; c += 4 * W) visit(at(c, W), four, std::true_type{});
            for (; c + W <= channels; c += W) visit(at(c, W), one, std::true_type{});
            if (c < channels) visit(at(c, channels - c), one, std::false_type{});
            return;
        }
        const int64_t first = pieces > 1 ? task / pieces : task * together;
        const int64_t last = pieces > 1 ? first + 1 : std::min(first + together, statistics);
        const int64_t piece = pieces > 1 ? task % pieces : 0, values = count(piece);
        for (int64_t row = first; row < last; ++row) {
            const int64_t slot = row * pieces + piece;
            int64_t base = row * length + piece * kTask;
            const int64_t fours = values / (4 * W), ones = values % (4 * W) / W, rest = values % W;
            if (fours) visit(Strip{row, slot, base, fours, 4 * W, W}, four, std::true_type{});
            base += fours * 4 * W;
            if (ones) visit(Strip{row, slot, base, ones, W, W}, one, std::true_type{});
            base += ones * W;
            if (rest) visit(Strip{row, slot, base, 1, W, rest}, one, std::false_type{});
        }
    }
    // Calls slot(statistic, slot, count) for all slots in the order of memory.
    template <class Slot>
    void for_slots(const Slot& at) const {
        int64_t slot = 0;
        for (int64_t outer = 0; outer < (pixels ? images : statistics); ++outer) {
            for (int64_t piece = 0; piece < pieces; ++piece) {
                const double values = static_cast<double>(count(piece));
                if (pixels) {
                    for (int64_t c = 0; c < channels; ++c) at(outer * channels + c, slot++, values);
                } else {
                    at(outer, slot++, values);
                }
            }
        }
    }
};

// One number for each lane of a strip's V vectors, from an array by statistic or slot.
template <bool kPixels, int V, bool kFull, class A>
inline void constants(const A* from, int64_t index, int64_t n, Vec<A> (&out)[V]) {
    for (int v = 0; v < V; ++v) {
        if constexpr (kPixels) {
            out[v] = load_n<kFull>(from + index + v * kWidth<A>, n);
        } else {
            out[v] = broadcast<A>(from[index]);
        }
    }
}

// Adds a strip's sums to its slots. Lanes beyond n are left out.
template <bool kPixels, int V, bool kFull, class A>
inline void add_to_slots(A* slots, const Strip& at, const Vec<A> (&sums)[V]) {
    if constexpr (kPixels) {
        for (int v = 0; v < V; ++v) {
            A* to = slots + at.slot + v * kWidth<A>;
            store_n<kFull>(to, load_n<kFull>(to, at.n) + sums[v], at.n);
        }
    } else {
        Vec<A> total = sums[0];
        for (int v = 1; v < V; ++v) total += sums[v];
        if constexpr (!kFull) total = select<A>(from_bits<A>((1u << at.n) - 1), total, Vec<A>{});
        slots[at.slot] += sum_lanes<A>(total);
    }
}

// Calls body(offset, v) for every vector of a strip; v numbers those beside each other.
template <int V, class A, class Body>
inline void for_strip(const Strip& at, const Body& body) {
    for (int64_t step = 0; step < at.steps; ++step) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) body(at.base + step * at.stride + v * kWidth<A>, v);
    }
}

// Mean and 1 / sqrt(variance + eps) of each (image, channel) into stats [2, statistics]. A task takes its own mean
// before it squares, adds up what that mean is off, and the parts are joined in double: a mean far from zero costs no
// digits of the variance.
template <class T, bool kPixels>
void statistics(const T* x, Accumulate<T>* stats, double eps, const Plan& plan) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    std::vector<A> means(plan.slots), rests(plan.slots), squares(plan.slots);
    at::parallel_for(0, plan.tasks, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
            plan.walk<W>(task, [&](const Strip& at, auto vectors, auto full) {
                constexpr int V = decltype(vectors)::value;
                constexpr bool kFull = decltype(full)::value;
                Vec<A> sums[V] = {};
                for_strip<V, A>(at, [&](int64_t i, int v) { sums[v] += load_n<kFull>(x + i, at.n); });
                add_to_slots<kPixels, V, kFull>(means.data(), at, sums);
            });
            const auto divide = [&](int64_t slot, int64_t count) { means[slot] /= static_cast<A>(count); };
            if (kPixels) {
                for (int64_t c = 0; c < plan.channels; ++c)
                    divide(task * plan.channels + c, plan.count(task % plan.pieces));
            } else if (plan.pieces > 1) {
                divide(task, plan.count(task % plan.pieces));
            } else {
                const int64_t end = std::min((task + 1) * plan.together, plan.statistics);
                for (int64_t row = task * plan.together; row < end; ++row) divide(row, plan.length);
            }
            plan.walk<W>(task, [&](const Strip& at, auto vectors, auto full) {
                constexpr int V = decltype(vectors)::value;
                constexpr bool kFull = decltype(full)::value;
                Vec<A> mean[V], sums[V] = {}, square_sums[V] = {};
                constants<kPixels, V, kFull>(means.data(), at.slot, at.n, mean);
                for_strip<V, A>(at, [&](int64_t i, int v) {
                    const Vec<A> d = load_n<kFull>(x + i, at.n) - mean[v];
                    sums[v] += d;
                    square_sums[v] += d * d;
                });
                add_to_slots<kPixels, V, kFull>(rests.data(), at, sums);
                add_to_slots<kPixels, V, kFull>(squares.data(), at, square_sums);
            });
        }
    });
    std::vector<double> mean(plan.statistics, 0.0), square(plan.statistics, 0.0);
    const double length = static_cast<double>(plan.length);
    plan.for_slots([&](int64_t s, int64_t slot, double count) { mean[s] += count * means[slot] + rests[slot]; });
    for (double& value : mean) value /= length;
    plan.for_slots([&](int64_t s, int64_t slot, double count) {
        // the sum of (x - mean)^2 from that of d = x - means[slot]
        const double off = means[slot] - mean[s];
        square[s] += squares[slot] + off * (2.0 * rests[slot] + count * off);
    });
    for (int64_t s = 0; s < plan.statistics; ++s) {
        stats[s] = static_cast<A>(mean[s]);
        stats[plan.statistics + s] = static_cast<A>(1.0 / std::sqrt(std::max(square[s], 0.0) / length + eps));
    }
}

// out = lrelu((x - mean) * rstd) + residual
template <class T, bool kPixels>
void normalise(const T* x, const T* residual, const Accumulate<T>* stats, double slope, T* out, const Plan& plan) {
    using A = Accumulate<T>;
    const Vec<A> one = broadcast<A>(1), negative = broadcast<A>(static_cast<A>(slope));
    at::parallel_for(0, plan.tasks, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
            plan.walk<kWidth<A>>(task, [&](const Strip& at, auto vectors, auto full) {
                constexpr int V = decltype(vectors)::value;
                constexpr bool kFull = decltype(full)::value;
                Vec<A> mean[V], rstd[V];
                constants<kPixels, V, kFull>(stats, at.statistic, at.n, mean);
                constants<kPixels, V, kFull>(stats + plan.statistics, at.statistic, at.n, rstd);
                for_strip<V, A>(at, [&](int64_t i, int v) {
                    Vec<A> y = (load_n<kFull>(x + i, at.n) - mean[v]) * rstd[v];
                    y *= select<A>(y > 0, one, negative);
                    if (residual) y += load_n<kFull>(residual + i, at.n);
                    store_n<kFull>(out + i, y, at.n);
                });
            });
        }
    });
}

// gx = rstd * (h - mean(h) - y * mean(h * y)) with y = (x - mean) * rstd and h = g * lrelu'(y)
template <class T, bool kPixels>
void backward(const T* grad, const T* x, const Accumulate<T>* stats, double slope, T* gx, const Plan& plan) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    const Vec<A> one = broadcast<A>(1), negative = broadcast<A>(static_cast<A>(slope));
    std::vector<A> sums(plan.slots), dots(plan.slots);
    at::parallel_for(0, plan.tasks, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
            plan.walk<W>(task, [&](const Strip& at, auto vectors, auto full) {
                constexpr int V = decltype(vectors)::value;
                constexpr bool kFull = decltype(full)::value;
                Vec<A> mean[V], rstd[V], sum[V] = {}, dot[V] = {};
                constants<kPixels, V, kFull>(stats, at.statistic, at.n, mean);
                constants<kPixels, V, kFull>(stats + plan.statistics, at.statistic, at.n, rstd);
                for_strip<V, A>(at, [&](int64_t i, int v) {
                    const Vec<A> y = (load_n<kFull>(x + i, at.n) - mean[v]) * rstd[v];
                    const Vec<A> h = load_n<kFull>(grad + i, at.n) * select<A>(y > 0, one, negative);
                    sum[v] += h;
                    dot[v] += h * y;
                });
                add_to_slots<kPixels, V, kFull>(sums.data(), at, sum);
                add_to_slots<kPixels, V, kFull>(dots.data(), at, dot);
            });
        }
    });
    std::vector<double> sum(plan.statistics, 0.0), dot(plan.statistics, 0.0);
    plan.for_slots([&](int64_t s, int64_t slot, double) {
        sum[s] += sums[slot];
        dot[s] += dots[slot];
    });
    std::vector<A> means(2 * plan.statistics);
    for (int64_t s = 0; s < plan.statistics; ++s) {
        means[s] = static_cast<A>(sum[s] / static_cast<double>(plan.length));
        means[plan.statistics + s] = static_cast<A>(dot[s] / static_cast<double>(plan.length));
    }
    at::parallel_for(0, plan.tasks, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
            plan.walk<W>(task, [&](const Strip& at, auto vectors, auto full) {
                constexpr int V = decltype(vectors)::value;
                constexpr bool kFull = decltype(full)::value;
                Vec<A> mean[V], rstd[V], h_mean[V], dot_mean[V];
                constants<kPixels, V, kFull>(stats, at.statistic, at.n, mean);
                constants<kPixels, V, kFull>(stats + plan.statistics, at.statistic, at.n, rstd);
                constants<kPixels, V, kFull>(means.data(), at.statistic, at.n, h_mean);
                constants<kPixels, V, kFull>(means.data() + plan.statistics, at.statistic, at.n, dot_mean);
                for_strip<V, A>(at, [&](int64_t i, int v) {
                    const Vec<A> y = (load_n<kFull>(x + i, at.n) - mean[v]) * rstd[v];
                    const Vec<A> h = load_n<kFull>(grad + i, at.n) * select<A>(y > 0, one, negative);
                    store_n<kFull>(gx + i, rstd[v] * (h - h_mean[v] - y * dot_mean[v]), at.n);
                });
            });
        }
    });
}

void check_like(const Tensor& value, const Tensor& x, const char* name) {
    TORCH_CHECK(value.sizes() == x.sizes() && value.scalar_type() == x.scalar_type() && value.device() == x.device(),
                "instance_norm: ", name, " is ", value.scalar_type(), " of shape ", value.sizes(), " on ",
                value.device(), ", expected ", x.scalar_type(), " of shape ", x.sizes(), " on ", x.device());
}

std::tuple<Tensor, Tensor> forward_cpu(const Tensor& x_any, const OptionalTensor& residual, double slope, double eps) {
    TORCH_CHECK(x_any.dim() >= 3, "instance_norm: x must have rank 3 or more, got ", x_any.dim());
    const bool channels_last = is_channels_last(x_any);
    const auto format = memory_format(x_any.dim(), channels_last);
    const Tensor x = x_any.contiguous(format);
    Tensor other;
    if (residual) {
        check_like(*residual, x, "residual");
        other = residual->contiguous(format);
    }
    Tensor out = empty_like(x, format);
    const auto wide = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    Tensor stats = at::empty({2, x.size(0), x.size(1)}, x.options().dtype(wide));
    if (x.numel() == 0) return {out, stats.zero_()};
    const Plan plan(x, channels_last);
    ANIFAST_DISPATCH(x.scalar_type(), "instance_norm", [&] {
        const auto run = [&](auto pixels) {
            auto* numbers = stats.mutable_data_ptr<Accumulate<scalar_t>>();
            const auto* from = x.const_data_ptr<scalar_t>();
            statistics<scalar_t, pixels>(from, numbers, eps, plan);
            normalise<scalar_t, pixels>(from, other.defined() ? other.const_data_ptr<scalar_t>() : nullptr, numbers,
                                        slope, out.mutable_data_ptr<scalar_t>(), plan);
        };
        plan.pixels ? run(std::true_type{}) : run(std::false_type{});
    });
    return {out, stats};
}

Tensor backward_cpu(const Tensor& grad_any, const Tensor& x_any, const Tensor& stats, double slope) {
    const bool channels_last = is_channels_last(x_any);
    const auto format = memory_format(x_any.dim(), channels_last);
    const Tensor x = x_any.contiguous(format);
    check_like(grad_any, x, "grad");
    const Tensor grad = grad_any.contiguous(format);
    const auto wide = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    TORCH_CHECK(stats.scalar_type() == wide && stats.is_contiguous() && stats.numel() == 2 * x.size(0) * x.size(1),
                "instance_norm: stats must be ", wide, " of shape [2, ", x.size(0), ", ", x.size(1), "], got ",
                stats.scalar_type(), " of shape ", stats.sizes());
    Tensor gx = empty_like(x, format);
    if (x.numel() == 0) return gx;
    const Plan plan(x, channels_last);
    ANIFAST_DISPATCH(x.scalar_type(), "instance_norm_backward", [&] {
        const auto run = [&](auto pixels) {
            backward<scalar_t, pixels>(grad.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(),
                                       stats.const_data_ptr<Accumulate<scalar_t>>(), slope,
                                       gx.mutable_data_ptr<scalar_t>(), plan);
        };
        plan.pixels ? run(std::true_type{}) : run(std::false_type{});
    });
    return gx;
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CPU, m) {
    m.impl("instance_norm", &forward_cpu);
    m.impl("instance_norm_backward", &backward_cpu);
}

}  // namespace anifast
