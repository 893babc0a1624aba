// upfirdn2d on the CPU: see anifast/ops/upfirdn2d.py for the contract.
//
// The kernel is a sum of terms column x row: one term where it is separable (a matrix of rank 1 is recognised), else
// one a row of the matrix. A line of output is, for each term, the weighted sum of the input's rows under the column
// (vectors along x, into a buffer of float32 that stays in the first cache, with zeros beside it for the padding), and
// then the weighted sum of that buffer under the row, with the epilogue before the one store. Zero-inserted samples are
// never visited: of k taps only those that meet a sample, ceil(k / up), are known for each phase. Rows and columns
// beyond the borders are cut out of the sums.
//
// Bytes moved for each element of b bytes: x and out once each, + b with `add`, + 1/8 per plane of the mask, + b /
// channels of noise. Work is cut by the sizes alone, and nothing is summed across tasks.
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

// Values of a task's output: enough to hide its start.
constexpr int64_t kTask = 32768;
// Values in the buffer between the two sums: half of a first cache of 32 KiB.
constexpr int64_t kBuffer = 4096;

// The taps that reach one row or column of the output: inputs first .. first + count - 1 with these weights.
struct Reach {
    int64_t first, count, weights;
};

// One axis of the operation, up, pad, filter and down.
struct Axis {
    int64_t in, out, up, down, pad, taps;

    Axis(int64_t in, int64_t up, int64_t down, int64_t before, int64_t behind, int64_t taps)
        : in(in), up(up), down(down), pad(before), taps(taps) {
        const int64_t last = in * up + before + behind - taps;
        TORCH_CHECK(up > 0 && down > 0 && taps > 0, "upfirdn2d: up, down and the kernel's size must be 1 or more");
        TORCH_CHECK(in > 0 && last >= 0, "upfirdn2d: no output is left of ", in, " samples, up ", up, ", padding (",
                    before, ", ", behind, "), under ", taps, " taps");
        out = last / down + 1;
    }
    int64_t longest() const { return (taps + up - 1) / up; }
    // The first tap that meets a sample for output o.
    int64_t phase(int64_t o) const { return ((pad - o * down) % up + up) % up; }
    // The input under that tap; may lie outside.
    int64_t first(int64_t o) const { return (o * down - pad + phase(o)) / up; }
    // The weights of every phase, one behind the other, `longest()` each.
    template <class A>
    std::vector<A> by_phase(const A* weights) const {
        std::vector<A> sorted(up * longest(), A(0));
        for (int64_t t = 0; t < taps; ++t) sorted[t % up * longest() + t / up] = weights[t];
        return sorted;
    }
    // What reaches output o, less what lies outside. With `only`, the one tap of that number.
    Reach reach(int64_t o, int64_t only = -1) const {
        const int64_t start = phase(o);
        Reach found{first(o), (taps - start + up - 1) / up, start * longest()};
        if (only >= 0) {
            const bool met = only % up == start;
            found = {found.first + (only - start) / up, met ? 1 : 0, 0};
        }
        if (found.first < 0) {
            found.count += found.first;
            found.weights -= found.first;
            found.first = 0;
        }
        found.count = std::max<int64_t>(0, std::min(found.count, in - found.first));
        return found;
    }
};

// The kernel as correlated, as a sum of terms column x row.
template <class A>
struct Terms {
    int64_t count;
    bool unit;  // the column of term r picks row r of the matrix
    std::vector<A> column;
    std::vector<std::vector<A>> rows;

