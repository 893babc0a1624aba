// domain_norm on the CPU: see anifast/ops/domain_norm.py for the formulas and the two ops.
//
// Lanes are channels in channels last (and in matrices), where a row of gamma is one run of pixels, and pixels in
// N,C,H,W, where a chunk is some pixels of all planes of an image. What stays in the first caches, a block of pixels or
// a chunk, is read twice: pixel norm needs all channels of a pixel before it changes one. Backward's first pass leaves
// two numbers a pixel behind, after which its second pass is one over single values.
//
// Work is cut into tasks of a row whose borders depend on the sizes alone. Each leaves its sums, one for each channel,
// in slots of its own, and slots are added in order in double: results are the same whatever the number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
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

// Values of a task, about: its sums are small beside it, and it stays in the second cache. In channels last also pixels
// of a task at most, so that sums in float32 stay short.
constexpr int64_t kTask = 16384;
constexpr int64_t kLongest = 256;
// Values of what is read twice at once, about: a block of pixels, or a chunk of an image. The latter grows with the
// channels, up to a limit, before the runs of its planes become shorter than kRun.
constexpr int64_t kBlock = 4096;
constexpr int64_t kChunk = 8192;
constexpr int64_t kLargestChunk = 65536;
constexpr int64_t kRun = 128;

