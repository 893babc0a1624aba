// upfirdn2d of contiguous maps under 4 separable taps, with (up, down) = (1, 1), (1, 2) or (2, 1) along both axes: what
// StyleGAN2-type networks use. See upfirdn2d.cpp.
//
// Lines of output are made kLines at a time, because they share rows of input: 7 rows instead of 16 for 4 lines of a
// blur. A buffer has a line for each, in which the even and the odd samples stand apart where every second is kept, so
// that the sum along the line needs no shuffles. Where samples are doubled, the even and the odd outputs are two sums
// of 2 taps.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "upfirdn2d_plan.h"

namespace anifast {
namespace {

template <int kUp, int kDown, Behind kBehind, class T>
class FourTaps {
    static constexpr int W = kWidth<float>;
#if defined(ANIFAST_AVX512)
    static constexpr int kLines = 4;
#else
    static constexpr int kLines = 2;  // half as many registers
#endif
    static constexpr int kTaps = 4 / kUp;                   // that meet a sample
    static constexpr int kStep = kUp == 2 ? kTaps : kDown;  // rows from a line's first to the next one's

    const Plan<float>& plan_;
    const T* end_;  // of x
    int64_t margin_, part_, stride_;
    int64_t together_;  // lines of output whose buffers are filled before they are read
    std::vector<float> buffer_;
    std::vector<T> zeros_;  // a row beyond the borders
    int64_t at_[4];         // the taps along a line: where they begin in the buffer, and their weights
    float across_[4];

  public:
    FourTaps(const Plan<float>& plan, const T* x_end) : plan_(plan), end_(x_end) {
        const Axis& x = plan.x;
        // Samples of a part, and outputs of a phase, in whole vectors. Taps that begin before or behind all of that
        // find zeros only, wherever: no pads make the buffer larger than the data.
        const int64_t samples = round_up((x.in + kDown - 1) / kDown), outputs = round_up((x.out + kUp - 1) / kUp);
        int64_t part[4], place[4];
        for (int t = 0; t < 4; ++t) {
            if constexpr (kUp == 2) {  // two of the even outputs, two of the odd
                part[t] = 0;
                place[t] = first(x, t / 2) + t % 2;
                across_[t] = plan.rows[phase(x, t / 2) * kTaps + t % 2];
            } else {
                part[t] = (t - x.pad) & (kDown - 1);
                place[t] = (t - x.pad - part[t]) / kDown;
                across_[t] = plan.rows[t];
            }
            place[t] = std::clamp(place[t], -outputs, samples);
        }
        margin_ = round_up(std::max<int64_t>(0, -*std::min_element(place, place + 4)));
        part_ = margin_ + round_up(std::max(samples, *std::max_element(place, place + 4) + outputs));
        for (int t = 0; t < 4; ++t) at_[t] = part[t] * part_ + margin_ + place[t];
        stride_ = kDown * part_;
        together_ = std::clamp<int64_t>(kBuffer / stride_ / kLines, 1, 8) * kLines;
        buffer_.assign(together_ * stride_, 0.0f);
        zeros_.assign(read_of_row(), T(0));
    }

    // Rows [from, until) of the output of one plane.
    void run(const T* plane, int64_t from, int64_t until, LineWriter<T, kBehind>& to) {
        for (int64_t row = from; row < until; row += together_) {
            const int64_t n = std::min(together_, until - row);
            int64_t k = 0;
            for (; k + kLines <= n; k += kLines) lines<kLines>(plane, row + k, buffer_.data() + k * stride_);
            for (; k < n; ++k) lines<1>(plane, row + k, buffer_.data() + k * stride_);
            for (k = 0; k < n; ++k) {
                to.start(row + k);
                sum_line(buffer_.data() + k * stride_, to);
            }
        }
    }

  private:
    static int64_t round_up(int64_t n) { return (n + W - 1) / W * W; }
    // Values that sum_rows reads of a row if it may read whole vectors.
    int64_t read_of_row() const { return (plan_.x.in + kDown * W - 1) / (kDown * W) * (kDown * W); }
    // As in Axis, with factors that the compiler knows: a division takes as long as a short line.
    static int64_t phase(const Axis& axis, int64_t o) { return (axis.pad - o * kDown) & (kUp - 1); }
    static int64_t first(const Axis& axis, int64_t o) { return (o * kDown - axis.pad + phase(axis, o)) / kUp; }