    Terms(const Tensor& kernel, bool flip, double gain) {
        const int64_t rank = kernel.dim(), ky = kernel.size(0), kx = kernel.size(rank - 1);
        const A* k = kernel.const_data_ptr<A>();
        const auto at = [&](int64_t y, int64_t x) {
            y = flip ? y : ky - 1 - y;
            x = flip ? x : kx - 1 - x;
            return rank == 1 ? k[y] * k[x] : k[y * kx + x];
        };
        const A factor = static_cast<A>(gain);
        unit = false;
        if (rank == 1) {
            count = 1;
            rows.assign(1, std::vector<A>(kx));
            for (int64_t t = 0; t < ky; ++t) {
                const A tap = k[flip ? t : ky - 1 - t];
                column.push_back(tap * factor);
                rows[0][t] = tap;
            }
            return;
        }
        // the row and column through the largest element, if their product is the matrix to rounding
        int64_t py = 0, px = 0;
        for (int64_t y = 0; y < ky; ++y) {
            for (int64_t x = 0; x < kx; ++x) {
                if (std::abs(at(y, x)) > std::abs(at(py, px))) py = y, px = x;
            }
        }
        const A pivot = at(py, px);
        const A rounding = std::abs(pivot) * std::numeric_limits<A>::epsilon();
        bool separable = pivot != 0;
        for (int64_t y = 0; separable && y < ky; ++y) {
            for (int64_t x = 0; x < kx; ++x) {
                // written so that NaN is not separable
                separable = separable && std::abs(at(y, x) - at(y, px) * (at(py, x) / pivot)) <= 2 * rounding;
            }
        }
        if (separable) {
            count = 1;
            rows.assign(1, std::vector<A>(kx));
            for (int64_t y = 0; y < ky; ++y) column.push_back(at(y, px) * factor);
            for (int64_t x = 0; x < kx; ++x) rows[0][x] = at(py, x) / pivot;
            return;
        }
        unit = true;
        count = ky;
        column.assign(1, factor);
        for (int64_t y = 0; y < ky; ++y) {
            auto& row = rows.emplace_back(kx);
            for (int64_t x = 0; x < kx; ++x) row[x] = at(y, x);
        }
    }
};

// What stands behind the filter; null pointers are absent.
template <class T>
struct Epilogue {
    using A = Accumulate<T>;
    const A *scale, *bias;  // [N, C], [C]
    const T *noise, *add;   // [noise_planes, rows, columns]; as out
    const T *noise_end, *add_end;
    int64_t noise_planes;
    A strength, gain, negative_gain, clamp;
    bool act, clamped;
    T* out;
    uint8_t* bits;
    int64_t plane;  // bytes of a plane of the mask
};

// How much of it there is, known to the compiler.
enum class Behind { kNothing, kAdd, kAll };

// Values for lanes i .. i + n - 1, read whole where memory reaches that far.
template <class T>
inline Vec<Accumulate<T>> load_until(const T* from, const T* end, int64_t n) {
    return from + kWidth<Accumulate<T>> <= end ? load(from) : load_first(from, n);
}

// Writes runs of a line. `end` is where this task's output ends: a vector may write beyond its run up to there, because
// what it spoils is written after it.
template <class T, Behind kBehind>
struct Writer {
    using A = Accumulate<T>;
    Epilogue<T> to;
    T* out;
    const T *noise, *add, *end;
    uint8_t* bits;
    A scale, bias, noise_value;
    const A *scales, *biases;  // channels last: along the run

    // n lanes at i, all of them if `kFull`.
    template <bool kFull, bool kSpill, bool kPixel>
    void write(int64_t i, Vec<A> v, int64_t n) const {
        if constexpr (kBehind == Behind::kAll) {
            if constexpr (kPixel) {
                if (scales) v *= load_n<kFull>(scales + i, n);
                v += noise_value;
                if (biases) v += load_n<kFull>(biases + i, n);
            } else {
                v *= scale;
                if (noise) v += to.strength * load_until(noise + i, to.noise_end, n);
                v += bias;
            }
            const LaneMask<A> positive = v > 0;
            if (to.act) v *= select<A>(positive, broadcast<A>(to.gain), broadcast<A>(to.negative_gain));
            if (to.clamped) {
                const Vec<A> limit = broadcast<A>(to.clamp);
                if (bits) store_bits<kFull>(bits + to.plane + i / 8, to_bits<A>((v >= -limit) & (v <= limit)), n);
                v = select<A>(v > limit, limit, v);  // comparisons let NaN through
                v = select<A>(v < -limit, -limit, v);
            }
            if (bits) store_bits<kFull>(bits + i / 8, to_bits<A>(positive), n);
        }
        if constexpr (kBehind != Behind::kNothing) {
            if (add) v += kFull ? load(add + i) : load_until(add + i, to.add_end, n);
        }
        if (kFull || (kSpill && out + i + kWidth<A> <= end)) {
            store(out + i, v);
        } else {
            store_first(out + i, v, n);
        }
    }