constexpr int64_t up_to(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

template <int N>
using Number = std::integral_constant<int, N>;

// The sizes of a call, and its tasks. In channels last a row is a run of pixels; there, `folded` pixels of few channels
// count as one of many where nothing is asked of a pixel as such.
struct Plan {
    int64_t images, channels, pixels, groups, rows;
    bool last;
    int64_t folded = 1;
    int64_t lanes;     // channels * folded
    int64_t length;    // of a row: in channels last pixels / folded, else images
    int64_t chunk;     // pixels of a chunk; in channels last of a block
    int64_t chunks;    // of an image
    int64_t together;  // chunks of a task; in channels last pixels
    int64_t pieces;    // tasks of a row

    Plan(const Tensor& x, bool channels_last, int64_t groups, int64_t rows, bool pixel_norm, int64_t width)
        : groups(groups), rows(rows) {
        images = x.size(0), channels = x.size(1), pixels = x.numel() / (images * channels);
        last = channels_last || pixels == 1;
        length = images / rows * (last ? pixels : 1);
        if (last && !pixel_norm && channels < width && length % width == 0) folded = width, length /= width;
        lanes = channels * folded;
        if (last) {
            chunk = std::max(width, std::min(kLongest, kBlock / lanes) / width * width);
            together = std::max(chunk, std::min(kLongest, kTask / lanes) / chunk * chunk);
            chunks = 1;
            pieces = (length + together - 1) / together;
        } else {
            const int64_t run = std::max(kChunk / channels, std::min(kRun, kLargestChunk / channels));
            chunk = std::min(up_to(pixels, width), std::max(width, run / width * width));
            chunks = (pixels + chunk - 1) / chunk;
            const int64_t all = length * chunks;
            together = std::clamp<int64_t>(kTask / (channels * std::min(chunk, pixels)), 1, all);
            pieces = (all + together - 1) / together;
        }
    }
    int64_t tasks() const { return rows * pieces; }
    int64_t group(int64_t row) const { return row / (rows / groups); }
    int64_t of_group() const { return pieces * (rows / groups); }  // tasks
    // Values of each lane in a task.
    int64_t count(int64_t task) const {
        const int64_t first = task % pieces * together;
        if (last) return std::min(together, length - first);
        int64_t sum = 0;
        for (int64_t at = first; at < std::min(first + together, length * chunks); ++at) sum += size(at);
        return sum;
    }
    // Pixels of a row's chunk.
    int64_t size(int64_t at) const { return std::min(chunk, pixels - at % chunks * chunk); }

    // Calls run(task, row, room for so many vectors, as it was left) for every task.
    template <class A, class Run>
    void each(int64_t vectors, const Run& run) const {
        at::parallel_for(0, tasks(), 1, [&](int64_t begin, int64_t end) {
            const std::unique_ptr<Vec<A>[]> room(new Vec<A>[vectors]);
            for (int64_t task = begin; task < end; ++task) run(task, task / pieces, room.get());
        });
    }
    // Channels last: calls run(first pixel, pixels) for the blocks of a task, in x's own counting.
    template <class Run>
    void blocks(int64_t task, const Run& run) const {
        const int64_t row = task / pieces, first = task % pieces * together, end = std::min(first + together, length);
        for (int64_t at = first; at < end; at += chunk) run(row * length + at, std::min(chunk, end - at));
    }
    // N,C,H,W: calls run(offset of its first value, number of its first pixel, pixels) for the chunks of a task.
    template <class Run>
    void pieces_of(int64_t task, const Run& run) const {
        const int64_t row = task / pieces, first = task % pieces * together;
        for (int64_t at = first; at < std::min(first + together, length * chunks); ++at) {
            const int64_t image = row * length + at / chunks, pixel = at % chunks * chunk;
            run(image * channels * pixels + pixel, image * pixels + pixel, size(at));
        }
    }
};

// Calls run(c, vectors, full, n) for the lanes [0, lanes): as many vectors beside each other as go up to Most.
template <int W, int Most, class Run>
inline void strips(int64_t lanes, const Run& run) {
    int64_t c = 0;
    for (; c + Most * W <= lanes; c += Most * W) run(c, Number<Most>{}, std::true_type{}, int64_t(W));
    if constexpr (Most > 4) {
        for (; c + 4 * W <= lanes; c += 4 * W) run(c, Number<4>{}, std::true_type{}, int64_t(W));
    }
    if constexpr (Most > 2) {
        for (; c + 2 * W <= lanes; c += 2 * W) run(c, Number<2>{}, std::true_type{}, int64_t(W));
    }
    for (; c + W <= lanes; c += W) run(c, Number<1>{}, std::true_type{}, int64_t(W));
    if (c < lanes) run(c, Number<1>{}, std::false_type{}, lanes - c);
}

// Calls run(first, Number<Each>) for whole numbers of things in [0, end), then run(first, Number<1>).
template <int Each, class Run>
inline void in_steps(int64_t end, const Run& run) {
    int64_t i = 0;
    for (; i + Each <= end; i += Each) run(i, Number<Each>{});
    for (; i < end; ++i) run(i, Number<1>{});
}

inline Vec<float> in_pairs(Vec<float> low, Vec<float> high) {
    Vec<float> even, odd;
    unzip(low, high, even, odd);
    return even + odd;
}
inline Vec<double> in_pairs(Vec<double> low, Vec<double> high) {
    Vec<double> sum;
    constexpr int kHalf = kWidth<double> / 2;
    for (int i = 0; i < kHalf; ++i)
        sum[i] = low[2 * i] + low[2 * i + 1], sum[kHalf + i] = high[2 * i] + high[2 * i + 1];
    return sum;
}

// The sums of the lanes of as many vectors as a vector has lanes, one a lane. The vectors are overwritten.
template <class A>
inline Vec<A> sums_of(Vec<A>* of) {
#pragma GCC unroll 4
    for (int count = kWidth<A>; count > 1; count /= 2) {
        for (int i = 0; i < count / 2; ++i) of[i] = in_pairs(of[2 * i], of[2 * i + 1]);
    }
    return of[0];
}

template <class A>
inline Vec<A> square_root(Vec<A> x) {
    Vec<A> out;
    for (int i = 0; i < kWidth<A>; ++i) out[i] = std::sqrt(x[i]);
    return out;
}

// What turns values into activations: v = (x - mean) * scale + shift, lrelu(v) = v * side(v).
template <class A>
struct Affine {
    Vec<A> mean, scale, shift;

    template <bool kFull>
    static Affine channels(const A* mean, const A* scale, const A* shift, int64_t c, int64_t n) {
        return {load_n<kFull>(mean + c, n), load_n<kFull>(scale + c, n), load_n<kFull>(shift + c, n)};
    }
    static Affine channel(const A* mean, const A* scale, const A* shift, int64_t c) {
        return {broadcast<A>(mean[c]), broadcast<A>(scale[c]), broadcast<A>(shift[c])};
    }
};

template <class A>
struct Side {
    Vec<A> one = broadcast<A>(1), negative;
    explicit Side(double slope) : negative(broadcast<A>(static_cast<A>(slope))) {}
    Vec<A> operator()(Vec<A> v) const { return select<A>(v > 0, one, negative); }
};

// The numbers of every lane by row (scale, shift) and by group (mean).
template <class A>
struct Numbers {
    std::vector<A> mean, scale, shift;
};

// What each task found of every lane. Forward: its own mean m, and the sums of x - m (what m is off) and of (x - m)^2;
// backward: the sums of h and of h * (x - mean).
template <class A>
struct Slots {
    std::vector<A> first, second, third;
    explicit Slots(const Plan& plan, bool three)
        : first(plan.tasks() * plan.lanes),
          second(plan.tasks() * plan.lanes),
          third(three ? plan.tasks() * plan.lanes : 0) {}
};

// Adds vectors of each channel, [channels, K] in `partial`, into K slots a channel, dividing them.
template <int K, class A>
void add_lanes(const Vec<A>* partial, int64_t channels, const std::array<A*, K>& to, A divisor) {
    constexpr int W = kWidth<A>;
    for (int64_t c = 0; c < channels; c += W) {
        const int64_t n = std::min<int64_t>(W, channels - c);
        for (int k = 0; k < K; ++k) {
            Vec<A> some[W] = {};
            for (int64_t i = 0; i < n; ++i) some[i] = partial[(c + i) * K + k];
            store_first(to[k] + c, sums_of<A>(some) / divisor, n);
        }
    }
}

// Forward's sums. A task takes its mean before it squares; see `join`.
template <class T>
void sums_last(const T* x, const Plan& plan, Slots<Accumulate<T>>& slots) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    plan.each<A>(0, [&](int64_t task, int64_t row, Vec<A>*) {
        const int64_t lanes = plan.lanes, count = plan.count(task);
        const T* from = x + (row * plan.length + task % plan.pieces * plan.together) * lanes;
        A* mean = slots.first.data() + task * lanes;
        strips<W, 16>(lanes, [&](int64_t c, auto vectors, auto full, int64_t n) {
            constexpr int V = decltype(vectors)::value, U = V >= 4 ? 1 : 4 / V;
            constexpr bool kFull = decltype(full)::value;
            Vec<A> sum[U][V] = {};
            in_steps<U>(count, [&](int64_t p, auto some) {
                for (int u = 0; u < decltype(some)::value; ++u) {
                    for (int v = 0; v < V; ++v) sum[u][v] += load_n<kFull>(from + (p + u) * lanes + c + v * W, n);
                }
            });
            for (int v = 0; v < V; ++v) {
                for (int u = 1; u < U; ++u) sum[0][v] += sum[u][v];
                store_n<kFull>(mean + c + v * W, sum[0][v] / static_cast<A>(count), n);
            }
        });
        strips<W, 4>(lanes, [&](int64_t c, auto vectors, auto full, int64_t n) {
            constexpr int V = decltype(vectors)::value, U = V >= 4 ? 1 : 4 / V;
            constexpr bool kFull = decltype(full)::value;
            Vec<A> own[V], sum[U][V] = {}, square[U][V] = {};
            for (int v = 0; v < V; ++v) own[v] = load_n<kFull>(mean + c + v * W, n);
            in_steps<U>(count, [&](int64_t p, auto some) {
                for (int u = 0; u < decltype(some)::value; ++u) {
                    for (int v = 0; v < V; ++v) {
                        const Vec<A> d = load_n<kFull>(from + (p + u) * lanes + c + v * W, n) - own[v];
                        sum[u][v] += d;
                        square[u][v] += d * d;
                    }
                }
            });
            for (int v = 0; v < V; ++v) {
                for (int u = 1; u < U; ++u) sum[0][v] += sum[u][v], square[0][v] += square[u][v];
                store_n<kFull>(slots.second.data() + task * lanes + c + v * W, sum[0][v], n);
                store_n<kFull>(slots.third.data() + task * lanes + c + v * W, square[0][v], n);
            }
        });
    });
}

