// upfirdn2d with any kernel and factors, and all of it on channels-last tensors: see upfirdn2d.cpp.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "upfirdn2d_plan.h"

namespace anifast {
namespace {

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
    if constexpr (kCount == 0) {                            // several sums that do not wait for each other
        constexpr int kTogether = 4;
        for (; i + kTogether * W <= std::min(length, readable); i += kTogether * W) {
            Vec<A> v[kTogether] = {};
            for (int64_t r = 0; r < n; ++r) {
#pragma GCC unroll 4
                for (int m = 0; m < kTogether; ++m) v[m] += weights[r] * load(x + r * stride + i + m * W);
            }
#pragma GCC unroll 4
            for (int m = 0; m < kTogether; ++m) store(sums + i + m * W, v[m]);
        }
    }
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

// Contiguous maps. With g the greatest common divisor of up and down, every (up / g)th output of a line is reached by
// the same taps, from samples that lie down / g apart. So the outputs of a line are summed by phases, and the samples
// of a line stand in as many parts: vectors then go along the line whatever the factors are.
//
// The buffer holds the lines that are summed: for a separable kernel the rows under the column, one for each line of
// output; else the rows of the input themselves.
template <Behind kBehind, class T>
class AnyPlanes {
    using A = Accumulate<T>;
    static constexpr int W = kWidth<A>;
    static constexpr int kTogether = 4;  // vectors: as many sums that do not wait for each other

    // The taps that reach the outputs of one phase.
    struct Phase {
        int64_t outputs;          // of a line
        int64_t weights;          // where they begin in a row's
        std::vector<int64_t> at;  // of each tap: where its samples begin in a line of the buffer
    };

    const Plan<A>& plan_;
    const T* end_;  // of x
    int64_t parts_, margin_, part_, stride_;
    int64_t together_;  // lines of output for which the buffer is filled at once
    std::vector<Phase> phases_;
    std::vector<A> buffer_, row_,
        line_;  // lines; a row in the order of memory; a line of output where there are phases
    std::vector<const A*> lines_, weights_;

  public:
    AnyPlanes(const Plan<A>& plan, const T* x_end) : plan_(plan), end_(x_end) {
        const Axis &x = plan.x, &y = plan.y;
        const int64_t divisor = std::gcd(x.up, x.down);
        parts_ = x.down / divisor;
        phases_.resize(std::min(x.up / divisor, x.out));
        const int64_t written = round_up((x.in + parts_ - 1) / parts_);
        const auto count = static_cast<int64_t>(phases_.size());
        std::vector<std::pair<int64_t, int64_t>> found;  // part and place of each tap's samples
        int64_t before = 0, samples = written;
        for (int64_t e = 0; e < count; ++e) {
            const int64_t start = x.phase(e), outputs = (x.out - e + count - 1) / count;
            const int64_t read = (outputs + kTogether * W - 1) / (kTogether * W) * kTogether * W;
            phases_[e] = {outputs, start * x.longest(), {}};
            for (int64_t k = 0; start + k * x.up < x.taps; ++k) {
                const int64_t sample = x.first(e) + k, part = (sample % parts_ + parts_) % parts_;
                // taps that begin before or behind all samples find zeros only, wherever: see FourTaps
                const int64_t place = std::clamp((sample - part) / parts_, -read, written);
                found.emplace_back(part, place);
                phases_[e].at.push_back(static_cast<int64_t>(found.size()) - 1);
                before = std::max(before, -place);
                samples = std::max(samples, place + read);
            }
        }
        margin_ = round_up(before);
        part_ = margin_ + round_up(samples);
        for (auto& phase : phases_) {
            for (auto& at : phase.at) at = found[at].first * part_ + margin_ + found[at].second;
        }
        stride_ = parts_ * part_;
        const int64_t most = plan.separable ? kBuffer : 8 * kBuffer, reached = plan.separable ? 0 : y.longest();
        together_ = std::clamp<int64_t>((most / stride_ - reached) * y.up / y.down, 1, 16);
        const int64_t lines = plan.separable ? together_ : (together_ - 1) * y.down / y.up + y.longest() + 1;
        buffer_.assign(lines * stride_, A(0));
        row_.resize(round_up(x.in));
        line_.resize(count > 1 ? round_up(x.out) : 0);
        lines_.resize(y.longest());
        weights_.resize(y.longest());
    }