    template <int kCount>
    void lines(const T* plane, int64_t row, float* buffer) {
        const Axis& y = plan_.y;
        const T* rows[kStep * (kCount - 1) + kTaps];
        const T* last = plane;
        for (int j = 0; j < kStep * (kCount - 1) + kTaps; ++j) {
            const int64_t index = kUp == 2 ? first(y, row + j / kTaps) + j % kTaps : first(y, row) + j;
            const bool inside = index >= 0 && index < y.in;
            rows[j] = inside ? plane + index * plan_.x.in : zeros_.data();
            if (inside) last = rows[j];
        }
        if (last + read_of_row() <= end_) {
            sum_rows<kCount, true>(rows, phase(y, row), buffer);
        } else {
            sum_rows<kCount, false>(rows, phase(y, row), buffer);
        }
    }

    // The lines in the buffer: rows under the column. `phase` is the first line's; kWhole: whole vectors may be read.
    template <int kCount, bool kWhole>
    void sum_rows(const T* const* rows, int64_t phase, float* buffer) {
        const int64_t in = plan_.x.in, stride = stride_, part = part_;
        float* to = buffer + margin_;
        float w[kUp][kTaps];
        for (int s = 0; s < kUp; ++s) {
            for (int t = 0; t < kTaps; ++t) w[s][t] = plan_.column[(s ^ phase) * kTaps + t];
        }
        const auto sums = [&](int64_t i, auto lanes, Vec<float>(&v)[kCount]) __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (int k = 0; k < kCount; ++k) v[k] = Vec<float>{};
#pragma GCC unroll 16
            for (int j = 0; j < kStep * (kCount - 1) + kTaps; ++j) {
                const Vec<float> value = lanes(rows[j] + i);
#pragma GCC unroll 4
                for (int k = 0; k < kCount; ++k) {
                    const int t = j - kStep * k;
                    if (t >= 0 && t < kTaps) v[k] += w[k % kUp][t] * value;
                }
            }
        };
        const auto step = [&](int64_t i, auto lanes, auto lanes_behind) __attribute__((always_inline)) {
            Vec<float> v[kCount];
            sums(i, lanes, v);
            if constexpr (kDown == 1) {
#pragma GCC unroll 4
                for (int k = 0; k < kCount; ++k) store(to + k * stride + i, v[k]);
            } else {
                Vec<float> behind[kCount];
                sums(i + W, lanes_behind, behind);
#pragma GCC unroll 4
                for (int k = 0; k < kCount; ++k) {
                    Vec<float> even, odd;
                    unzip(v[k], behind[k], even, odd);
                    store(to + k * stride + i / 2, even);
                    store(to + k * stride + part + i / 2, odd);
                }
            }
        };
        const auto whole = [](const T* from) __attribute__((always_inline)) { return load(from); };
        int64_t i = 0;
        for (; i + kDown * W <= in; i += kDown * W) step(i, whole, whole);
        if (i < in) {
            const int64_t n = std::min<int64_t>(W, in - i), behind = in - i - n;
            step(
                i, [n](const T* from) __attribute__((always_inline)) { return load_lanes<kWhole>(from, n); },
                [behind](const T* from) __attribute__((always_inline)) { return load_lanes<kWhole>(from, behind); });
        }
    }

    // The sum along a line of the buffer, and what stands behind it.
    void sum_line(const float* line, const LineWriter<T, kBehind>& to) const {
        const int64_t columns = plan_.x.out;
        const float *at[4], w[4] = {across_[0], across_[1], across_[2], across_[3]};
        for (int t = 0; t < 4; ++t) at[t] = line + at_[t];
        if constexpr (kUp == 2) {
            for (int64_t i = 0; i < columns; i += 2 * W) {
                const int64_t j = i / 2;
                Vec<float> low, high;
                zip(w[0] * load(at[0] + j) + w[1] * load(at[1] + j), w[2] * load(at[2] + j) + w[3] * load(at[3] + j),
                    low, high);
                if (i + 2 * W <= columns) {
                    to.template write<true>(i, low, W);
                    to.template write<true>(i + W, high, W);
                } else {
                    to.template write<false>(i, low, std::min<int64_t>(W, columns - i));
                    if (i + W < columns) to.template write<false>(i + W, high, columns - i - W);
                }
            }
        } else {
            const auto sum = [&](int64_t i) __attribute__((always_inline)) {
                return (w[0] * load(at[0] + i) + w[1] * load(at[1] + i)) +
                       (w[2] * load(at[2] + i) + w[3] * load(at[3] + i));
            };
            int64_t i = 0;
            for (; i + W <= columns; i += W) to.template write<true>(i, sum(i), W);
            if (i < columns) to.template write<false>(i, sum(i), columns - i);
        }
    }
};

}  // namespace
}  // namespace anifast