template <class T>
void sums_planes(const T* x, const Plan& plan, Slots<Accumulate<T>>& slots) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    plan.each<A>(2 * plan.channels, [&](int64_t task, int64_t, Vec<A>* partial) {
        const int64_t channels = plan.channels;
        std::fill(partial, partial + channels, Vec<A>{});
        plan.pieces_of(task, [&](int64_t base, int64_t, int64_t count) {
            for (int64_t c = 0; c < channels; ++c) {
                const T* from = x + base + c * plan.pixels;
                Vec<A> sum[4] = {};
                int64_t i = 0;
                for (; i + 4 * W <= count; i += 4 * W) {
                    for (int v = 0; v < 4; ++v) sum[v] += load(from + i + v * W);
                }
                for (; i + W <= count; i += W) sum[0] += load(from + i);
                if (i < count) sum[1] += load_first(from + i, count - i);
                partial[c] += (sum[0] + sum[1]) + (sum[2] + sum[3]);
            }
        });
        A* mean = slots.first.data() + task * channels;
        add_lanes<1, A>(partial, channels, {mean}, static_cast<A>(plan.count(task)));
        std::fill(partial, partial + 2 * channels, Vec<A>{});
        plan.pieces_of(task, [&](int64_t base, int64_t, int64_t count) {
            for (int64_t c = 0; c < channels; ++c) {
                const T* from = x + base + c * plan.pixels;
                const Vec<A> own = broadcast<A>(mean[c]);
                Vec<A> sum[4] = {}, square[4] = {};
                const auto add = [&](Vec<A> d, int v) {
                    sum[v] += d;
                    square[v] += d * d;
                };
                int64_t i = 0;
                for (; i + 4 * W <= count; i += 4 * W) {
                    for (int v = 0; v < 4; ++v) add(load(from + i + v * W) - own, v);
                }
                for (; i + W <= count; i += W) add(load(from + i) - own, 0);
                if (i < count) {
                    const Vec<A> d = load_first(from + i, count - i) - own;
                    add(select<A>(first_lanes<A>(count - i), d, Vec<A>{}), 1);
                }
                partial[2 * c] += (sum[0] + sum[1]) + (sum[2] + sum[3]);
                partial[2 * c + 1] += (square[0] + square[1]) + (square[2] + square[3]);
            }
        });
        add_lanes<2, A>(partial, channels,
                        {slots.second.data() + task * channels, slots.third.data() + task * channels}, A(1));
    });
}

// Mean and deviation of each group from what its tasks found, joined in double: a mean far from zero costs no digits of
// the variance.
template <class A>
void join(const Slots<A>& slots, const Plan& plan, double eps, A* means, A* deviations) {
    const int64_t channels = plan.channels;
    std::vector<double> mean(channels), square(channels);
    const double all = static_cast<double>(plan.images / plan.groups * plan.pixels);
    for (int64_t group = 0; group < plan.groups; ++group) {
        std::fill(mean.begin(), mean.end(), 0.0);
        std::fill(square.begin(), square.end(), 0.0);
        const auto for_slots = [&](const auto& run) {
            for (int64_t task = group * plan.of_group(); task < (group + 1) * plan.of_group(); ++task) {
                const double count = static_cast<double>(plan.count(task));
                for (int64_t fold = 0; fold < plan.folded; ++fold) run(task * plan.lanes + fold * channels, count);
            }
        };
        for_slots([&](int64_t slot, double count) {
            const A *first = slots.first.data() + slot, *second = slots.second.data() + slot;
            for (int64_t c = 0; c < channels; ++c) mean[c] += count * first[c] + second[c];
        });
        for (double& value : mean) value /= all;
        for_slots([&](int64_t slot, double count) {
            const A *first = slots.first.data() + slot, *second = slots.second.data() + slot;
            const A* third = slots.third.data() + slot;
            for (int64_t c = 0; c < channels; ++c) {
                // the sum of (x - mean)^2 from that of d = x - first
                const double off = first[c] - mean[c];
                square[c] += third[c] + off * (2.0 * second[c] + count * off);
            }
        });
        for (int64_t c = 0; c < channels; ++c) {
            means[group * channels + c] = static_cast<A>(mean[c]);
            deviations[group * channels + c] = static_cast<A>(std::sqrt(std::max(square[c], 0.0) / all + eps));
        }
    }
}

// The numbers by which values become activations, from gamma, beta and stats [4, groups, C].
template <class A>
Numbers<A> numbers(const Plan& plan, const A* gamma, const A* beta, const A* stats) {
    const int64_t channels = plan.channels, lanes = plan.lanes, all = plan.groups * channels;
    Numbers<A> found{std::vector<A>(plan.groups * lanes), std::vector<A>(plan.rows * lanes),
                     std::vector<A>(plan.rows * lanes)};
    for (int64_t row = 0; row < plan.rows; ++row) {
        const int64_t group = plan.group(row), from = group * channels;
        for (int64_t fold = 0; fold < plan.folded; ++fold) {
            A* mean = found.mean.data() + group * lanes + fold * channels;
            A* scale = found.scale.data() + row * lanes + fold * channels;
            A* shift = found.shift.data() + row * lanes + fold * channels;
            for (int64_t c = 0; c < channels; ++c) {
                const A g = gamma[row * channels + c];
                mean[c] = stats[from + c];
                scale[c] = g * (stats[2 * all + from + c] / stats[all + from + c]);
                shift[c] = g * stats[3 * all + from + c] + beta[row * channels + c];
            }
        }
    }
    return found;
}