    template <bool kFull>
    static void store_bits(uint8_t* at, uint32_t value, int64_t n) {
        if constexpr (!kFull) value &= (1u << n) - 1;
        std::memcpy(at, &value, kFull ? kWidth<A> / 8 : (n + 7) / 8);
    }
};

// sums[0 .. length) = the rows under the weights, `stride` apart; length is rounded up to whole vectors, and `end` is
// where x ends.
template <int kCount, class T>
inline void weigh_rows(const T* x, int64_t stride, int64_t count, const Accumulate<T>* weights, int64_t length,
                       const T* end, Accumulate<T>* sums) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    const int64_t n = kCount ? kCount : count;
    A w[kCount ? kCount : 1];
    for (int r = 0; r < kCount; ++r) w[r] = weights[r];
    int64_t i = 0;
    const auto one = [&](auto full, int64_t lanes) {
        constexpr bool kFull = decltype(full)::value;
        Vec<A> sum{};
        if constexpr (kCount > 0) {
#pragma GCC unroll 8
            for (int r = 0; r < kCount; ++r) sum += w[r] * load_n<kFull>(x + r * stride + i, lanes);
        } else {
            for (int64_t r = 0; r < n; ++r) sum += weights[r] * load_n<kFull>(x + r * stride + i, lanes);
        }
        store(sums + i, sum);
    };
    const int64_t readable = end - (x + (n - 1) * stride);  // from the last row's start
    for (; i < length && i + W <= readable; i += W) one(std::true_type{}, W);
    if (i < length) one(std::false_type{}, std::min<int64_t>(length, readable) - i);
}

template <class T>
inline void weigh_rows(const T* x, int64_t stride, const Reach& reach, const Accumulate<T>* weights, int64_t length,
                       const T* end, Accumulate<T>* sums) {
    const T* rows = x + reach.first * stride;
    const Accumulate<T>* w = weights + reach.weights;
    switch (reach.count) {
        case 0:
            std::fill(sums, sums + (length + kWidth<Accumulate<T>> - 1) / kWidth<Accumulate<T>> * kWidth<Accumulate<T>>,
                      Accumulate<T>(0));
            return;
        case 1:
            return weigh_rows<1>(rows, stride, 1, w, length, end, sums);
        case 2:
            return weigh_rows<2>(rows, stride, 2, w, length, end, sums);
        case 3:
            return weigh_rows<3>(rows, stride, 3, w, length, end, sums);
        case 4:
            return weigh_rows<4>(rows, stride, 4, w, length, end, sums);
        default:
            return weigh_rows<0>(rows, stride, reach.count, w, length, end, sums);
    }
}

#if defined(__AVX2__)
inline void split(const Vec<float>& v, __m256& low, __m256& high) {
    std::memcpy(&low, &v, 32);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + 32, 32);
}
inline Vec<float> join(__m256 low, __m256 high) {
    Vec<float> v;
    std::memcpy(&v, &low, 32);
    std::memcpy(reinterpret_cast<char*>(&v) + 32, &high, 32);
    return v;
}
#endif

// The even and odd lanes of 32 neighbours.
inline void unzip(const float* from, Vec<float>& even, Vec<float>& odd) {
#if defined(__AVX2__)
    const auto of_half = [&](const float* at, __m256& e, __m256& o) {
        const __m256 a = _mm256_loadu_ps(at), b = _mm256_loadu_ps(at + 8);
        const auto sorted = [](__m256 v) {
            return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), _MM_SHUFFLE(3, 1, 2, 0)));
        };
        e = sorted(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)));
        o = sorted(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
    };
    __m256 e0, o0, e1, o1;
    of_half(from, e0, o0);
    of_half(from + 16, e1, o1);
    even = join(e0, e1);
    odd = join(o0, o1);
#else
    for (int i = 0; i < 16; ++i) even[i] = from[2 * i], odd[i] = from[2 * i + 1];
#endif
}

