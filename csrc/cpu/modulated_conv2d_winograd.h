// 3 x 3 convolutions with a quarter of the products: F(4 x 4, 3 x 3) of Winograd 1980 (Lavin & Gray 2016).
//
// Along each axis, 4 outputs of a kernel of 3 are the product of two polynomials, which 6 values determine: at 0, +-a,
// +-b and infinity. A tile of 6 x 6 inputs and the kernel are evaluated at those 36 points (`input`, `kernel`), for each
// point the channels meet in a matrix product, and the outputs are interpolated (`output`). The gradient of the kernel
// runs the same way with the transposes of the maps. With a = sqrt(1/2), b = sqrt(2), a b = 1, rounding is smallest
// (benchmarks/LOG.md).
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/vec.h"
#include "modulated_conv2d_gemm.h"
#include "modulated_conv2d_maps.h"
#include "modulated_conv2d_product.h"

namespace anifast {
namespace {

namespace winograd {

constexpr int kTile = 4, kPoints = 6, kAll = kPoints * kPoints;
template <class A>
inline constexpr A kA = A(0.70710678118654752440);
template <class A>
inline constexpr A kB = A(1.41421356237309504880);
template <class A>
inline constexpr A kA2 = A(0.5);
template <class A>
inline constexpr A kB2 = A(2.0);

// 6 inputs -> 6 points.
template <class A>
inline void input(const Vec<A>* d, int64_t step, Vec<A>* to, int64_t to_step) {
    const Vec<A> d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const Vec<A> even_a = d4 - kB2<A> * d2, odd_a = kA<A> * (d3 - kB2<A> * d1);
    const Vec<A> even_b = d4 - kA2<A> * d2, odd_b = kB<A> * (d3 - kA2<A> * d1);
    to[0] = d0 - (kA2<A> + kB2<A>)*d2 + d4;
    to[to_step] = even_a + odd_a;
    to[2 * to_step] = even_a - odd_a;
    to[3 * to_step] = even_b + odd_b;
    to[4 * to_step] = even_b - odd_b;
    to[5 * to_step] = d1 - (kA2<A> + kB2<A>)*d3 + d5;
}

// 3 weights -> 6 points, each divided by the product of the distances from its point to the others.
template <class A>
inline void kernel(const Vec<A>* w, int64_t step, Vec<A>* to, int64_t to_step) {
    constexpr A of_a = A(1) / (2 * kA2<A> * (kA2<A> - kB2<A>)), of_b = A(1) / (2 * kB2<A> * (kB2<A> - kA2<A>));
    const Vec<A> w0 = w[0], w1 = w[step], w2 = w[2 * step];
    const Vec<A> even_a = of_a * (w0 + kA2<A> * w2), odd_a = (of_a * kA<A>)*w1;
    const Vec<A> even_b = of_b * (w0 + kB2<A> * w2), odd_b = (of_b * kB<A>)*w1;
    to[0] = w0;
    to[to_step] = even_a + odd_a;
    to[2 * to_step] = even_a - odd_a;
    to[3 * to_step] = even_b + odd_b;
    to[4 * to_step] = even_b - odd_b;
    to[5 * to_step] = w2;
}

// Its transpose.
template <class A>
inline void kernel_transposed(const Vec<A>* u, int64_t step, Vec<A>* to, int64_t to_step) {
    constexpr A of_a = A(1) / (2 * kA2<A> * (kA2<A> - kB2<A>)), of_b = A(1) / (2 * kB2<A> * (kB2<A> - kA2<A>));
    const Vec<A> sum_a = of_a * (u[step] + u[2 * step]), difference_a = (of_a * kA<A>)*(u[step] - u[2 * step]);
    const Vec<A> sum_b = of_b * (u[3 * step] + u[4 * step]), difference_b = (of_b * kB<A>)*(u[3 * step] - u[4 * step]);
    to[0] = u[0] + sum_a + sum_b;
    to[to_step] = difference_a + difference_b;
    to[2 * to_step] = kA2<A> * sum_a + kB2<A> * sum_b + u[5 * step];
}

// 6 points -> 4 outputs.
template <class A>
inline void output(const Vec<A>* m, int64_t step, Vec<A>* to, int64_t to_step) {
    const Vec<A> sum_a = m[step] + m[2 * step], difference_a = m[step] - m[2 * step];
    const Vec<A> sum_b = m[3 * step] + m[4 * step], difference_b = m[3 * step] - m[4 * step];
    to[0] = m[0] + sum_a + sum_b;
    to[to_step] = kA<A> * difference_a + kB<A> * difference_b;
    to[2 * to_step] = kA2<A> * sum_a + kB2<A> * sum_b;
    to[3 * to_step] = kA2<A> * kA<A> * difference_a + kB2<A> * kB<A> * difference_b + m[5 * step];
}

// Its transpose.
template <class A>
inline void output_transposed(const Vec<A>* g, int64_t step, Vec<A>* to, int64_t to_step) {
    const Vec<A> g0 = g[0], g1 = g[step], g2 = g[2 * step], g3 = g[3 * step];
    const Vec<A> even_a = g0 + kA2<A> * g2, odd_a = kA<A> * (g1 + kA2<A> * g3);
    const Vec<A> even_b = g0 + kB2<A> * g2, odd_b = kB<A> * (g1 + kB2<A> * g3);
    to[0] = g0;
    to[to_step] = even_a + odd_a;
    to[2 * to_step] = even_a - odd_a;
    to[3 * to_step] = even_b + odd_b;
    to[4 * to_step] = even_b - odd_b;
    to[5 * to_step] = g3;
}

// Along both axes, from kFrom x kFrom vectors to kTo x kTo.
template <int kFrom, int kTo, class V, class Axis>
inline void both(const V* from, V* to, const Axis& axis) {
    V between[kFrom * kTo];
#pragma GCC unroll 6
    for (int y = 0; y < kFrom; ++y) axis(from + y * kFrom, 1, between + y * kTo, 1);
#pragma GCC unroll 6
    for (int x = 0; x < kTo; ++x) axis(between + x, kTo, to + x, kTo);
}

// Every point's matrix of a weight, [point][block of outputs][input][kColumns]. `turned` turns the kernel around.
template <class A>
void kernels(const Weights<A>& w, bool turned, A* to) {
    constexpr int W = kWidth<A>;
    const int64_t point = w.blocks() * w.inputs * kColumns<A>;
    at::parallel_for(0, w.blocks() * w.inputs * kVectors, 32, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t line = task / kVectors, part = task % kVectors;
            const int64_t o = line / w.inputs * kColumns<A> + part * W, i = line % w.inputs;
            const int64_t count = std::clamp<int64_t>(w.outputs - o, 0, W);
            const A* from = w.data + o * w.output_step + i * w.input_step;
            A lanes[9][W] = {};
            for (int64_t lane = 0; lane < count; ++lane) {
                for (int tap = 0; tap < 9; ++tap) lanes[turned ? 8 - tap : tap][lane] = from[lane * w.output_step + tap];
            }
            Vec<A> weights[9], points[kAll];
            for (int tap = 0; tap < 9; ++tap) weights[tap] = load(lanes[tap]);
            both<3, kPoints>(weights, points, kernel<A>);
            for (int p = 0; p < kAll; ++p) store(to + p * point + line * kColumns<A> + part * W, points[p]);
        }
    });
}

// The tiles of maps, line of tiles by line of tiles and image by image.
struct Tiles {
    int64_t batch, rows, columns;  // of the maps