template <class T, bool kPixelNorm>
void normalise_last(const T* x, const Numbers<Accumulate<T>>& by, double slope, double pixel_eps, T* out,
                    const Plan& plan) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    const Side<A> side(slope);
    const int64_t stride = up_to(plan.lanes, W);
    plan.each<A>(kPixelNorm ? stride : 0, [&](int64_t task, int64_t row, Vec<A>* kept) {  // activations of W pixels
        const int64_t lanes = plan.lanes;
        const A* mean = by.mean.data() + plan.group(row) * lanes;
        const A *scale = by.scale.data() + row * lanes, *shift = by.shift.data() + row * lanes;
        const A share = A(1) / static_cast<A>(plan.channels), eps = static_cast<A>(pixel_eps);
        plan.blocks(task, [&](int64_t first, int64_t count) {
            const T* from = x + first * lanes;
            T* to = out + first * lanes;
            if constexpr (!kPixelNorm) {
                strips<W, 4>(lanes, [&](int64_t c, auto vectors, auto full, int64_t n) {
                    constexpr int V = decltype(vectors)::value;
                    constexpr bool kFull = decltype(full)::value;
                    Affine<A> at[V];
                    for (int v = 0; v < V; ++v)
                        at[v] = Affine<A>::template channels<kFull>(mean, scale, shift, c + v * W, n);
                    for (int64_t p = 0; p < count; ++p) {
                        for (int v = 0; v < V; ++v) {
                            const int64_t i = p * lanes + c + v * W;
                            const Vec<A> y = (load_n<kFull>(from + i, n) - at[v].mean) * at[v].scale + at[v].shift;
                            store_n<kFull>(to + i, y * side(y), n);
                        }
                    }
                });
            } else {
                for (int64_t begin = 0; begin < count; begin += W) {
                    const int64_t some = std::min<int64_t>(W, count - begin);
                    Vec<A> squares[W] = {};
                    in_steps<4>(some, [&](int64_t p, auto pixels) {
                        constexpr int U = decltype(pixels)::value;
                        Vec<A> sum[U] = {};
                        for_vectors<W>(0, lanes, [&](int64_t c, int64_t n, auto full) {
                            constexpr bool kFull = decltype(full)::value;
                            const auto at = Affine<A>::template channels<kFull>(mean, scale, shift, c, n);
                            for (int u = 0; u < U; ++u) {
                                const Vec<A> value = load_n<kFull>(from + (begin + p + u) * lanes + c, n);
                                const Vec<A> v = (value - at.mean) * at.scale + at.shift, a = v * side(v);
                                kept[((p + u) * stride + c) / W] = a;
                                sum[u] += a * a;
                            }
                        });
                        for (int u = 0; u < U; ++u) squares[p + u] = sum[u];
                    });
                    const Vec<A> inverse = A(1) / square_root<A>(sums_of<A>(squares) * share + eps);
                    for (int64_t p = 0; p < some; ++p) {
                        const Vec<A> factor = broadcast<A>(inverse[p]);
                        for_vectors<W>(0, lanes, [&](int64_t c, int64_t n, auto full) {
                            store_n<decltype(full)::value>(to + (begin + p) * lanes + c,
                                                           kept[(p * stride + c) / W] * factor, n);
                        });
                    }
                }
            }
        });
    });
}

template <class T, bool kPixelNorm>
void normalise_planes(const T* x, const Numbers<Accumulate<T>>& by, double slope, double pixel_eps, T* out,
                      const Plan& plan) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    const Side<A> side(slope);
    const int64_t channels = plan.channels, vectors = plan.chunk / W;
    plan.each<A>(kPixelNorm ? (channels + 1) * vectors : 0, [&](int64_t task, int64_t row, Vec<A>* kept) {
        const A* mean = by.mean.data() + plan.group(row) * channels;
        const A *scale = by.scale.data() + row * channels, *shift = by.shift.data() + row * channels;
        Vec<A>* squares = kept + channels * vectors;
        const A share = A(1) / static_cast<A>(channels), eps = static_cast<A>(pixel_eps);
        plan.pieces_of(task, [&](int64_t base, int64_t, int64_t count) {
            if constexpr (!kPixelNorm) {
                for (int64_t c = 0; c < channels; ++c) {
                    const auto at = Affine<A>::channel(mean, scale, shift, c);
                    const T* from = x + base + c * plan.pixels;
                    T* to = out + base + c * plan.pixels;
                    for_vectors<W>(0, count, [&](int64_t i, int64_t n, auto full) {
                        constexpr bool kFull = decltype(full)::value;
                        const Vec<A> v = (load_n<kFull>(from + i, n) - at.mean) * at.scale + at.shift;
                        store_n<kFull>(to + i, v * side(v), n);
                    });
                }
            } else {
                std::fill(squares, squares + vectors, Vec<A>{});
                in_steps<4>(channels, [&](int64_t c, auto planes) {
                    constexpr int U = decltype(planes)::value;
                    Affine<A> at[U];
                    for (int u = 0; u < U; ++u) at[u] = Affine<A>::channel(mean, scale, shift, c + u);
                    const T* from = x + base + c * plan.pixels;
                    for_vectors<W>(0, count, [&](int64_t i, int64_t n, auto full) {
                        constexpr bool kFull = decltype(full)::value;
                        Vec<A> sum = squares[i / W];
                        for (int u = 0; u < U; ++u) {
                            const Vec<A> value = load_n<kFull>(from + u * plan.pixels + i, n);
                            const Vec<A> v = (value - at[u].mean) * at[u].scale + at[u].shift, a = v * side(v);
                            kept[(c + u) * vectors + i / W] = a;
                            sum += a * a;
                        }
                        squares[i / W] = sum;
                    });
                });
                const int64_t used = (count + W - 1) / W;
                for (int64_t i = 0; i < used; ++i) squares[i] = A(1) / square_root<A>(squares[i] * share + eps);
                for (int64_t c = 0; c < channels; ++c) {
                    for_vectors<W>(0, count, [&](int64_t i, int64_t n, auto full) {
                        store_n<decltype(full)::value>(out + base + c * plan.pixels + i,
                                                       kept[c * vectors + i / W] * squares[i / W], n);
                    });
                }
            }
        });
    });
}

// What backward's first pass leaves of each pixel: ga = gp * inverse - a * back.
template <class A>
struct OfPixels {
    A *inverse, *back;

    // From the sums of a^2 and a * gp of pixels beside each other.
    void set(int64_t pixel, int64_t n, Vec<A> square, Vec<A> dot, A share, A eps) const {
        const Vec<A> over = A(1) / square_root<A>(square * share + eps);
        store_first(inverse + pixel, over, n);
        store_first(back + pixel, over * (over * (over * (dot * share))), n);
    }
};

