// Convolutions as sums of matrix products over shifted pixels (implicit GEMM).
//
// Pixels stand in a row, line by line and image by image, with one zero between lines and one line of zeros between
// images: it is the right border of what stands before and the left border of what follows. A tap of the kernel is then
// a distance in that row, and the products of all taps are summed in registers.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "../common/vec.h"
#include "modulated_conv2d_maps.h"
#include "product.h"

namespace anifast {
namespace {

// What a convolution does: each phase of the output (one, or four where it up-samples) is a sum over taps, each of
// which reads a phase of the input (one, or four where it down-samples).
struct Tap {
    int weight;    // which of the kernel's weights
    int phase;     // of the input
    int64_t y, x;  // distance from the output's pixel to the input's
};
struct Form {
    int in_phases = 1, border = 0;
    std::vector<std::vector<Tap>> taps;  // by phase of the output
};

// k x k with zeros around; `turned` is its adjoint with respect to the input.
inline Form plain_form(int size, bool turned) {
    Form form;
    form.border = size / 2;
    form.taps.resize(1);
    for (int y = 0; y < size; ++y) {
        for (int x = 0; x < size; ++x) {
            const int weight = y * size + x;
            form.taps[0].push_back({turned ? size * size - 1 - weight : weight, 0, y - size / 2, x - size / 2});
        }
    }
    return form;
}

// 3 x 3 transposed with stride 2: output (2a + p, 2b + q) has the taps of parity p, q.
inline Form up_form() {
    Form form;
    form.border = 1;
    form.taps.resize(4);
    for (int y = 0; y < 3; ++y) {
        for (int x = 0; x < 3; ++x) form.taps[y % 2 * 2 + x % 2].push_back({y * 3 + x, 0, -(y / 2), -(x / 2)});
    }
    return form;
}

// Its adjoint, 3 x 3 with stride 2: tap (y, x) reads the phase of its parity.
inline Form down_form() {
    Form form;
    form.in_phases = 4;
    form.border = 1;
    form.taps.resize(1);
    for (int y = 0; y < 3; ++y) {
        for (int x = 0; x < 3; ++x) form.taps[0].push_back({y * 3 + x, y % 2 * 2 + x % 2, y / 2, x / 2});
    }
    return form;
}

// Where an [out, in, k, k] weight's numbers are, in either direction.
template <class A>
struct Weights {
    const A* data;
    int64_t outputs, inputs, output_step, input_step, taps;

    int64_t blocks() const { return (outputs + kColumns<A> - 1) / kColumns<A>; }
    int64_t packed() const { return blocks() * taps * inputs * kColumns<A>; }
};

// As columns of products: [block of outputs][tap][input][kColumns].
template <class A>
void pack_weights(const Weights<A>& w, A* to) {
    constexpr int64_t C = kColumns<A>;
    at::parallel_for(0, w.blocks() * w.inputs, 64, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t block = task / w.inputs, i = task % w.inputs, count = std::min(C, w.outputs - block * C);
            const A* from = w.data + block * C * w.output_step + i * w.input_step;
            for (int64_t tap = 0; tap < w.taps; ++tap) {
                A* line = to + ((block * w.taps + tap) * w.inputs + i) * C;
                for (int64_t o = 0; o < count; ++o) line[o] = from[o * w.output_step + tap];
                for (int64_t o = count; o < C; ++o) line[o] = A(0);
            }
        }
    });
}

struct Geometry {
    int64_t rows, columns;  // of one phase of the maps, without what stands between
    int64_t border;

    int64_t line() const { return columns + border; }
    int64_t image() const { return rows + border; }
    // Number of a line in the whole row, with the first border; y may be -1 or `rows`.
    int64_t number(int64_t n, int64_t y) const { return n * image() + border + y; }
};

// Lines first .. last of the whole row, of `phases` phases, channels side by side.
template <class A>
struct PixelRow {
    Geometry g;
    int64_t first, lines, step, phases;  // step: values from pixel to pixel
    A* data;