    int64_t across() const { return (columns + kTile - 1) / kTile; }
    int64_t down() const { return (rows + kTile - 1) / kTile; }
    int64_t lines() const { return batch * down(); }
    // Pixels of a line's scratch memory, a vector each.
    int64_t scratch() const { return kPoints * (across() * kTile + 2); }
};

// One line of tiles of some channels at all points, [point][tile][channel]: kBorder of 1 reads tiles of 6 x 6 that
// overlap, of 0 those of 4 x 4.
template <int kBorder, class A>
void evaluate(const Maps<const A>& maps, const Tiles& tiles, int64_t line, int64_t c, const A* factors, A* scratch,
              A* to, int64_t step, int64_t point) {
    constexpr int W = kWidth<A>, kSide = kTile + 2 * kBorder;
    const int64_t n = line / tiles.down(), top = line % tiles.down() * kTile - kBorder;
    const int64_t width = tiles.across() * kTile + 2 * kBorder;
    for (int r = 0; r < kSide; ++r) {
        A* row = scratch + r * width * W;
        const bool inside = top + r >= 0 && top + r < maps.rows;
        if (inside) read_line(maps, n, top + r, c, factors, [&](int64_t x) { return row + (x + kBorder) * W; });
        if (kBorder) store(row, Vec<A>{});
        for (int64_t x = inside ? maps.columns + kBorder : 0; x < width; ++x) store(row + x * W, Vec<A>{});
    }
    for (int64_t tile = 0; tile < tiles.across(); ++tile) {
        Vec<A> values[kSide * kSide], points[kAll];
        for (int r = 0; r < kSide; ++r) {
            for (int x = 0; x < kSide; ++x) values[r * kSide + x] = load(scratch + (r * width + tile * kTile + x) * W);
        }
        if constexpr (kBorder) {
            both<kSide, kPoints>(values, points, input<A>);
        } else {
            both<kSide, kPoints>(values, points, output_transposed<A>);
        }
        for (int p = 0; p < kAll; ++p) store(to + p * point + tile * step, points[p]);
    }
}

// The reverse: outputs of one line of tiles.
template <class Stage, class A, class Behind>
void interpolate(const A* from, int64_t step, int64_t point, const Tiles& tiles, int64_t line, int64_t c, A* scratch,
                 const Maps<A>& maps, const Behind& behind) {
    constexpr int W = kWidth<A>;
    const int64_t n = line / tiles.down(), top = line % tiles.down() * kTile, width = tiles.across() * kTile;
    for (int64_t tile = 0; tile < tiles.across(); ++tile) {
        Vec<A> points[kAll], values[kTile * kTile];
        for (int p = 0; p < kAll; ++p) points[p] = load(from + p * point + tile * step);
        both<kPoints, kTile>(points, values, output<A>);
        for (int r = 0; r < kTile; ++r) {
            for (int x = 0; x < kTile; ++x) store(scratch + (r * width + tile * kTile + x) * W, values[r * kTile + x]);
        }
    }
    for (int64_t r = 0; r < kTile && top + r < maps.rows; ++r) {
        Stage stage(behind, maps, n, top + r, c);
        write_line(maps, n, top + r, c, [&](int64_t x) { return scratch + (r * width + x) * W; }, stage);
    }
}

// How many lines of tiles are worked on together, and whether each thread has some of its own.
struct Parts {
    int64_t lines, count;
    bool outer;