// h of one vector, from x - mean, v's numbers, gp and the pixels' numbers.
template <bool kPixelNorm, class A>
inline Vec<A> before_lrelu(Vec<A> centred, const Affine<A>& at, const Side<A>& side, Vec<A> grad, Vec<A> inverse,
                           Vec<A> back) {
    const Vec<A> v = centred * at.scale + at.shift, factor = side(v);
    if constexpr (kPixelNorm) return (grad * inverse - v * factor * back) * factor;
    return grad * factor;
}

// Sums of h and of h * (x - mean) over each task.
template <class T, bool kPixelNorm>
void gather_last(const T* grad, const T* x, const Numbers<Accumulate<T>>& by, double slope, double pixel_eps,
                 const OfPixels<Accumulate<T>>& of, const Plan& plan, Slots<Accumulate<T>>& slots) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    const Side<A> side(slope);
    plan.each<A>(0, [&](int64_t task, int64_t row, Vec<A>*) {
        const int64_t lanes = plan.lanes;
        const A* mean = by.mean.data() + plan.group(row) * lanes;
        const A *scale = by.scale.data() + row * lanes, *shift = by.shift.data() + row * lanes;
        A *sums = slots.first.data() + task * lanes, *dots = slots.second.data() + task * lanes;
        const A share = A(1) / static_cast<A>(plan.channels), eps = static_cast<A>(pixel_eps);
        plan.blocks(task, [&](int64_t first, int64_t count) {
            const T *from = x + first * lanes, *along = grad + first * lanes;
            for (int64_t begin = 0; kPixelNorm && begin < count; begin += W) {
                const int64_t some = std::min<int64_t>(W, count - begin);
                Vec<A> squares[W] = {}, products[W] = {};
                in_steps<4>(some, [&](int64_t p, auto pixels) {
                    constexpr int U = decltype(pixels)::value;
                    Vec<A> square[U] = {}, product[U] = {};
                    for_vectors<W>(0, lanes, [&](int64_t c, int64_t n, auto full) {
                        constexpr bool kFull = decltype(full)::value;
                        const auto at = Affine<A>::template channels<kFull>(mean, scale, shift, c, n);
                        for (int u = 0; u < U; ++u) {
                            const int64_t i = (begin + p + u) * lanes + c;
                            const Vec<A> v = (load_n<kFull>(from + i, n) - at.mean) * at.scale + at.shift;
                            const Vec<A> a = v * side(v);
                            square[u] += a * a;
                            product[u] += a * load_n<kFull>(along + i, n);
                        }
                    });
                    for (int u = 0; u < U; ++u) squares[p + u] = square[u], products[p + u] = product[u];
                });
                const Vec<A> square = sums_of<A>(squares);
                of.set(first + begin, some, square, sums_of<A>(products), share, eps);
            }
            strips<W, 4>(lanes, [&](int64_t c, auto vectors, auto full, int64_t n) {
                constexpr int V = decltype(vectors)::value, U = V >= 4 ? 1 : 4 / V;
                constexpr bool kFull = decltype(full)::value;
                Affine<A> at[V];
                Vec<A> sum[U][V] = {}, dot[U][V] = {};
                for (int v = 0; v < V; ++v) {
                    at[v] = Affine<A>::template channels<kFull>(mean, scale, shift, c + v * W, n);
                    sum[0][v] = load_n<kFull>(sums + c + v * W, n);
                    dot[0][v] = load_n<kFull>(dots + c + v * W, n);
                }
                in_steps<U>(count, [&](int64_t p, auto pixels) {
                    for (int u = 0; u < decltype(pixels)::value; ++u) {
                        Vec<A> inverse{}, back{};
                        if constexpr (kPixelNorm) {
                            inverse = broadcast<A>(of.inverse[first + p + u]);
                            back = broadcast<A>(of.back[first + p + u]);
                        }
                        for (int v = 0; v < V; ++v) {
                            const int64_t i = (p + u) * lanes + c + v * W;
                            const Vec<A> centred = load_n<kFull>(from + i, n) - at[v].mean;
                            const Vec<A> h = before_lrelu<kPixelNorm, A>(centred, at[v], side,
                                                                         load_n<kFull>(along + i, n), inverse, back);
                            sum[u][v] += h;
                            dot[u][v] += h * centred;
                        }
                    }
                });
                for (int v = 0; v < V; ++v) {
                    for (int u = 1; u < U; ++u) sum[0][v] += sum[u][v], dot[0][v] += dot[u][v];
                    store_n<kFull>(sums + c + v * W, sum[0][v], n);
                    store_n<kFull>(dots + c + v * W, dot[0][v], n);
                }
            });
        });
    });
}