    // Rows [from, until) of the output of one plane.
    void run(const T* plane, int64_t from, int64_t until, LineWriter<T, kBehind>& to) {
        const Axis& y = plan_.y;
        for (int64_t row = from; row < until; row += together_) {
            const int64_t n = std::min(together_, until - row);
            if (plan_.separable) {
                for (int64_t k = 0; k < n; ++k) fill(plane, y.reach(row + k), plan_.column.data(), k);
                for (int64_t k = 0; k < n; ++k) {
                    lines_[0] = buffer_.data() + k * stride_;
                    weights_[0] = plan_.rows.data();
                    to.start(row + k);
                    sum_line(1, to);
                }
                continue;
            }
            const int64_t low = std::clamp<int64_t>(y.first(row), 0, y.in);
            const int64_t high = std::clamp<int64_t>(y.first(row + n - 1) + y.longest(), low, y.in);
            const A one = A(1);
            for (int64_t i = low; i < high; ++i) fill(plane, {i, 1, 0}, &one, i - low);
            for (int64_t k = 0; k < n; ++k) {
                const Reach reach = y.reach(row + k);
                const int64_t tap = plan_.tap(reach);
                for (int64_t j = 0; j < reach.count; ++j) {
                    lines_[j] = buffer_.data() + (reach.first + j - low) * stride_;
                    weights_[j] = plan_.rows.data() + (tap + j * y.up) * plan_.row_size;
                }
                to.start(row + k);
                sum_line(reach.count, to);
            }
        }
    }

  private:
    static int64_t round_up(int64_t n) { return (n + W - 1) / W * W; }

    // A line of the buffer: the rows under the weights.
    void fill(const T* plane, const Reach& reach, const A* weights, int64_t line) {
        const int64_t in = plan_.x.in;
        A* to = buffer_.data() + line * stride_ + margin_;
        A* row = parts_ == 1 ? to : row_.data();
        weigh_rows(plane, in, reach, weights, in, end_, row);
        if (parts_ == 1) {  // what was read beyond the row
            for (int64_t i = in; i < round_up(in); ++i) row[i] = A(0);
            return;
        }
        for (int64_t part = 0; part < parts_; ++part) {
            A* at = to + part * part_;
            for (int64_t i = part; i < in; i += parts_) *at++ = row[i];
        }
    }

    // The sum of the first `count` lines_ under weights_, and what stands behind it.
    void sum_line(int64_t count, const LineWriter<T, kBehind>& to) {
        const int64_t columns = plan_.x.out;
        if (phases_.size() == 1) {
            sum_phase(count, phases_[0], [&](int64_t i, Vec<A> v, int64_t n) __attribute__((always_inline)) {
                if (n == W) {
                    to.template write<true>(i, v, W);
                } else {
                    to.template write<false>(i, v, n);
                }
            });
            return;
        }
        const auto step = static_cast<int64_t>(phases_.size());
        for (int64_t e = 0; e < step; ++e) {
            A* at = line_.data() + e;
            sum_phase(count, phases_[e], [&](int64_t i, Vec<A> v, int64_t n) __attribute__((always_inline)) {
                A lanes[W];
                store(lanes, v);
                for (int64_t lane = 0; lane < n; ++lane) at[(i + lane) * step] = lanes[lane];
            });
        }
        int64_t i = 0;
        for (; i + W <= columns; i += W) to.template write<true>(i, load(line_.data() + i), W);
        if (i < columns) to.template write<false>(i, load(line_.data() + i), columns - i);
    }

    template <class Write>
    void sum_phase(int64_t count, const Phase& phase, const Write& write) {
        const auto taps = static_cast<int64_t>(phase.at.size());
        const int64_t* at = phase.at.data();
        for (int64_t i = 0; i < phase.outputs; i += kTogether * W) {
            Vec<A> v[kTogether] = {};
            const int64_t rest = phase.outputs - i;
            const auto sum = [&](auto vectors) __attribute__((always_inline)) {
                constexpr int kVectors = decltype(vectors)::value;
                for (int64_t j = 0; j < count; ++j) {
                    const A *line = lines_[j] + i, *w = weights_[j] + phase.weights;
                    for (int64_t t = 0; t < taps; ++t) {
                        const Vec<A> weight = broadcast<A>(w[t]);
#pragma GCC unroll 4
                        for (int m = 0; m < kVectors; ++m) v[m] += weight * load(line + at[t] + m * W);
                    }
                }
#pragma GCC unroll 4
                for (int m = 0; m < kVectors; ++m) {
                    if (m * W < rest) write(i + m * W, v[m], std::min<int64_t>(W, rest - m * W));
                }
            };
            if (rest > 2 * W) {
                sum(std::integral_constant<int, kTogether>{});
            } else if (rest > W) {
                sum(std::integral_constant<int, 2>{});
            } else {
                sum(std::integral_constant<int, 1>{});
            }
        }
    }
};

// Writes the channels of one pixel after the other.
template <class T, Behind kBehind>
class PixelWriter {
    using A = Accumulate<T>;
    const Epilogue<T> to_;
    const A *scale_, *bias_;
    A noise_ = A(0);
    T* pixel_ = nullptr;
    const T* add_ = nullptr;
    uint8_t* bits_ = nullptr;