    // bytes: of all points of a line of tiles; weights: of all matrices
    Parts(const Tiles& tiles, int64_t bytes, int64_t weights) {
        const int64_t threads = at::get_num_threads();
        constexpr int64_t kOwn = 1 << 20, kShared = 24 << 20, kLight = 4 << 20;
        lines = std::clamp<int64_t>(kOwn / bytes, 1, tiles.lines());
        count = (tiles.lines() + lines - 1) / lines;
        outer = weights <= kLight && count >= 4 * threads;
        if (outer) return;
        lines = std::clamp<int64_t>(kShared / bytes, 1, tiles.lines());
        count = (tiles.lines() + lines - 1) / lines;
        lines = (tiles.lines() + count - 1) / count;
    }
};

// A 3 x 3 convolution of whole maps with zeros around; what stands behind the sums as Gemm has it.
template <class Stage, class A, class Behind>
void convolution(const Weights<A>& weights, bool turned, const Maps<const A>& in, const A* factors, const Maps<A>& out,
                 const Behind& behind) {
    constexpr int64_t C = kColumns<A>;
    const Tiles tiles{in.batch, in.rows, in.columns};
    const int64_t in_step = PixelRow<A>::step_for(in.channels), out_step = weights.blocks() * C + 16;
    const int64_t across = tiles.across(), matrices = kAll * weights.blocks() * weights.inputs * C;
    const Parts parts(tiles, kAll * across * (in_step + out_step) * sizeof(A), matrices * sizeof(A));
    const int64_t threads = at::get_num_threads(), owners = parts.outer ? threads : 1, count = parts.lines * across;
    using Space = Workspace;
    Space space(Space::bytes<A>(matrices) + owners * Space::bytes<A>(kAll * count * in_step) +
                owners * Space::bytes<A>(kAll * count * out_step) +
                threads * Space::bytes<A>(tiles.scratch() * kWidth<A>));
    A* matrix = space.take<A>(matrices);
    std::vector<A*> points(owners), sums(owners), scratch(threads);
    for (auto& one : points) one = space.take<A>(kAll * count * in_step);
    for (auto& one : sums) one = space.take<A>(kAll * count * out_step);
    for (auto& one : scratch) one = space.take<A>(tiles.scratch() * kWidth<A>);
    kernels(weights, turned, matrix);
    const int64_t in_point = count * in_step, out_point = count * out_step;
    const int64_t matrix_point = weights.blocks() * weights.inputs * C;
    const auto work = [&](int64_t part, A* v, A* m) {
        const int64_t first = part * parts.lines, lines = std::min(parts.lines, tiles.lines() - first);
        at::parallel_for(0, lines * in.groups(), 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t line = task / in.groups(), c = task % in.groups() * kWidth<A>;
                evaluate<1>(in, tiles, first + line, c, factors, scratch[at::get_thread_num()],
                            v + line * across * in_step + c, in_step, in_point);
            }
        });
        at::parallel_for(0, kAll * weights.blocks(), 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t p = task / weights.blocks(), b = task % weights.blocks();
                const Factor<A> factor{v + p * in_point, matrix + p * matrix_point + b * weights.inputs * C};
                products<false, false>(lines * across, &factor, 1, weights.inputs, in_step, C, m + p * out_point + b * C,
                                       out_step);
            }
        });
        at::parallel_for(0, lines * out.groups(), 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t line = task / out.groups(), c = task % out.groups() * kWidth<A>;
                interpolate<Stage>(m + line * across * out_step + c, out_step, out_point, tiles, first + line, c,
                                   scratch[at::get_thread_num()], out, behind);
            }
        });
    };
    if (parts.outer) {
        at::parallel_for(0, parts.count, 1, [&](int64_t begin, int64_t end) {
            const int id = at::get_thread_num();
            for (int64_t part = begin; part < end; ++part) work(part, points[id], sums[id]);
        });
    } else {
        for (int64_t part = 0; part < parts.count; ++part) work(part, points[0], sums[0]);
    }
}