template <class T, bool kPixelNorm>
void gather_planes(const T* grad, const T* x, const Numbers<Accumulate<T>>& by, double slope, double pixel_eps,
                   const OfPixels<Accumulate<T>>& of, const Plan& plan, Slots<Accumulate<T>>& slots) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    const Side<A> side(slope);
    const int64_t channels = plan.channels, vectors = plan.chunk / W;
    plan.each<A>(2 * (channels + vectors), [&](int64_t task, int64_t row, Vec<A>* partial) {
        const A* mean = by.mean.data() + plan.group(row) * channels;
        const A *scale = by.scale.data() + row * channels, *shift = by.shift.data() + row * channels;
        const A share = A(1) / static_cast<A>(channels), eps = static_cast<A>(pixel_eps);
        Vec<A>*squares = partial + 2 * channels, *products = squares + vectors;
        std::fill(partial, squares, Vec<A>{});
        plan.pieces_of(task, [&](int64_t base, int64_t pixel, int64_t count) {
            if constexpr (kPixelNorm) {
                std::fill(squares, products + vectors, Vec<A>{});
                in_steps<4>(channels, [&](int64_t c, auto planes) {
                    constexpr int U = decltype(planes)::value;
                    Affine<A> at[U];
                    for (int u = 0; u < U; ++u) at[u] = Affine<A>::channel(mean, scale, shift, c + u);
                    const int64_t start = base + c * plan.pixels;
                    for_vectors<W>(0, count, [&](int64_t i, int64_t n, auto full) {
                        constexpr bool kFull = decltype(full)::value;
                        Vec<A> square = squares[i / W], product = products[i / W];
                        for (int u = 0; u < U; ++u) {
                            const int64_t j = start + u * plan.pixels + i;
                            const Vec<A> v = (load_n<kFull>(x + j, n) - at[u].mean) * at[u].scale + at[u].shift;
                            const Vec<A> a = v * side(v);
                            square += a * a;
                            product += a * load_n<kFull>(grad + j, n);
                        }
                        squares[i / W] = square, products[i / W] = product;
                    });
                });
                for (int64_t i = 0; i < count; i += W) {
                    of.set(pixel + i, std::min<int64_t>(W, count - i), squares[i / W], products[i / W], share, eps);
                }
            }
            in_steps<2>(channels, [&](int64_t c, auto planes) {
                constexpr int U = decltype(planes)::value;
                Affine<A> at[U];
                Vec<A> sum[U] = {}, dot[U] = {};
                for (int u = 0; u < U; ++u) at[u] = Affine<A>::channel(mean, scale, shift, c + u);
                const int64_t start = base + c * plan.pixels;
                for_vectors<W>(0, count, [&](int64_t i, int64_t n, auto full) {
                    constexpr bool kFull = decltype(full)::value;
                    Vec<A> inverse{}, back{};
                    if constexpr (kPixelNorm) {
                        inverse = load_n<kFull>(of.inverse + pixel + i, n);
                        back = load_n<kFull>(of.back + pixel + i, n);
                    }
                    for (int u = 0; u < U; ++u) {  // grad, inverse and back are 0 in the lanes beyond, and so is h
                        const int64_t j = start + u * plan.pixels + i;
                        const Vec<A> centred = load_n<kFull>(x + j, n) - at[u].mean;
                        const Vec<A> h = before_lrelu<kPixelNorm, A>(centred, at[u], side, load_n<kFull>(grad + j, n),
                                                                     inverse, back);
                        sum[u] += h;
                        dot[u] += h * centred;
                    }
                });
                for (int u = 0; u < U; ++u) partial[2 * (c + u)] += sum[u], partial[2 * (c + u) + 1] += dot[u];
            });
        });
        add_lanes<2, A>(partial, channels,
                        {slots.first.data() + task * channels, slots.second.data() + task * channels}, A(1));
    });
}

// gx = scale * h - constant - (x - mean) * factor, constant and factor by group.
template <class T, bool kPixelNorm>
void scatter(const T* grad, const T* x, const Numbers<Accumulate<T>>& by, const std::vector<Accumulate<T>>& constants,
             const std::vector<Accumulate<T>>& factors, double slope, const OfPixels<Accumulate<T>>& of, T* gx,
             const Plan& plan) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    const Side<A> side(slope);
    plan.each<A>(0, [&](int64_t task, int64_t row, Vec<A>*) {
        const int64_t lanes = plan.lanes, group = plan.group(row) * lanes;
        const A *mean = by.mean.data() + group, *constant = constants.data() + group, *factor = factors.data() + group;
        const A *scale = by.scale.data() + row * lanes, *shift = by.shift.data() + row * lanes;
        if (plan.last) {
            plan.blocks(task, [&](int64_t first, int64_t count) {
                const int64_t start = first * lanes;
                in_steps<4>(count, [&](int64_t p, auto pixels) {
                    constexpr int U = decltype(pixels)::value;
                    Vec<A> inverse[U] = {}, back[U] = {};
                    for (int u = 0; kPixelNorm && u < U; ++u) {
                        inverse[u] = broadcast<A>(of.inverse[first + p + u]);
                        back[u] = broadcast<A>(of.back[first + p + u]);
                    }
                    for_vectors<W>(0, lanes, [&](int64_t c, int64_t n, auto full) {
                        constexpr bool kFull = decltype(full)::value;
                        const auto at = Affine<A>::template channels<kFull>(mean, scale, shift, c, n);
                        const Vec<A> less = load_n<kFull>(constant + c, n), by_x = load_n<kFull>(factor + c, n);
                        for (int u = 0; u < U; ++u) {
                            const int64_t i = start + (p + u) * lanes + c;
                            const Vec<A> centred = load_n<kFull>(x + i, n) - at.mean;
                            const Vec<A> h = before_lrelu<kPixelNorm, A>(centred, at, side, load_n<kFull>(grad + i, n),
                                                                         inverse[u], back[u]);
                            store_n<kFull>(gx + i, at.scale * h - less - centred * by_x, n);
                        }
                    });
                });
            });
            return;
        }
        plan.pieces_of(task, [&](int64_t base, int64_t pixel, int64_t count) {
            for (int64_t c = 0; c < plan.channels; ++c) {
                const auto at = Affine<A>::channel(mean, scale, shift, c);
                const Vec<A> less = broadcast<A>(constant[c]), by_x = broadcast<A>(factor[c]);
                const int64_t start = base + c * plan.pixels;
                for_vectors<W>(0, count, [&](int64_t i, int64_t n, auto full) {
                    constexpr bool kFull = decltype(full)::value;
                    Vec<A> inverse{}, back{};
                    if constexpr (kPixelNorm) {
                        inverse = load_n<kFull>(of.inverse + pixel + i, n);
                        back = load_n<kFull>(of.back + pixel + i, n);
                    }
                    const Vec<A> centred = load_n<kFull>(x + start + i, n) - at.mean;
                    const Vec<A> h = before_lrelu<kPixelNorm, A>(centred, at, side, load_n<kFull>(grad + start + i, n),
                                                                 inverse, back);
                    store_n<kFull>(gx + start + i, at.scale * h - less - centred * by_x, n);
                });
            }
        });
    });
}

void check_tensor(const Tensor& value, const Tensor& x, at::ScalarType type, at::IntArrayRef shape, const char* name) {
    TORCH_CHECK(value.sizes() == shape && value.scalar_type() == type && value.device() == x.device(),
                "domain_norm: ", name, " is ", value.scalar_type(), " of shape ", value.sizes(), " on ", value.device(),
                ", expected ", type, " of shape ", shape, " on ", x.device());
}