// a0 b0 a1 b1 ... as 32 neighbours.
inline void zip(const Vec<float>& a, const Vec<float>& b, Vec<float>& low, Vec<float>& high) {
#if defined(__AVX2__)
    const auto of_half = [](__m256 x, __m256 y) {
        const __m256 l = _mm256_unpacklo_ps(x, y), h = _mm256_unpackhi_ps(x, y);
        return join(_mm256_permute2f128_ps(l, h, 0x20), _mm256_permute2f128_ps(l, h, 0x31));
    };
    __m256 a0, a1, b0, b1;
    split(a, a0, a1);
    split(b, b0, b1);
    low = of_half(a0, b0);
    high = of_half(a1, b1);
#else
    for (int i = 0; i < 8; ++i) low[2 * i] = a[i], low[2 * i + 1] = b[i];
    for (int i = 0; i < 8; ++i) high[2 * i] = a[8 + i], high[2 * i + 1] = b[8 + i];
#endif
}

// How the sum along a line is done: 4 taps with (up, down) = (1, 1), (1, 2), (2, 1), any number of taps with (1, 1), or
// column by column.
enum class Along { kFour, kFourDown, kFourUp, kEven, kAny };

// What is the same for every line of a plane.
template <class A>
struct Plan {
    Axis x, y;
    int64_t terms;
    int64_t stride;              // of a line in the buffer
    int64_t left, right;         // zeros before and behind a line
    int64_t together;            // lines of output whose buffers are filled before they are read
    std::vector<A> column;       // weights by phase
    std::vector<A> rows;         // weights of each term, by phase
    int64_t row_size;            // weights of one term
    std::vector<Reach> lines;    // [term, row of output]
    std::vector<Reach> columns;  // [column of output]

    Plan(const Axis& x, const Axis& y, const Terms<A>& kernel) : x(x), y(y), terms(kernel.count) {
        row_size = x.up * x.longest();
        column = kernel.unit ? kernel.column : y.by_phase(kernel.column.data());
        for (const auto& row : kernel.rows) {
            const auto sorted = x.by_phase(row.data());
            rows.insert(rows.end(), sorted.begin(), sorted.end());
        }
        lines.reserve(terms * y.out);
        for (int64_t r = 0; r < terms; ++r) {
            for (int64_t o = 0; o < y.out; ++o) lines.push_back(y.reach(o, kernel.unit ? r : -1));
        }
    }
};

// Contiguous maps: the sum along a line, and the epilogue.
template <Along kAlong, class T, class Write>
void along_line(const Plan<Accumulate<T>>& plan, const Accumulate<T>* buffer, const Write& to) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    const int64_t columns = plan.x.out, terms = plan.terms, stride = plan.stride;
    const A* weights = plan.rows.data();
    if constexpr (kAlong == Along::kFour || kAlong == Along::kEven) {
        const int64_t taps = kAlong == Along::kFour ? 4 : plan.x.taps;
        const A* from = buffer + plan.left - plan.x.pad;
        const auto sum = [&](int64_t i) {
            Vec<A> v{};
            for (int64_t r = 0; r < terms; ++r) {
                const A *at = from + r * stride + i, *w = weights + r * plan.row_size;
#pragma GCC unroll 4
                for (int64_t t = 0; t < taps; ++t) v += w[t] * load(at + t);
            }
            return v;
        };
        int64_t i = 0;
        for (; i + W <= columns; i += W) to.template write<true, true, false>(i, sum(i), W);
        if (i < columns) to.template write<false, true, false>(i, sum(i), columns - i);
    } else if constexpr (kAlong == Along::kFourDown) {
        const A* from = buffer + plan.left - plan.x.pad;
        const auto sum = [&](int64_t i) {
            Vec<A> v{};
            for (int64_t r = 0; r < terms; ++r) {
                const A *at = from + r * stride + 2 * i, *w = weights + r * plan.row_size;
                Vec<A> even, odd;
                unzip(at, even, odd);
                v += w[0] * even + w[1] * odd;
                unzip(at + 2, even, odd);
                v += w[2] * even + w[3] * odd;
            }
            return v;
        };
        int64_t i = 0;
        for (; i + W <= columns; i += W) to.template write<true, true, false>(i, sum(i), W);
        if (i < columns) to.template write<false, true, false>(i, sum(i), columns - i);
    } else if constexpr (kAlong == Along::kFourUp) {
        const int64_t phase[2] = {plan.x.phase(0), plan.x.phase(1)};
        const A* from[2] = {buffer + plan.left + plan.x.first(0), buffer + plan.left + plan.x.first(1)};
        const auto sum = [&](int which, int64_t i) {
            Vec<A> v{};
            for (int64_t r = 0; r < terms; ++r) {
                const A *at = from[which] + r * stride + i, *w = weights + r * plan.row_size + 2 * phase[which];
                v += w[0] * load(at) + w[1] * load(at + 1);
            }
            return v;
        };
        for (int64_t i = 0; i < columns; i += 2 * W) {
            Vec<A> low, high;
            zip(sum(0, i / 2), sum(1, i / 2), low, high);
            if (i + 2 * W <= columns) {
                to.template write<true, true, false>(i, low, W);
                to.template write<true, true, false>(i + W, high, W);
            } else if (i + W < columns) {
                to.template write<true, true, false>(i, low, W);
                to.template write<false, true, false>(i + W, high, columns - i - W);
            } else {
                to.template write<false, true, false>(i, low, columns - i);
            }
        }
    } else {
        for (int64_t i = 0; i < columns; i += W) {
            const int64_t n = std::min<int64_t>(W, columns - i);
            A lanes[W] = {};
            for (int64_t r = 0; r < terms; ++r) {
                const A *line = buffer + plan.left + r * stride, *w = weights + r * plan.row_size;
                for (int64_t lane = 0; lane < n; ++lane) {
                    const Reach& reach = plan.columns[i + lane];
                    for (int64_t t = 0; t < reach.count; ++t) {
                        lanes[lane] += w[reach.weights + t] * line[reach.first + t];
                    }
                }
            }
            if (n == W) {
                to.template write<true, true, false>(i, load(lanes), W);
            } else {
                to.template write<false, true, false>(i, load(lanes), n);
            }
        }
    }
}

