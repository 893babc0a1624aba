// What the kernels of upfirdn2d.cpp share: which inputs reach an output with which weights, and what is done to a sum
// before it is stored.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../common/vec.h"

namespace anifast {
namespace {

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
        // No sum of what follows overflows. The pads of an adjoint are those of the op and a little more.
        constexpr int64_t kMostFactor = 1024, kMostPad = int64_t(1) << 33;
        TORCH_CHECK(up > 0 && down > 0 && taps > 0, "upfirdn2d: up, down and the kernel's size must be 1 or more");
        TORCH_CHECK(up <= kMostFactor && down <= kMostFactor, "upfirdn2d: up and down must be at most ", kMostFactor);
        TORCH_CHECK(std::max({before, behind, -before, -behind}) <= kMostPad,
                    "upfirdn2d: padding must lie within 2^33");
        const int64_t last = in * up + before + behind - taps;
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
    // What reaches output o, less what lies outside.
    Reach reach(int64_t o) const {
        const int64_t start = phase(o);
        Reach found{first(o), (taps - start + up - 1) / up, start * longest()};
        if (found.first < 0) {
            found.count += found.first;
            found.weights -= found.first;
            found.first = 0;
        }
        found.count = std::min(found.count, in - found.first);
        return found.count > 0 ? found : Reach{0, 0, 0};
    }
};

// The kernel as correlated: column x row where it is separable, else a row for each of the matrix's.
template <class A>
struct Taps {
    bool separable = true;
    std::vector<A> column;
    std::vector<std::vector<A>> rows;