  public:
    // For channels from `channel` on.
    PixelWriter(const Epilogue<T>& epilogue, int64_t image, int64_t channels, int64_t channel)
        : to_(epilogue),
          scale_(to_.scale ? to_.scale + image * channels + channel : nullptr),
          bias_(to_.bias ? to_.bias + channel : nullptr) {}
    // `at` counts pixels of the output, `in_noise` those of the noise.
    void start(int64_t at, int64_t in_noise, int64_t channels, int64_t channel) {
        pixel_ = to_.out + at * channels + channel;
        if constexpr (kBehind != Behind::kNothing) add_ = to_.add ? to_.add + at * channels + channel : nullptr;
        if constexpr (kBehind == Behind::kAll) {
            if (to_.noise) noise_ = to_.strength * static_cast<A>(to_.noise[in_noise]);
            bits_ = to_.bits ? to_.bits + at * ((channels + 7) / 8) + channel / 8 : nullptr;
        }
    }
    template <bool kFull>
    __attribute__((always_inline)) void write(int64_t i, Vec<A> v, int64_t n) const {
        if constexpr (kBehind == Behind::kAll) {
            if (scale_) v *= load_n<kFull>(scale_ + i, n);
            v += noise_;
            if (bias_) v += load_n<kFull>(bias_ + i, n);
            v = activate<kFull>(v, to_, bits_ ? bits_ + i / 8 : nullptr, n);
        }
        if constexpr (kBehind != Behind::kNothing) {
            if (add_) v += load_n<kFull>(add_ + i, n);
        }
        store_n<kFull>(pixel_ + i, v, n);
    }
};

// Channels last: vectors along the channels of a pixel, in blocks of pixels and channels. Under a matrix that is not
// separable a pixel is summed from the input directly.
template <Behind kBehind, class T>
class Pixels {
    using A = Accumulate<T>;
    static constexpr int W = kWidth<A>;

    const Plan<A>& plan_;
    const T *x_, *end_;
    const Epilogue<T>& epilogue_;
    const int64_t batch_, channels_;
    const std::vector<Reach> rows_, columns_;
    int64_t block_, blocks_;  // channels of a block, whole vectors if there are several
    int64_t across_;          // columns of output of a block
    int64_t size_;            // of the buffer

  public:
    Pixels(const Plan<A>& plan, const T* x, const T* x_end, int64_t batch, int64_t channels,
           const Epilogue<T>& epilogue)
        : plan_(plan),
          x_(x),
          end_(x_end),
          epilogue_(epilogue),
          batch_(batch),
          channels_(channels),
          rows_(reach_of_all(plan.y)),
          columns_(reach_of_all(plan.x)) {
        block_ = std::min<int64_t>(128, channels);
        blocks_ = (channels + block_ - 1) / block_;
        across_ = std::max<int64_t>(4, kBuffer / block_ * plan.x.up / plan.x.down);
        // columns of input that a block of output columns may reach
        const int64_t reached = (across_ * plan.x.down + plan.x.taps) / plan.x.up + 2;
        size_ = std::min(plan.x.in, reached) * block_ + W;
    }

    void run() const {
        const int64_t columns = plan_.x.out, rows = plan_.y.out;
        const int64_t band = std::clamp<int64_t>(kTask / (columns * block_), 1, rows);  // rows
        const int64_t bands = (rows + band - 1) / band;
        at::parallel_for(0, batch_ * bands * blocks_, 1, [&](int64_t begin, int64_t finish) {
            std::vector<A> buffer(size_);
            for (int64_t task = begin; task < finish; ++task) {
                const int64_t channel = task % blocks_ * block_, rest = task / blocks_;
                const int64_t image = rest / bands, from = rest % bands * band, until = std::min(from + band, rows);
                for (int64_t first = 0; first < columns; first += across_) {
                    run_block(image, from, until, first, std::min(first + across_, columns), channel, buffer.data());
                }
            }
        });
    }