    int64_t size() const { return lines * g.line() + 2 * g.border; }  // pixels of a phase
    A* at(int64_t phase, int64_t number, int64_t x) const {
        return data + (phase * size() + (number - first) * g.line() + x + g.border) * step;
    }
    // Values from pixel to pixel for so many channels: not a multiple of a page, or rows of a product share few places
    // of the cache.
    static int64_t step_for(int64_t channels) {
        constexpr int64_t W = kWidth<A>;
        return (channels + W - 1) / W * W + 16;
    }
    void zero(A* from, int64_t pixels, int64_t channel) const {
        for (int64_t x = 0; x < pixels; ++x) store(from + x * step + channel, Vec<A>{});
    }
    // Fills it from the maps, times their factors.
    void fill(const Maps<const A>& maps, const A* factors) const {
        constexpr int W = kWidth<A>;
        at::parallel_for(0, lines * maps.groups(), 8, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t number = first + task / maps.groups(), c = task % maps.groups() * W;
                fill_line(maps, factors, number, c);
            }
        });
    }

  private:
    void fill_line(const Maps<const A>& maps, const A* factors, int64_t number, int64_t c) const {
        const int64_t n = (number - g.border) / std::max<int64_t>(g.image(), 1);
        const int64_t y = number < g.border ? -1 : (number - g.border) % g.image();
        const bool outside = y < 0 || n >= maps.batch;
        if (g.border && (number == first)) {
            for (int64_t phase = 0; phase < phases; ++phase) zero(at(phase, number, -1), 1, c);
        }
        if (g.border && (number == first + lines - 1)) {
            for (int64_t phase = 0; phase < phases; ++phase) zero(at(phase, number, g.line()), 1, c);
        }
        for (int64_t phase = 0; phase < phases; phase += phases > 1 ? 2 : 1) {
            const int64_t row = phases > 1 ? 2 * y + phase / 2 : y;
            if (outside || row >= maps.rows) {
                zero(at(phase, number, 0), g.line(), c);
                if (phases > 1) zero(at(phase + 1, number, 0), g.line(), c);
                continue;
            }
            A* even = at(phase, number, 0) + c;
            if (phases > 1) {
                A* odd = at(phase + 1, number, 0) + c;
                read_line(maps, n, row, c, factors, [&](int64_t x) { return (x % 2 ? odd : even) + x / 2 * step; });
                zero(odd - c + g.columns * step, 1, c);
            } else {
                read_line(maps, n, row, c, factors, [&](int64_t x) { return even + x * step; });
                if (g.border) zero(at(phase, number, g.columns), 1, c);
            }
        }
    }
};

// A convolution of whole maps in parts of some lines.
template <class A>
class Gemm {
  public:
    Gemm(const Form& form, const Weights<A>& weights, const Maps<const A>& in, const Maps<A>& out)
        : form_(form), weights_(weights), in_(in), out_(out) {
        const bool up = form.taps.size() > 1;
        // lines of one phase, of what is smaller of input and output
        geometry_ = up ? Geometry{in.rows, in.columns, 1} : Geometry{out.rows, out.columns, form.border};
        lines_ = up ? in.rows + 1 : out.rows;
        step_ = PixelRow<A>::step_for(in.channels);
        // half a second cache for a part, but enough parts or blocks for all threads
        constexpr int64_t kPart = 160 * 1024;
        const int64_t line_values = geometry_.line() * step_ * form.in_phases;
        part_ = std::clamp<int64_t>(kPart / line_values, 1, in.batch * lines_);
        const int64_t threads = at::get_num_threads();
        if (weights.blocks() < 4 * threads && threads > 1) {
            part_ = std::min(part_, std::max<int64_t>(1, in.batch * lines_ / (4 * threads)));
        }
        parts_ = (in.batch * lines_ + part_ - 1) / part_;
        outer_ = parts_ >= 2 * threads;
        // lines between two images may fall into a part
        most_lines_ = part_ + part_ / std::max<int64_t>(lines_, 1) + 1 + 2 * form.border + 1;
        row_values_ = form.in_phases * (most_lines_ * geometry_.line() + 2) * step_;
        sums_values_ = static_cast<int64_t>(form.taps.size()) * most_lines_ * geometry_.line() * kColumns<A>;
    }