at::ScalarType wide_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

void check_call(const Tensor& x, const Tensor& gamma, const Tensor& beta, int64_t groups) {
    TORCH_CHECK(x.dim() >= 2, "domain_norm: x must have rank 2 or more, got ", x.dim());
    TORCH_CHECK(groups >= 1 && x.size(0) % groups == 0, "domain_norm: groups must divide the batch of ", x.size(0),
                ", got ", groups);
    TORCH_CHECK(gamma.dim() == 2 && gamma.size(0) >= 1 && gamma.size(0) % groups == 0 && x.size(0) % gamma.size(0) == 0,
                "domain_norm: gamma has shape ", gamma.sizes(), ", expected rows that ", groups,
                " groups divide and that divide the batch of ", x.size(0));
    const std::array<int64_t, 2> shape{gamma.size(0), x.size(1)};
    for (const auto& [value, name] : {std::pair{&gamma, "gamma"}, std::pair{&beta, "beta"}}) {
        const auto type = value->scalar_type();
        check_tensor(*value, x, type == wide_type(x) ? type : x.scalar_type(), shape, name);
    }
}

// r and d, beside mean and deviation, into stats [4, groups, C].
template <class A>
void renormalise(const std::array<Tensor, 4>& renorm, int64_t groups, int64_t channels, A* stats) {
    const int64_t all = groups * channels;
    if (!renorm[0].defined()) {
        std::fill(stats + 2 * all, stats + 3 * all, A(1));
        std::fill(stats + 3 * all, stats + 4 * all, A(0));
        return;
    }
    const A *means = renorm[0].const_data_ptr<A>(), *deviations = renorm[1].const_data_ptr<A>();
    const A *weights = renorm[2].const_data_ptr<A>(), *limits = renorm[3].const_data_ptr<A>();
    for (int64_t i = 0; i < all; ++i) {
        const A *weight = weights + 2 * (i / channels), mean = stats[i], std = stats[all + i];
        const A usual_mean = means[i] + (A(1) - weight[0]) * mean, usual_std = deviations[i] + (A(1) - weight[1]) * std;
        // as torch.clamp: NaN stays, and the upper limit has the last word
        const auto clip = [](A value, A least, A most) {
            value = value < least ? least : value;
            return value > most ? most : value;
        };
        stats[2 * all + i] = clip(std / usual_std, limits[0], limits[1]);
        stats[3 * all + i] = clip((mean - usual_mean) / usual_std, -limits[2], limits[2]);
    }
}

std::tuple<Tensor, Tensor> forward_cpu(const Tensor& x_any, const Tensor& gamma_any, const Tensor& beta_any,
                                       int64_t groups, const OptionalTensor& mean_memory,
                                       const OptionalTensor& std_memory, const OptionalTensor& weights,
                                       const OptionalTensor& limits, const OptionalTensor& mean,
                                       const OptionalTensor& std, double slope, bool pixel_norm, double eps,
                                       double pixel_eps) {
    check_call(x_any, gamma_any, beta_any, groups);
    const int64_t channels = x_any.size(1), rows = gamma_any.size(0);
    const auto wide = wide_type(x_any);
    const std::array<int64_t, 2> shape{groups, channels}, of_weights{groups, 2};
    const std::array<int64_t, 1> of_limits{3};
    const bool renorm = mean_memory.has_value();
    TORCH_CHECK(std_memory.has_value() == renorm && weights.has_value() == renorm && limits.has_value() == renorm &&
                    mean.has_value() == std.has_value() && !(renorm && mean),
                "domain_norm: of renorm all four tensors are needed, of the statistics both, and not both kinds");
    std::array<Tensor, 4> memory;
    if (renorm) {
        check_tensor(*mean_memory, x_any, wide, shape, "mean_memory");
        check_tensor(*std_memory, x_any, wide, shape, "std_memory");
        check_tensor(*weights, x_any, wide, of_weights, "weights");
        check_tensor(*limits, x_any, wide, of_limits, "limits");
        memory = {mean_memory->contiguous(), std_memory->contiguous(), weights->contiguous(), limits->contiguous()};
    }
    const bool channels_last = is_channels_last(x_any);
    const auto format = memory_format(x_any.dim(), channels_last);
    const Tensor x = x_any.contiguous(format);
    const Tensor gamma = gamma_any.to(wide).contiguous(), beta = beta_any.to(wide).contiguous();
    Tensor out = empty_like(x, format);
    Tensor stats = at::empty({4, groups, channels}, x.options().dtype(wide));
    if (mean) {
        check_tensor(*mean, x, wide, shape, "mean");
        check_tensor(*std, x, wide, shape, "std");
        stats[0].copy_(*mean);
        stats[1].copy_(*std);
    }
    ANIFAST_DISPATCH(x.scalar_type(), "domain_norm", [&] {
        using A = Accumulate<scalar_t>;
        auto* numbers_of = stats.mutable_data_ptr<A>();
        const int64_t all = groups * channels;
        if (x.numel() == 0) {
            if (!mean) {
                std::fill(numbers_of, numbers_of + all, A(0));
                std::fill(numbers_of + all, numbers_of + 2 * all, static_cast<A>(std::sqrt(eps)));
            }
            renormalise<A>(memory, groups, channels, numbers_of);
            return;
        }
        const Plan plan(x, channels_last, groups, rows, pixel_norm, kWidth<A>);
        const auto* from = x.const_data_ptr<scalar_t>();
        if (!mean) {
            Slots<A> slots(plan, true);
            plan.last ? sums_last<scalar_t>(from, plan, slots) : sums_planes<scalar_t>(from, plan, slots);
            join<A>(slots, plan, eps, numbers_of, numbers_of + all);
        }
        renormalise<A>(memory, groups, channels, numbers_of);
        const auto by = numbers<A>(plan, gamma.const_data_ptr<A>(), beta.const_data_ptr<A>(), numbers_of);
        auto* to = out.mutable_data_ptr<scalar_t>();
        const auto run = [&](auto norm) {
            plan.last ? normalise_last<scalar_t, norm>(from, by, slope, pixel_eps, to, plan)
                      : normalise_planes<scalar_t, norm>(from, by, slope, pixel_eps, to, plan);
        };
        pixel_norm ? run(std::true_type{}) : run(std::false_type{});
    });
    return {out, stats};
}