  private:
    void run_block(int64_t image, int64_t from, int64_t until, int64_t first, int64_t behind, int64_t channel,
                   A* buffer) const {
        const int64_t n = std::min(block_, channels_ - channel), width = plan_.x.in, rows = plan_.y.out;
        const int64_t columns = plan_.x.out, line = width * channels_;
        // the columns of input under this block
        int64_t low = width, high = 0;
        for (int64_t o = first; o < behind; ++o) {
            if (columns_[o].count == 0) continue;
            low = std::min(low, columns_[o].first);
            high = std::max(high, columns_[o].first + columns_[o].count);
        }
        const T* source = x_ + image * plan_.y.in * line + channel;
        const int64_t noise_image = image % epilogue_.noise_planes;
        PixelWriter<T, kBehind> to(epilogue_, image, channels_, channel);
        for (int64_t row = from; row < until; ++row) {
            const Reach& down = rows_[row];
            if (plan_.separable && blocks_ == 1 && low < high) {  // the pixels are one run
                weigh_rows(source + low * channels_, line, down, plan_.column.data(), (high - low) * channels_, end_,
                           buffer);
            } else if (plan_.separable) {
                for (int64_t column = low; column < high; ++column) {
                    weigh_rows(source + column * channels_, line, down, plan_.column.data(), n, end_,
                               buffer + (column - low) * block_);
                }
            }
            for (int64_t o = first; o < behind; ++o) {
                to.start((image * rows + row) * columns + o, (noise_image * rows + row) * columns + o, channels_,
                         channel);
                const Reach& along = columns_[o];
                const A* weights = plan_.rows.data() + along.weights;
                if (!plan_.separable) {
                    const T* at = source + down.first * line + along.first * channels_;
                    sum_pixel<0>(along.count && down.count ? at : source, channels_, along.count, line, down.count,
                                 weights + plan_.tap(down) * plan_.row_size, n, to);
                    continue;
                }
                const A* at = along.count > 0 ? buffer + (along.first - low) * block_ : buffer;
                switch (along.count) {
                    case 1:
                        sum_pixel<1>(at, block_, 1, 0, 1, weights, n, to);
                        break;
                    case 2:
                        sum_pixel<2>(at, block_, 2, 0, 1, weights, n, to);
                        break;
                    case 3:
                        sum_pixel<3>(at, block_, 3, 0, 1, weights, n, to);
                        break;
                    case 4:
                        sum_pixel<4>(at, block_, 4, 0, 1, weights, n, to);
                        break;
                    default:
                        sum_pixel<0>(at, block_, along.count, 0, 1, weights, n, to);
                }
            }
        }
    }

    // The sum for one pixel over `rows` rows, `line` apart, of `count` pixels, `pixel` apart; kCount: one row of so
    // many.
    template <int kCount, class V>
    void sum_pixel(const V* at, int64_t pixel, int64_t count, int64_t line, int64_t rows, const A* weights, int64_t n,
                   const PixelWriter<T, kBehind>& to) const {
        A w[kCount ? kCount : 1];
        for (int t = 0; t < kCount; ++t) w[t] = weights[t];
        const int64_t next = plan_.y.up * plan_.row_size;
        const auto sum = [&](int64_t i, auto vectors, auto full, int64_t lanes) __attribute__((always_inline)) {
            constexpr int kVectors = decltype(vectors)::value;
            constexpr bool kFull = decltype(full)::value;
            Vec<A> v[kVectors] = {};
            if constexpr (kCount > 0) {
#pragma GCC unroll 4
                for (int t = 0; t < kCount; ++t) v[0] += w[t] * load_n<kFull>(at + t * pixel + i, lanes);
            } else {
                for (int64_t r = 0; r < rows; ++r) {
                    for (int64_t t = 0; t < count; ++t) {
                        const Vec<A> weight = broadcast<A>(weights[r * next + t]);
                        const V* from = at + r * line + t * pixel + i;
#pragma GCC unroll 4
                        for (int m = 0; m < kVectors; ++m) v[m] += weight * load_n<kFull>(from + m * W, lanes);
                    }
                }
            }
#pragma GCC unroll 4
            for (int m = 0; m < kVectors; ++m) to.template write<kFull>(i + m * W, v[m], lanes);
        };
        int64_t i = 0;
        if constexpr (kCount == 0) {  // several sums that do not wait for each other
            for (; i + 4 * W <= n; i += 4 * W) sum(i, std::integral_constant<int, 4>{}, std::true_type{}, W);
        }
        for (; i + W <= n; i += W) sum(i, std::integral_constant<int, 1>{}, std::true_type{}, W);
        if (i < n) sum(i, std::integral_constant<int, 1>{}, std::false_type{}, n - i);
    }
};

}  // namespace
}  // namespace anifast