    // factors: [N, inputs] or null; stage(n, y, c) makes what stands behind the sums of a line.
    template <class Stage, class Behind>
    void run(const A* factors, const Behind& behind) const {
        const int64_t threads = at::get_num_threads();
        const int64_t rows = outer_ ? threads : 1, sums = threads;
        using W = Workspace;
        Workspace space(W::bytes<A>(weights_.packed()) + rows * W::bytes<A>(row_values_) +
                        sums * W::bytes<A>(sums_values_));
        A* packed = space.take<A>(weights_.packed());
        std::vector<A*> row(rows), sum(sums);
        for (auto& one : row) one = space.take<A>(row_values_);
        for (auto& one : sum) one = space.take<A>(sums_values_);
        pack_weights(weights_, packed);
        if (outer_) {
            at::parallel_for(0, parts_, 1, [&](int64_t begin, int64_t end) {
                const int id = at::get_thread_num();
                for (int64_t part = begin; part < end; ++part) {
                    const PixelRow<A> pixels = fill(part, factors, row[id]);
                    for (int64_t b = 0; b < weights_.blocks(); ++b)
                        block<Stage>(part, b, pixels, packed, sum[id], behind);
                }
            });
            return;
        }
        for (int64_t part = 0; part < parts_; ++part) {
            const PixelRow<A> pixels = fill(part, factors, row[0]);
            at::parallel_for(0, weights_.blocks(), 1, [&](int64_t begin, int64_t end) {
                const int id = at::get_thread_num();
                for (int64_t b = begin; b < end; ++b) block<Stage>(part, b, pixels, packed, sum[id], behind);
            });
        }
    }

  private:
    struct Span {
        int64_t n, from, until;
    };
    // The lines of a part that belong to one image each.
    template <class Do>
    void for_spans(int64_t part, const Do& work) const {
        int64_t q = part * part_;
        const int64_t end = std::min(in_.batch * lines_, q + part_);
        while (q < end) {
            const int64_t n = q / lines_, from = q % lines_, until = std::min(lines_, from + end - q);
            work(Span{n, from, until});
            q += until - from;
        }
    }
    int64_t first_number(int64_t part) const { return geometry_.number(part * part_ / lines_, part * part_ % lines_); }
    PixelRow<A> fill(int64_t part, const A* factors, A* memory) const {
        const int64_t last = std::min(in_.batch * lines_, (part + 1) * part_) - 1;
        const int64_t begin = first_number(part) - form_.border;
        const int64_t end = geometry_.number(last / lines_, last % lines_) + form_.border;
        const PixelRow<A> pixels{geometry_, begin, end - begin + 1, step_, form_.in_phases, memory};
        pixels.fill(in_, factors);
        return pixels;
    }
    // All lines of a part for one block of output channels.
    template <class Stage, class Behind>
    void block(int64_t part, int64_t b, const PixelRow<A>& pixels, const A* packed, A* sums,
               const Behind& behind) const {
        constexpr int64_t C = kColumns<A>;
        const int64_t inputs = weights_.inputs, line = geometry_.line(), start = first_number(part);
        const int64_t phase_values = most_lines_ * line * C;
        for_spans(part, [&](const Span& span) {
            const int64_t number = geometry_.number(span.n, span.from);
            for (size_t phase = 0; phase < form_.taps.size(); ++phase) {
                Factor<A> factors[9];
                int count = 0;
                for (const Tap& tap : form_.taps[phase]) {
                    factors[count++] = {pixels.at(tap.phase, number + tap.y, tap.x),
                                        packed + (b * weights_.taps + tap.weight) * inputs * C};
                }
                products<false, false>((span.until - span.from) * line, factors, count, inputs, step_, C,
                                       sums + phase * phase_values + (number - start) * line * C, C);
            }
        });
        const int64_t until = std::min(weights_.outputs, (b + 1) * C);
        for (int64_t c = b * C; c < until; c += kWidth<A>) {
            for_spans(part, [&](const Span& span) {
                for (int64_t y = span.from; y < span.until; ++y) {
                    const A* from = sums + (geometry_.number(span.n, y) - start) * line * C + c - b * C;
                    if (form_.taps.size() == 1) {
                        Stage stage(behind, out_, span.n, y, c);
                        write_line(out_, span.n, y, c, [&](int64_t x) { return from + x * C; }, stage);
                        continue;
                    }
                    for (int64_t p = 0; p < 2 && 2 * y + p < out_.rows; ++p) {
                        Stage stage(behind, out_, span.n, 2 * y + p, c);
                        const A* even = from + 2 * p * phase_values;
                        const A* odd = even + phase_values;
                        write_line(
                            out_, span.n, 2 * y + p, c, [&](int64_t x) { return (x % 2 ? odd : even) + x / 2 * C; },
                            stage);
                    }
                }
            });
        }
    }