template <Along kAlong, Behind kBehind, class T>
void run_planes(const T* x, const T* x_end, int64_t planes, int64_t channels, Plan<Accumulate<T>>& plan,
                const Epilogue<T>& epilogue) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    const int64_t in = plan.x.in * plan.y.in, columns = plan.x.out, rows = plan.y.out, size = columns * rows;
    // zeros that the padding asks for, and room for whole vectors
    plan.left = std::max<int64_t>(0, plan.x.pad);
    const int64_t last = plan.x.first(columns - 1) + plan.x.longest();
    plan.right = std::max<int64_t>(0, last - plan.x.in);
    plan.stride = plan.left + plan.x.in + plan.right + 4 * W;
    if (kAlong == Along::kAny) {
        plan.columns.reserve(columns);
        for (int64_t o = 0; o < columns; ++o) plan.columns.push_back(plan.x.reach(o));
    }
    plan.together = std::clamp<int64_t>(kBuffer / (plan.stride * plan.terms), 1, 16);

    const int64_t band = std::max<int64_t>(1, kTask / columns);  // rows
    const int64_t bands = (rows + band - 1) / band;
    const int64_t group = bands > 1 ? 1 : std::max<int64_t>(1, kTask / size);  // planes
    const int64_t tasks = bands > 1 ? planes * bands : (planes + group - 1) / group;

    const auto plane_of_task = [&](int64_t plane, int64_t from, int64_t until, const T* end, A* buffer) {
        const T* source = x + plane * in;
        Writer<T, kBehind> to{};
        to.to = epilogue;
        to.end = end;
        to.scale = epilogue.scale ? epilogue.scale[plane] : A(1);
        to.bias = epilogue.bias ? epilogue.bias[plane % channels] : A(0);
        const T* noise = epilogue.noise ? epilogue.noise + plane / channels % epilogue.noise_planes * size : nullptr;
        for (int64_t row = from; row < until; row += plan.together) {
            const int64_t n = std::min(plan.together, until - row);
            for (int64_t k = 0; k < n; ++k) {
                for (int64_t r = 0; r < plan.terms; ++r) {
                    A* line = buffer + (k * plan.terms + r) * plan.stride + plan.left;
                    weigh_rows(source, plan.x.in, plan.lines[r * rows + row + k], plan.column.data(), plan.x.in, x_end,
                               line);
                    // what was read beyond the row
                    for (int64_t i = 0; i <= plan.right; i += W) store(line + plan.x.in + i, Vec<A>{});
                }
            }
            for (int64_t k = 0; k < n; ++k) {
                const int64_t at = (row + k) * columns;
                to.out = epilogue.out + plane * size + at;
                to.add = epilogue.add ? epilogue.add + plane * size + at : nullptr;
                to.noise = noise ? noise + at : nullptr;
                to.bits = epilogue.bits ? epilogue.bits + (plane * size + at) / 8 : nullptr;
                along_line<kAlong, T>(plan, buffer + k * plan.terms * plan.stride, to);
            }
        }
    };
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t finish) {
        std::vector<A> buffer(plan.together * plan.terms * plan.stride, A(0));
        for (int64_t task = begin; task < finish; ++task) {
            if (bands > 1) {
                const int64_t plane = task / bands, from = task % bands * band, until = std::min(from + band, rows);
                const T* end = epilogue.out + plane * size + until * columns;
                plane_of_task(plane, from, until, end, buffer.data());
            } else {
                const int64_t until = std::min((task + 1) * group, planes);
                const T* end = epilogue.out + until * size;
                for (int64_t plane = task * group; plane < until; ++plane) {
                    plane_of_task(plane, 0, rows, end, buffer.data());
                }
            }
        }
    });
}