// Backward's sums become the gradients of gamma and beta, and what gx needs of them.
template <class A>
void finish(const Slots<A>& slots, const Plan& plan, const A* gamma, const A* stats, bool fixed, A* g_gamma, A* g_beta,
            std::vector<A>& constants, std::vector<A>& factors) {
    const int64_t channels = plan.channels, all = plan.groups * channels;
    const double count = static_cast<double>(plan.images / plan.groups * plan.pixels);
    std::vector<double> sum(channels), dot(channels), mean(all), mean_dot(all);
    for (int64_t row = 0; row < plan.rows; ++row) {
        std::fill(sum.begin(), sum.end(), 0.0);
        std::fill(dot.begin(), dot.end(), 0.0);
        for (int64_t task = row * plan.pieces; task < (row + 1) * plan.pieces; ++task) {
            for (int64_t fold = 0; fold < plan.folded; ++fold) {
                const A* sums = slots.first.data() + task * plan.lanes + fold * channels;
                const A* dots = slots.second.data() + task * plan.lanes + fold * channels;
                for (int64_t c = 0; c < channels; ++c) sum[c] += sums[c], dot[c] += dots[c];
            }
        }
        const int64_t from = plan.group(row) * channels;
        for (int64_t c = 0; c < channels; ++c) {
            const double normalised = dot[c] / stats[all + from + c];
            const double g = gamma[row * channels + c];
            mean[from + c] += g * sum[c];
            mean_dot[from + c] += g * normalised;
            if (g_beta) g_beta[row * channels + c] = static_cast<A>(sum[c]);
            if (g_gamma) {
                g_gamma[row * channels + c] =
                    static_cast<A>(normalised * stats[2 * all + from + c] + sum[c] * stats[3 * all + from + c]);
            }
        }
    }
    constants.assign(plan.groups * plan.lanes, A(0));
    factors.assign(plan.groups * plan.lanes, A(0));
    for (int64_t i = 0; i < (fixed ? 0 : plan.groups * plan.lanes); ++i) {
        const int64_t at = i / plan.lanes * channels + i % plan.lanes % channels;
        const double deviation = stats[all + at], scale = stats[2 * all + at] / (deviation * count);
        constants[i] = static_cast<A>(scale * mean[at]);
        factors[i] = static_cast<A>(scale * mean_dot[at] / deviation);
    }
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(const Tensor& grad_any, const Tensor& x_any, const Tensor& gamma_any,
                                                const Tensor& beta_any, const Tensor& stats_any, bool fixed,
                                                double slope, bool pixel_norm, double pixel_eps,
                                                std::array<bool, 3> wanted) {
    TORCH_CHECK(stats_any.dim() == 3, "domain_norm: stats must have rank 3, got ", stats_any.dim());
    const int64_t groups = stats_any.size(1);
    check_call(x_any, gamma_any, beta_any, groups);
    const auto wide = wide_type(x_any);
    check_tensor(stats_any, x_any, wide, {4, groups, x_any.size(1)}, "stats");
    check_tensor(grad_any, x_any, x_any.scalar_type(), x_any.sizes(), "grad");
    const bool channels_last = is_channels_last(x_any);
    const auto format = memory_format(x_any.dim(), channels_last);
    const Tensor x = x_any.contiguous(format), grad = grad_any.contiguous(format), stats = stats_any.contiguous();
    const Tensor gamma = gamma_any.to(wide).contiguous(), beta = beta_any.to(wide).contiguous();
    const auto options = x.options().dtype(wide);
    Tensor gx = wanted[0] ? empty_like(x, format) : at::empty({0}, x.options());
    Tensor g_gamma = wanted[1] ? at::empty(gamma.sizes(), options) : at::empty({0}, options);
    Tensor g_beta = wanted[2] ? at::empty(gamma.sizes(), options) : at::empty({0}, options);
    if (x.numel() == 0) return {gx, g_gamma.zero_(), g_beta.zero_()};
    ANIFAST_DISPATCH(x.scalar_type(), "domain_norm_backward", [&] {
        using A = Accumulate<scalar_t>;
        const Plan plan(x, channels_last, groups, gamma.size(0), pixel_norm, kWidth<A>);
        const auto *from = x.const_data_ptr<scalar_t>(), *along = grad.const_data_ptr<scalar_t>();
        const auto *numbers_of = stats.const_data_ptr<A>(), *scales = gamma.const_data_ptr<A>();
        const auto by = numbers<A>(plan, scales, beta.const_data_ptr<A>(), numbers_of);
        const int64_t pixels = pixel_norm ? plan.images * plan.pixels : 0;
        const std::unique_ptr<A[]> of_pixels(new A[2 * pixels]);
        const OfPixels<A> of{of_pixels.get(), of_pixels.get() + pixels};
        Slots<A> slots(plan, false);
        std::vector<A> constants, factors;
        const auto run = [&](auto norm) {
            plan.last ? gather_last<scalar_t, norm>(along, from, by, slope, pixel_eps, of, plan, slots)
                      : gather_planes<scalar_t, norm>(along, from, by, slope, pixel_eps, of, plan, slots);
            finish<A>(slots, plan, scales, numbers_of, fixed, wanted[1] ? g_gamma.mutable_data_ptr<A>() : nullptr,
                      wanted[2] ? g_beta.mutable_data_ptr<A>() : nullptr, constants, factors);
            if (wanted[0]) {
                scatter<scalar_t, norm>(along, from, by, constants, factors, slope, of, gx.mutable_data_ptr<scalar_t>(),
                                        plan);
            }
        };
        pixel_norm ? run(std::true_type{}) : run(std::false_type{});
    });
    return {gx, g_gamma, g_beta};
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CPU, m) {
    m.impl("domain_norm", &forward_cpu);
    m.impl("domain_norm_backward", &backward_cpu);
}

}  // namespace anifast