    Form form_;
    Weights<A> weights_;
    Maps<const A> in_;
    Maps<A> out_;
    Geometry geometry_{};
    int64_t lines_, step_, part_, parts_, most_lines_, row_values_, sums_values_;
    bool outer_;
};

// The gradient of a weight [outputs, inputs, k, k]: for every tap the product of the maps that the tap meets, summed
// over pixels. `x` are the maps that the inputs are of and `grad` those of the outputs; for the plain form the taps
// move x, for the down-sampling one (the weight of an up-sampling convolution, see down_form) they choose from grad.
template <class A>
void weight_gradient(const Form& form, int64_t taps, const Maps<const A>& x, const A* factors,
                     const Maps<const A>& grad, A* out) {
    constexpr int64_t C = kColumns<A>;
    const Geometry g{x.rows, x.columns, form.border};
    const int64_t x_step = PixelRow<A>::step_for(x.channels);
    const int64_t grad_step = PixelRow<A>::step_for((grad.channels + C - 1) / C * C);
    const int64_t blocks = (grad.channels + C - 1) / C;
    // a third cache's share for a part
    constexpr int64_t kPart = 768 * 1024;
    const int64_t line_values = g.line() * (x_step + grad_step * form.in_phases), all = x.batch * g.image();
    const int64_t part = std::clamp<int64_t>(kPart / line_values, 1, all), most = part + 2 * g.border;
    const int64_t x_values = (most * g.line() + 2) * x_step;
    const int64_t grad_values = form.in_phases * (most * g.line() + 2) * grad_step;
    const int64_t sum_values = blocks * taps * x.channels * C;
    using W = Workspace;
    Workspace space(W::bytes<A>(x_values) + W::bytes<A>(grad_values) + W::bytes<A>(sum_values));
    A* x_memory = space.take<A>(x_values);
    A* grad_memory = space.take<A>(grad_values);
    A* sums = space.take<A>(sum_values);
    const bool moves_x = form.in_phases == 1;
    for (int64_t from = 0; from < all; from += part) {
        const int64_t lines = std::min(part, all - from);
        // with the lines that taps reach
        const PixelRow<A> of_x{g, from, lines + 2 * g.border, x_step, 1, x_memory};
        const PixelRow<A> of_grad{g, from, lines + 2 * g.border, grad_step, form.in_phases, grad_memory};
        of_x.fill(x, factors);
        of_grad.fill(grad, nullptr);
        if (grad.channels % C != 0) {  // whole blocks are read
            for (int64_t pixel = 0; pixel < form.in_phases * of_grad.size(); ++pixel) {
                for (int64_t c = grad.groups() * kWidth<A>; c < blocks * C; c += kWidth<A>) {
                    store(grad_memory + pixel * grad_step + c, Vec<A>{});
                }
            }
        }
        at::parallel_for(0, blocks * taps, 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t b = task / taps;
                const Tap& tap = form.taps[0][task % taps];
                const int64_t first = from + g.border;
                const Factor<A> factor{
                    moves_x ? of_x.at(0, first + tap.y, tap.x) : of_x.at(0, first, 0),
                    (moves_x ? of_grad.at(0, first, 0) : of_grad.at(tap.phase, first + tap.y, tap.x)) + b * C};
                A* to = sums + (b * taps + tap.weight) * x.channels * C;
                const int64_t depth = lines * g.line();
                if (from == 0) {
                    products<true, false>(x.channels, &factor, 1, depth, x_step, grad_step, to, C);
                } else {
                    products<true, true>(x.channels, &factor, 1, depth, x_step, grad_step, to, C);
                }
            }
        });
    }
    at::parallel_for(0, grad.channels, 8, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; ++o) {
            for (int64_t tap = 0; tap < taps; ++tap) {
                const A* line = sums + (o / C * taps + tap) * x.channels * C + o % C;
                for (int64_t i = 0; i < x.channels; ++i) out[(o * x.channels + i) * taps + tap] = line[i * C];
            }
        }
    });
}

}  // namespace
}  // namespace anifast