// Channels last: vectors along the channels of a pixel, in blocks of pixels and channels.
template <Behind kBehind, class T>
void run_pixels(const T* x, const T* x_end, int64_t batch, int64_t channels, Plan<Accumulate<T>>& plan,
                const Epilogue<T>& epilogue) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    const int64_t width = plan.x.in, columns = plan.x.out, rows = plan.y.out, in = plan.x.in * plan.y.in * channels;
    plan.columns.reserve(columns);
    for (int64_t o = 0; o < columns; ++o) plan.columns.push_back(plan.x.reach(o));
    // a block is some channels (whole vectors) of some columns of output
    const int64_t block = std::min<int64_t>(64, (channels + W - 1) / W * W);
    const int64_t blocks = (channels + block - 1) / block;
    const int64_t across = std::clamp<int64_t>(kBuffer / (block * plan.terms) * plan.x.up / plan.x.down, 4, 64);
    // columns of input that a block of output columns may reach
    const int64_t reached = (across * plan.x.down + plan.x.taps) / plan.x.up + 2;
    plan.stride = std::min(width, reached) * block;
    const int64_t band = std::clamp<int64_t>(kTask / (columns * channels), 1, rows);  // rows
    const int64_t bands = (rows + band - 1) / band;
    const int64_t mask_stride = (channels + 7) / 8;

    const auto block_of_task = [&](int64_t image, int64_t from, int64_t until, int64_t first, int64_t behind,
                                   int64_t channel, A* buffer) {
        const int64_t n = std::min(block, channels - channel);
        // the columns of input under this block
        int64_t low = width, high = 0;
        for (int64_t o = first; o < behind; ++o) {
            const Reach& reach = plan.columns[o];
            if (reach.count == 0) continue;
            low = std::min(low, reach.first);
            high = std::max(high, reach.first + reach.count);
        }
        Writer<T, kBehind> to{};
        to.to = epilogue;
        to.scales = epilogue.scale ? epilogue.scale + image * channels + channel : nullptr;
        to.biases = epilogue.bias ? epilogue.bias + channel : nullptr;
        for (int64_t row = from; row < until; ++row) {
            for (int64_t r = 0; r < plan.terms; ++r) {
                const Reach& reach = plan.lines[r * rows + row];
                for (int64_t column = low; column < high; ++column) {
                    weigh_rows(x + image * in + column * channels + channel, width * channels, reach,
                               plan.column.data(), n, x_end, buffer + r * plan.stride + (column - low) * block);
                }
            }
            for (int64_t o = first; o < behind; ++o) {
                const Reach& reach = plan.columns[o];
                const int64_t pixel = (image * rows + row) * columns + o;
                to.out = epilogue.out + pixel * channels + channel;
                to.add = epilogue.add ? epilogue.add + pixel * channels + channel : nullptr;
                to.bits = epilogue.bits ? epilogue.bits + pixel * mask_stride + channel / 8 : nullptr;
                if (epilogue.noise) {
                    const int64_t plane = image % epilogue.noise_planes;
                    const T value = epilogue.noise[(plane * rows + row) * columns + o];
                    to.noise_value = epilogue.strength * static_cast<A>(value);
                }
                const auto sum = [&](int64_t i) {
                    Vec<A> v{};
                    for (int64_t r = 0; r < plan.terms; ++r) {
                        const A* at = buffer + r * plan.stride + (reach.first - low) * block + i;
                        const A* w = plan.rows.data() + r * plan.row_size + reach.weights;
                        for (int64_t t = 0; t < reach.count; ++t) v += w[t] * load(at + t * block);
                    }
                    return v;
                };
                int64_t i = 0;
                for (; i + W <= n; i += W) to.template write<true, false, true>(i, sum(i), W);
                if (i < n) to.template write<false, false, true>(i, sum(i), n - i);
            }
        }
    };
    at::parallel_for(0, batch * bands * blocks, 1, [&](int64_t begin, int64_t finish) {
        std::vector<A> buffer(plan.terms * plan.stride);
        for (int64_t task = begin; task < finish; ++task) {
            const int64_t channel = task % blocks * block, rest = task / blocks;
            const int64_t image = rest / bands, from = rest % bands * band, until = std::min(from + band, rows);
            for (int64_t first = 0; first < columns; first += across) {
                block_of_task(image, from, until, first, std::min(first + across, columns), channel, buffer.data());
            }
        }
    });
}