// The gradient of the weight [outputs, inputs, 3, 3].
template <class A>
void weight_gradient(const Maps<const A>& x, const A* factors, const Maps<const A>& grad, A* out) {
    constexpr int64_t C = kColumns<A>, W = kWidth<A>;
    const Tiles tiles{x.batch, x.rows, x.columns};
    const int64_t blocks = (grad.channels + C - 1) / C, across = tiles.across();
    const int64_t x_step = PixelRow<A>::step_for(x.channels), grad_step = blocks * C + 16;
    const int64_t bytes = kAll * across * (x_step + grad_step) * sizeof(A), matrix = blocks * x.channels * C;
    constexpr int64_t kShared = 24 << 20;
    const int64_t part = std::clamp<int64_t>(kShared / bytes, 1, tiles.lines()), count = part * across;
    const int64_t threads = at::get_num_threads();
    using Space = Workspace;
    Space space(Space::bytes<A>(kAll * count * x_step) + Space::bytes<A>(kAll * count * grad_step) +
                Space::bytes<A>(kAll * matrix) + threads * Space::bytes<A>(tiles.scratch() * W));
    A* v = space.take<A>(kAll * count * x_step);
    A* d = space.take<A>(kAll * count * grad_step);
    A* sums = space.take<A>(kAll * matrix);
    std::vector<A*> scratch(threads);
    for (auto& one : scratch) one = space.take<A>(tiles.scratch() * W);
    for (int64_t first = 0; first < tiles.lines(); first += part) {
        const int64_t lines = std::min(part, tiles.lines() - first);
        const int64_t of_grad = blocks * kVectors;  // whole blocks, zeros where there are no channels
        at::parallel_for(0, lines * (x.groups() + of_grad), 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t line = task / (x.groups() + of_grad), group = task % (x.groups() + of_grad);
                A* memory = scratch[at::get_thread_num()];
                if (group < x.groups()) {
                    evaluate<1>(x, tiles, first + line, group * W, factors, memory,
                                v + line * across * x_step + group * W, x_step, count * x_step);
                    continue;
                }
                const int64_t c = (group - x.groups()) * W;
                A* to = d + line * across * grad_step + c;
                if (c < grad.channels) {
                    evaluate<0>(grad, tiles, first + line, c, static_cast<const A*>(nullptr), memory, to, grad_step,
                                count * grad_step);
                } else {
                    for (int64_t p = 0; p < kAll; ++p) {
                        for (int64_t t = 0; t < across; ++t) store(to + (p * count + t) * grad_step, Vec<A>{});
                    }
                }
            }
        });
        at::parallel_for(0, kAll * blocks, 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t p = task / blocks, b = task % blocks;
                const Factor<A> factor{v + p * count * x_step, d + p * count * grad_step + b * C};
                A* to = sums + p * matrix + b * x.channels * C;
                if (first == 0) {
                    products<true, false>(x.channels, &factor, 1, lines * across, x_step, grad_step, to, C);
                } else {
                    products<true, true>(x.channels, &factor, 1, lines * across, x_step, grad_step, to, C);
                }
            }
        });
    }
    at::parallel_for(0, blocks * x.channels, 16, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t b = task / x.channels, i = task % x.channels;
            for (int part = 0; part < kVectors; ++part) {
                const int64_t o = b * C + part * W, lanes = std::clamp<int64_t>(grad.channels - o, 0, W);
                Vec<A> points[kAll], taps[9];
                for (int p = 0; p < kAll; ++p) points[p] = load(sums + p * matrix + task * C + part * W);
                both<kPoints, 3>(points, taps, kernel_transposed<A>);
                for (int64_t lane = 0; lane < lanes; ++lane) {
                    for (int tap = 0; tap < 9; ++tap) out[((o + lane) * x.channels + i) * 9 + tap] = taps[tap][lane];
                }
            }
        }
    });
}

}  // namespace winograd

}  // namespace
}  // namespace anifast