    Taps(const at::Tensor& kernel, bool flip, double gain) {
        const int64_t rank = kernel.dim(), ky = kernel.size(0), kx = kernel.size(rank - 1);
        const A* k = kernel.const_data_ptr<A>();
        const A factor = static_cast<A>(gain);
        const auto at = [&](int64_t y, int64_t x) { return k[(flip ? y : ky - 1 - y) * kx + (flip ? x : kx - 1 - x)]; };
        rows.assign(1, std::vector<A>(kx));
        if (rank == 1) {
            for (int64_t t = 0; t < kx; ++t) {
                rows[0][t] = k[flip ? t : kx - 1 - t];
                column.push_back(rows[0][t] * factor);
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
        const A pivot = at(py, px), rounding = std::abs(pivot) * std::numeric_limits<A>::epsilon();
        separable = pivot != 0;
        for (int64_t y = 0; y < ky; ++y) {
            for (int64_t x = 0; x < kx; ++x) {
                // written so that NaN is not separable
                separable = separable && std::abs(at(y, x) - at(y, px) * (at(py, x) / pivot)) <= 2 * rounding;
            }
        }
        if (separable) {
            for (int64_t y = 0; y < ky; ++y) column.push_back(at(y, px) * factor);
            for (int64_t x = 0; x < kx; ++x) rows[0][x] = at(py, x) / pivot;
            return;
        }
        rows.assign(ky, std::vector<A>(kx));
        for (int64_t y = 0; y < ky; ++y) {
            for (int64_t x = 0; x < kx; ++x) rows[y][x] = at(y, x) * factor;
        }
    }
};

// What is the same for every line of a plane.
template <class A>
struct Plan {
    Axis x, y;
    bool separable;
    std::vector<A> column;  // weights by phase, if separable
    std::vector<A> rows;    // weights of each row, by phase
    int64_t row_size;       // weights of one row

    Plan(const Axis& x, const Axis& y, const Taps<A>& kernel) : x(x), y(y), separable(kernel.separable) {
        row_size = x.up * x.longest();
        if (separable) column = y.by_phase(kernel.column.data());
        for (const auto& row : kernel.rows) {
            const auto sorted = x.by_phase(row.data());
            rows.insert(rows.end(), sorted.begin(), sorted.end());
        }
    }
    // The row of the matrix that the first tap of a reach along y is.
    int64_t tap(const Reach& reach) const { return reach.weights / y.longest() + reach.weights % y.longest() * y.up; }
};

// What reaches every output of an axis.
inline std::vector<Reach> reach_of_all(const Axis& axis) {
    std::vector<Reach> found;
    found.reserve(axis.out);
    for (int64_t o = 0; o < axis.out; ++o) found.push_back(axis.reach(o));
    return found;
}

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

// Writes a mask's bits of n lanes.
template <class A, bool kFull>
inline void store_bits(uint8_t* at, LaneMask<A> lanes, int64_t n) {
    uint32_t value = to_bits<A>(lanes);
    if constexpr (!kFull) value &= (1u << n) - 1;
    std::memcpy(at, &value, kFull ? kWidth<A> / 8 : (n + 7) / 8);
}

// The activation of a vector, and its mask's bits at `bits`.
template <bool kFull, class T>
inline Vec<Accumulate<T>> activate(Vec<Accumulate<T>> v, const Epilogue<T>& by, uint8_t* bits, int64_t n) {
    using A = Accumulate<T>;
    const LaneMask<A> positive = v > 0;
    if (by.act) v *= select<A>(positive, broadcast<A>(by.gain), broadcast<A>(by.negative_gain));
    if (by.clamped) {
        const Vec<A> limit = broadcast<A>(by.clamp);
        if (bits) store_bits<A, kFull>(bits + by.plane, (v >= -limit) & (v <= limit), n);
        v = select<A>(v > limit, limit, v);  // comparisons let NaN through
        v = select<A>(v < -limit, -limit, v);
    }
    if (bits) store_bits<A, kFull>(bits, positive, n);
    return v;
}

// Writes the lines of one plane, each from front to back.
template <class T, Behind kBehind>
class LineWriter {
    using A = Accumulate<T>;
    const Epilogue<T> to_;
    const int64_t columns_;
    int64_t plane_ = 0;  // where it starts
    const T *end_, *noise_ = nullptr;
    A scale_ = A(1), bias_ = A(0);
    // the line's
    T* line_ = nullptr;
    const T *line_noise_ = nullptr, *line_add_ = nullptr;
    uint8_t* line_bits_ = nullptr;

  public:
    // `end` is where the output of this task ends: a vector may write beyond its line up to there, because what it
    // spoils is written after it.
    LineWriter(const Epilogue<T>& epilogue, int64_t plane, int64_t channels, int64_t rows, int64_t columns,
               const T* end)
        : to_(epilogue), columns_(columns), plane_(plane * rows * columns), end_(end) {
        if (to_.scale) scale_ = to_.scale[plane];
        if (to_.bias) bias_ = to_.bias[plane % channels];
        if (to_.noise) noise_ = to_.noise + plane / channels % to_.noise_planes * rows * columns;
    }
    void start(int64_t row) {
        const int64_t at = plane_ + row * columns_;
        line_ = to_.out + at;
        if constexpr (kBehind != Behind::kNothing) line_add_ = to_.add ? to_.add + at : nullptr;
        if constexpr (kBehind == Behind::kAll) {
            line_noise_ = noise_ ? noise_ + row * columns_ : nullptr;
            line_bits_ = to_.bits ? to_.bits + at / 8 : nullptr;
        }
    }
    // n lanes at column i, all of them if kFull.
    template <bool kFull>
    __attribute__((always_inline)) void write(int64_t i, Vec<A> v, int64_t n) const {
        if constexpr (kBehind == Behind::kAll) {
            v *= scale_;
            if (line_noise_)
                v += to_.strength * (kFull ? load(line_noise_ + i) : load_until(line_noise_ + i, to_.noise_end, n));
            v += bias_;
            v = activate<kFull>(v, to_, line_bits_ ? line_bits_ + i / 8 : nullptr, n);
        }
        if constexpr (kBehind != Behind::kNothing) {
            if (line_add_) v += kFull ? load(line_add_ + i) : load_until(line_add_ + i, to_.add_end, n);
        }
#if !defined(ANIFAST_MASKED_MEMORY)
        if (!kFull && line_ + i + kWidth<A> <= end_) return store(line_ + i, v);
#endif
        store_n<kFull>(line_ + i, v, n);
    }
};

// Calls lines(buffers, plane, from, until, end) for runs of rows that make up the planes of the output, in parallel;
// buffers() makes what a thread keeps, and `end` is where the output of a task ends.
template <class T, class Buffers, class Lines>
inline void for_planes(const T* out, int64_t planes, int64_t rows, int64_t columns, const Buffers& buffers,
                       const Lines& lines) {
    const int64_t size = rows * columns;
    const int64_t band = std::max<int64_t>(1, kTask / columns);  // rows
    const int64_t bands = (rows + band - 1) / band;
    const int64_t group = bands > 1 ? 1 : std::max<int64_t>(1, kTask / size);  // planes
    const int64_t tasks = bands > 1 ? planes * bands : (planes + group - 1) / group;
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t finish) {
        auto kept = buffers();
        for (int64_t task = begin; task < finish; ++task) {
            if (bands > 1) {
                const int64_t plane = task / bands, from = task % bands * band, until = std::min(from + band, rows);
                lines(kept, plane, from, until, out + plane * size + until * columns);
            } else {
                const int64_t until = std::min((task + 1) * group, planes);
                for (int64_t plane = task * group; plane < until; ++plane) {
                    lines(kept, plane, 0, rows, out + until * size);
                }
            }
        }
    });
}

}  // namespace
}  // namespace anifast