template <Behind kBehind, class T>
void run(const T* x, const at::IntArrayRef& sizes, bool channels_last, Plan<Accumulate<T>>& plan,
         const Epilogue<T>& epilogue) {
    const int64_t batch = sizes[0], channels = sizes[1];
    const T* x_end = x + batch * channels * sizes[2] * sizes[3];
    if (channels_last) return run_pixels<kBehind>(x, x_end, batch, channels, plan, epilogue);
    const auto go = [&](auto along) {
        run_planes<decltype(along)::value, kBehind>(x, x_end, batch * channels, channels, plan, epilogue);
    };
    const Axis& axis = plan.x;
    if constexpr (std::is_same_v<Accumulate<T>, float>) {
        if (axis.taps == 4 && axis.up == 1 && axis.down == 1) return go(std::integral_constant<Along, Along::kFour>{});
        if (axis.taps == 4 && axis.up == 1 && axis.down == 2) {
            return go(std::integral_constant<Along, Along::kFourDown>{});
        }
        if (axis.taps == 4 && axis.up == 2 && axis.down == 1)
            return go(std::integral_constant<Along, Along::kFourUp>{});
    }
    if (axis.up == 1 && axis.down == 1) return go(std::integral_constant<Along, Along::kEven>{});
    go(std::integral_constant<Along, Along::kAny>{});
}

template <class T>
Tensor accumulate_copy(const Tensor& value) {
    return value.to(std::is_same_v<T, double> ? at::kDouble : at::kFloat).contiguous();
}

void check_operand(const OptionalTensor& value, const Tensor& x, const char* name, int64_t numel, bool same_type) {
    if (!value) return;
    TORCH_CHECK(value->device() == x.device(), "upfirdn2d: ", name, " is on ", value->device(), ", expected ",
                x.device());
    TORCH_CHECK(value->numel() == numel, "upfirdn2d: ", name, " has ", value->numel(), " elements, expected ", numel);
    TORCH_CHECK(!same_type || value->scalar_type() == x.scalar_type(), "upfirdn2d: ", name, " has dtype ",
                value->scalar_type(), ", expected ", x.scalar_type());
}

std::tuple<Tensor, Tensor> upfirdn2d_cpu(const Tensor& x_any, const Tensor& kernel_any, at::IntArrayRef up,
                                         at::IntArrayRef down, at::IntArrayRef padding, bool flip, double gain,
                                         const OptionalTensor& scale, const OptionalTensor& bias,
                                         const OptionalTensor& noise, const OptionalTensor& strength,
                                         const OptionalTensor& add, double slope, double act_gain,
                                         std::optional<double> clamp, bool save_mask) {
    TORCH_CHECK(x_any.dim() == 4, "upfirdn2d: x must have rank 4, got ", x_any.sizes());
    TORCH_CHECK(up.size() == 2 && down.size() == 2 && padding.size() == 4,
                "upfirdn2d: up and down need 2 numbers and padding 4");
    TORCH_CHECK(kernel_any.device() == x_any.device() && (kernel_any.dim() == 1 || kernel_any.dim() == 2),
                "upfirdn2d: kernel must be a vector or matrix on ", x_any.device());
    const bool channels_last = is_channels_last(x_any);
    const auto format = memory_format(4, channels_last);
    const Tensor x = x_any.contiguous(format);
    const auto sizes = x.sizes();
    const Axis along(sizes[3], up[0], down[0], padding[0], padding[1], kernel_any.size(kernel_any.dim() - 1));
    const Axis across(sizes[2], up[1], down[1], padding[2], padding[3], kernel_any.size(0));
    const int64_t maps = sizes[0] * sizes[1], rows = across.out, columns = along.out, numel = maps * rows * columns;
    const int64_t noise_planes = noise ? noise->numel() / (rows * columns) : 1;
    check_operand(scale, x, "scale", maps, false);
    check_operand(bias, x, "bias", sizes[1], false);
    check_operand(noise, x, "noise", noise_planes == 1 ? rows * columns : sizes[0] * rows * columns, true);
    check_operand(strength, x, "noise_strength", 1, false);
    check_operand(add, x, "add", numel, true);
    TORCH_CHECK(!save_mask || channels_last || columns % 8 == 0,
                "upfirdn2d: save_mask needs lines of whole bytes, got ", columns, " columns");

    Tensor out = empty({sizes[0], sizes[1], rows, columns}, x.options(), format);
    const int64_t plane = channels_last ? sizes[0] * rows * columns * ((sizes[1] + 7) / 8) : numel / 8;
    Tensor mask = at::empty({0}, x.options().dtype(at::kByte));
    if (save_mask) {
        const int64_t lines = channels_last ? sizes[0] * rows * columns : maps;
        mask = at::empty({clamp ? 2 : 1, lines, lines ? plane / lines : (channels_last ? (sizes[1] + 7) / 8 : 0)},
                         x.options().dtype(at::kByte));
    }
    if (numel == 0) return {out, mask};
    ANIFAST_DISPATCH(x.scalar_type(), "upfirdn2d", [&] {
        using A = Accumulate<scalar_t>;
        const Tensor kernel = accumulate_copy<scalar_t>(kernel_any);
        Plan<A> plan(along, across, Terms<A>(kernel, flip, gain));
        std::vector<Tensor> keep;
        const auto wide = [&](const OptionalTensor& value) {
            return value ? keep.emplace_back(accumulate_copy<scalar_t>(*value)).template const_data_ptr<A>() : nullptr;
        };
        Epilogue<scalar_t> epilogue{};
        epilogue.scale = wide(scale);
        epilogue.bias = wide(bias);
        epilogue.strength = strength ? wide(strength)[0] : A(1);
        if (noise) {
            epilogue.noise = keep.emplace_back(noise->contiguous()).template const_data_ptr<scalar_t>();
            epilogue.noise_end = epilogue.noise + noise->numel();
            epilogue.noise_planes = noise_planes;
        }
        if (add) {
            epilogue.add = keep.emplace_back(add->contiguous(format)).template const_data_ptr<scalar_t>();
            epilogue.add_end = epilogue.add + numel;
        }
        epilogue.gain = static_cast<A>(act_gain);
        epilogue.negative_gain = static_cast<A>(act_gain * slope);
        epilogue.act = slope != 1.0 || act_gain != 1.0;
        epilogue.clamped = clamp.has_value();
        epilogue.clamp = static_cast<A>(clamp.value_or(0.0));
        epilogue.out = out.mutable_data_ptr<scalar_t>();
        epilogue.bits = save_mask ? mask.mutable_data_ptr<uint8_t>() : nullptr;
        epilogue.plane = plane;
        const scalar_t* from = x.const_data_ptr<scalar_t>();
        if (scale || bias || noise || epilogue.act || clamp) {
            run<Behind::kAll>(from, sizes, channels_last, plan, epilogue);
        } else if (add) {
            run<Behind::kAdd>(from, sizes, channels_last, plan, epilogue);
        } else {
            run<Behind::kNothing>(from, sizes, channels_last, plan, epilogue);
        }
    });
    return {out, mask};
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CPU, m) { m.impl("upfirdn2d", &upfirdn2d_cpu); }

}  // namespace anifast
