// 3 x 3 convolutions with fewer products (Winograd 1980; Lavin & Gray 2016), plain and up-sampling.
//
// Along an axis a tile of inputs and a kernel are two polynomials, and the outputs of the tile are coefficients of
// their product. Both are evaluated at some points, the values multiplied, and the outputs interpolated. So it is along
// both axes; for each pair of points the channels meet in a matrix product.
//
//   plain     4 outputs of 3 taps by 6 points, 0, +-a, +-b and infinity:      36 products for 16 outputs instead of 144
//   up        4 inputs make 5 even outputs, of 2 taps, by 5 points, 0, +-a, +-b, and 4 odd ones, of 1 tap, by
//             themselves: 81 products for 16 inputs instead of 144. The fifth is added to the next tile's first.
//
// Gradients run through the transposes of the same maps. With a = sqrt(1/2) and b = sqrt(2), so a b = 1, rounding is
// about the smallest there is (benchmarks/LOG.md).
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/vec.h"
#include "modulated_conv2d_gemm.h"
#include "modulated_conv2d_maps.h"
#include "product.h"

namespace anifast {
namespace {

namespace winograd {

template <class A>
inline constexpr A kA = A(0.70710678118654752440);
template <class A>
inline constexpr A kB = A(1.41421356237309504880);
template <class A>
inline constexpr A kA2 = A(0.5);
template <class A>
inline constexpr A kB2 = A(2);
// One by the product of the distances from a point, a or b, to the other finite ones.
template <class A>
inline constexpr A kOfA = A(1) / (2 * kA2<A> * (kA2<A> - kB2<A>));
template <class A>
inline constexpr A kOfB = A(1) / (2 * kB2<A> * (kB2<A> - kA2<A>));

// The maps along one axis: from values `step` apart to values `to_step` apart.

// c0 + c1 z + c2 z^2 + c3 z^3 at 0, a, -a, b, -b.
template <class A>
inline void evaluate(const Vec<A>* c, int64_t step, Vec<A>* to, int64_t to_step) {
    const Vec<A> c0 = c[0], c1 = c[step], c2 = c[2 * step], c3 = c[3 * step];
    const Vec<A> even_a = c0 + kA2<A> * c2, odd_a = kA<A> * (c1 + kA2<A> * c3);
    const Vec<A> even_b = c0 + kB2<A> * c2, odd_b = kB<A> * (c1 + kB2<A> * c3);
    to[0] = c0;
    to[to_step] = even_a + odd_a;
    to[2 * to_step] = even_a - odd_a;
    to[3 * to_step] = even_b + odd_b;
    to[4 * to_step] = even_b - odd_b;
}
template <class A>
inline void evaluate_transposed(const Vec<A>* m, int64_t step, Vec<A>* to, int64_t to_step) {
    const Vec<A> sum_a = m[step] + m[2 * step], difference_a = m[step] - m[2 * step];
    const Vec<A> sum_b = m[3 * step] + m[4 * step], difference_b = m[3 * step] - m[4 * step];
    to[0] = m[0] + sum_a + sum_b;
    to[to_step] = kA<A> * difference_a + kB<A> * difference_b;
    to[2 * to_step] = kA2<A> * sum_a + kB2<A> * sum_b;
    to[3 * to_step] = kA2<A> * kA<A> * difference_a + kB2<A> * kB<A> * difference_b;
}

// The coefficients 0 .. 4 of the polynomial with these values there, less the distances of kOfA and kOfB.
template <class A>
inline void interpolate(const Vec<A>* m, int64_t step, Vec<A>* to, int64_t to_step) {
    const Vec<A> sum_a = m[step] + m[2 * step], difference_a = m[step] - m[2 * step];
    const Vec<A> sum_b = m[3 * step] + m[4 * step], difference_b = m[3 * step] - m[4 * step];
    to[0] = m[0];
    to[to_step] = -(kA<A> * kB2<A>)*difference_a - (kB<A> * kA2<A>)*difference_b;
    to[2 * to_step] = -(kA2<A> + kB2<A>)*m[0] - kB2<A> * sum_a - kA2<A> * sum_b;
    to[3 * to_step] = kA<A> * difference_a + kB<A> * difference_b;
    to[4 * to_step] = m[0] + sum_a + sum_b;
}
template <class A>
inline void interpolate_transposed(const Vec<A>* d, int64_t step, Vec<A>* to, int64_t to_step) {
    const Vec<A> d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
    const Vec<A> even_a = d4 - kB2<A> * d2, odd_a = kA<A> * (d3 - kB2<A> * d1);
    const Vec<A> even_b = d4 - kA2<A> * d2, odd_b = kB<A> * (d3 - kA2<A> * d1);
    to[0] = d0 - (kA2<A> + kB2<A>)*d2 + d4;
    to[to_step] = even_a + odd_a;
    to[2 * to_step] = even_a - odd_a;
    to[3 * to_step] = even_b + odd_b;
    to[4 * to_step] = even_b - odd_b;
}

// A side of a convolution, as tiles of maps: kTile values along an axis, kStep from tile to tile, the first at
// -kBorder, are kParts values that meet the other side's; `axis` gives those of a tile, or a tile from those.
struct PlainInput {
    static constexpr int kTile = 6, kStep = 4, kBorder = 1, kParts = 6;
    template <class A>
    static void axis(const Vec<A>* d, int64_t step, Vec<A>* to, int64_t to_step) {
        interpolate_transposed<A>(d, step, to, to_step);
        to[5 * to_step] = d[step] - (kA2<A> + kB2<A>)*d[3 * step] + d[5 * step];
    }
};
struct PlainGrad {
    static constexpr int kTile = 4, kStep = 4, kBorder = 0, kParts = 6;
    template <class A>
    static void axis(const Vec<A>* g, int64_t step, Vec<A>* to, int64_t to_step) {
        evaluate<A>(g, step, to, to_step);
        to[5 * to_step] = g[3 * step];
    }
};
struct PlainOutput {
    static constexpr int kTile = 4, kStep = 4, kParts = 6;
    template <class A>
    static void axis(const Vec<A>* m, int64_t step, Vec<A>* to, int64_t to_step) {
        evaluate_transposed<A>(m, step, to, to_step);
        to[3 * to_step] += m[5 * step];
    }
};
struct UpInput {
    static constexpr int kTile = 4, kStep = 4, kBorder = 0, kParts = 9;
    template <class A>
    static void axis(const Vec<A>* x, int64_t step, Vec<A>* to, int64_t to_step) {
        evaluate<A>(x, step, to, to_step);
        for (int i = 0; i < 4; ++i) to[(5 + i) * to_step] = x[i * step];
    }
};
struct UpGrad {
    static constexpr int kTile = 9, kStep = 8, kBorder = 0, kParts = 9;
    template <class A>
    static void axis(const Vec<A>* g, int64_t step, Vec<A>* to, int64_t to_step) {
        interpolate_transposed<A>(g, 2 * step, to, to_step);
        for (int i = 0; i < 4; ++i) to[(5 + i) * to_step] = g[(2 * i + 1) * step];
    }
};
struct UpOutput {
    static constexpr int kTile = 9, kStep = 8, kParts = 9;
    template <class A>
    static void axis(const Vec<A>* m, int64_t step, Vec<A>* to, int64_t to_step) {
        interpolate<A>(m, step, to, 2 * to_step);
        for (int i = 0; i < 4; ++i) to[(2 * i + 1) * to_step] = m[(5 + i) * step];
    }
};
struct UpInputGrad {
    static constexpr int kTile = 4, kStep = 4, kParts = 9;
    template <class A>
    static void axis(const Vec<A>* m, int64_t step, Vec<A>* to, int64_t to_step) {
        evaluate_transposed<A>(m, step, to, to_step);
        for (int i = 0; i < 4; ++i) to[i * to_step] += m[(5 + i) * step];
    }
};

// Kernels of 3 at kMatrices points.
constexpr int kMatrices = 6, kAllMatrices = kMatrices * kMatrices;
struct PlainKernel {
    static constexpr bool kUp = false;
    template <class A>
    static void axis(const Vec<A>* w, int64_t step, Vec<A>* to, int64_t to_step) {
        const Vec<A> w0 = w[0], w1 = w[step], w2 = w[2 * step];
        const Vec<A> even_a = kOfA<A> * (w0 + kA2<A> * w2), odd_a = (kOfA<A> * kA<A>)*w1;
        const Vec<A> even_b = kOfB<A> * (w0 + kB2<A> * w2), odd_b = (kOfB<A> * kB<A>)*w1;
        to[0] = w0;
        to[to_step] = even_a + odd_a;
        to[2 * to_step] = even_a - odd_a;
        to[3 * to_step] = even_b + odd_b;
        to[4 * to_step] = even_b - odd_b;
        to[5 * to_step] = w2;
    }
    template <class A>
    static void transposed(const Vec<A>* u, int64_t step, Vec<A>* to, int64_t to_step) {
        const Vec<A> sum_a = kOfA<A> * (u[step] + u[2 * step]), sum_b = kOfB<A> * (u[3 * step] + u[4 * step]);
        const Vec<A> difference_a = (kOfA<A> * kA<A>)*(u[step] - u[2 * step]);
        const Vec<A> difference_b = (kOfB<A> * kB<A>)*(u[3 * step] - u[4 * step]);
        to[0] = u[0] + sum_a + sum_b;
        to[to_step] = difference_a + difference_b;
        to[2 * to_step] = kA2<A> * sum_a + kB2<A> * sum_b + u[5 * step];
    }
};
struct UpKernel {
    static constexpr bool kUp = true;
    template <class A>
    static void axis(const Vec<A>* w, int64_t step, Vec<A>* to, int64_t to_step) {
        const Vec<A> w0 = w[0], w1 = w[step], w2 = w[2 * step];
        to[0] = w0;
        to[to_step] = kOfA<A> * (w0 + kA<A> * w2);
        to[2 * to_step] = kOfA<A> * (w0 - kA<A> * w2);
        to[3 * to_step] = kOfB<A> * (w0 + kB<A> * w2);
        to[4 * to_step] = kOfB<A> * (w0 - kB<A> * w2);
        to[5 * to_step] = w1;
    }
    template <class A>
    static void transposed(const Vec<A>* u, int64_t step, Vec<A>* to, int64_t to_step) {
        const Vec<A> sum_a = kOfA<A> * (u[step] + u[2 * step]), sum_b = kOfB<A> * (u[3 * step] + u[4 * step]);
        const Vec<A> difference_a = (kOfA<A> * kA<A>)*(u[step] - u[2 * step]);
        const Vec<A> difference_b = (kOfB<A> * kB<A>)*(u[3 * step] - u[4 * step]);
        to[0] = u[0] + sum_a + sum_b;
        to[to_step] = u[5 * step];
        to[2 * to_step] = difference_a + difference_b;
    }
};

// The forms: who meets whom.
struct Plain {
    using Input = PlainInput;
    using Kernel = PlainKernel;
    using Output = PlainOutput;
    static constexpr bool kTurned = false;
};
struct PlainAdjoint : Plain {  // with respect to the input: a plain one too
    static constexpr bool kTurned = true;
};
struct Up {
    using Input = UpInput;
    using Kernel = UpKernel;
    using Output = UpOutput;
    static constexpr bool kTurned = false;
};
struct UpAdjoint {
    using Input = UpGrad;
    using Kernel = UpKernel;
    using Output = UpInputGrad;
    static constexpr bool kTurned = false;
};

// A distance between what is written side by side, one value to each of many places: an odd number of cache lines, or
// all would share a few places of the cache.
template <class A>
int64_t spread(int64_t values) {
    constexpr int64_t kLine = 64 / sizeof(A);
    const int64_t lines = (values + kLine - 1) / kLine;
    return (lines + 1 - lines % 2) * kLine;
}

// Along both axes, from kFrom x kFrom vectors to kTo x kTo.
template <int kFrom, int kTo, class V, class Axis>
inline void both(const V* from, V* to, const Axis& axis) {
    V between[kFrom * kTo];
#pragma GCC unroll 9
    for (int y = 0; y < kFrom; ++y) axis(from + y * kFrom, 1, between + y * kTo, 1);
#pragma GCC unroll 9
    for (int x = 0; x < kTo; ++x) axis(between + x, kTo, to + x, kTo);
}

// Every matrix of a weight, [block of outputs][input][kColumns], `matrix` values apart. `turned` turns the kernel
// around.
template <class Kernel, class A>
void matrices(const Weights<A>& w, bool turned, int64_t matrix, A* to) {
    constexpr int W = kWidth<A>;
    constexpr size_t kCache = 8 << 20;  // what is larger has left it before it is read
    const bool past_caches = kAllMatrices * matrix * sizeof(A) > kCache;
    at::parallel_for(0, w.blocks() * w.inputs, 16, [&](int64_t begin, int64_t end) {
        for (int64_t line = begin; line < end; ++line) {
            Vec<A> points[kVectors][kAllMatrices];
            for (int half = 0; half < kVectors; ++half) {
                const int64_t o = line / w.inputs * kColumns<A> + half * W, i = line % w.inputs;
                const int64_t count = std::clamp<int64_t>(w.outputs - o, 0, W);
                const A* from = w.data + o * w.output_step + i * w.input_step;
                A lanes[9][W] = {};
                for (int64_t lane = 0; lane < count; ++lane) {
                    const A* taps = from + lane * w.output_step;
                    for (int tap = 0; tap < 9; ++tap) lanes[turned ? 8 - tap : tap][lane] = taps[tap];
                }
                Vec<A> weights[9];
                for (int tap = 0; tap < 9; ++tap) weights[tap] = load(lanes[tap]);
                both<3, kMatrices>(weights, points[half], Kernel::template axis<A>);
            }
            A* here = to + line * kColumns<A>;
            for (int p = 0; p < kAllMatrices; ++p) {  // whole cache lines
                for (int half = 0; half < kVectors; ++half) {
                    A* at = here + p * matrix + half * W;
                    past_caches ? store_past_caches(at, points[half][p]) : store(at, points[half][p]);
                }
            }
        }
        if (past_caches) fence_past_caches();
    });
}

// The products of a convolution, those that share a matrix one behind the other: parts 5 and more along an axis are the
// odd ones of the up-sampling form.
template <int kParts>
struct Order {
    static constexpr int kAll = kParts * kParts;
    int part[kAll], matrix[kAll];
    int begin[kAllMatrices + 1];  // of each matrix's

    Order() {
        const auto last = [](int point) { return point < 5 ? point + 1 : kParts; };
        int count = 0;
        for (int m = 0; m < kAllMatrices; ++m) {
            begin[m] = count;
            for (int y = m / kMatrices; y < last(m / kMatrices); ++y) {
                for (int x = m % kMatrices; x < last(m % kMatrices); ++x) {
                    part[count] = y * kParts + x;
                    matrix[count++] = m;
                }
            }
        }
        begin[kAllMatrices] = count;
    }
    static const Order& get() {
        static const Order only;
        return only;
    }
    // Products that are worked on together: they share a matrix, and their inputs fit a second cache.
    int together(int first) const { return std::min(4, begin[matrix[first] + 1] - first); }
};

// The tiles of maps of `rows` x `columns`, in tiles of 4 x 4 (8 x 8 of what is up-sampled), line by line and image by
// image.
struct Tiles {
    int64_t batch, rows, columns;

    int64_t across() const { return (columns + 3) / 4; }
    int64_t down() const { return (rows + 3) / 4; }
    int64_t lines() const { return batch * down(); }
    // Values of a line's scratch memory.
    template <class A>
    int64_t scratch() const {
        return 9 * (across() * 8 + 2) * kWidth<A>;
    }
};

// One line of tiles of some channels, [part][tile][channel]: `step` values from tile to tile, `part` from part to part.
template <class Side, class A>
void take_apart(const Maps<const A>& maps, const Tiles& tiles, int64_t line, int64_t c, const A* factors, A* scratch,
                A* to, int64_t step, int64_t part) {
    constexpr int W = kWidth<A>, kTile = Side::kTile, kAll = Side::kParts * Side::kParts;
    const int64_t n = line / tiles.down(), top = line % tiles.down() * Side::kStep - Side::kBorder;
    const int64_t width = (tiles.across() - 1) * Side::kStep + kTile;
    for (int r = 0; r < kTile; ++r) {
        A* row = scratch + r * width * W;
        const bool inside = top + r >= 0 && top + r < maps.rows;
        // a last tile may begin beyond the columns that there are, and never ends before them
        if (inside) read_line(maps, n, top + r, c, factors, [&](int64_t x) { return row + (x + Side::kBorder) * W; });
        if (Side::kBorder) store(row, Vec<A>{});
        for (int64_t x = inside ? maps.columns + Side::kBorder : 0; x < width; ++x) store(row + x * W, Vec<A>{});
    }
    for (int64_t tile = 0; tile < tiles.across(); ++tile) {
        Vec<A> values[kTile * kTile], parts[kAll];
        for (int r = 0; r < kTile; ++r) {
            for (int x = 0; x < kTile; ++x) {
                values[r * kTile + x] = load(scratch + (r * width + tile * Side::kStep + x) * W);
            }
        }
        both<kTile, Side::kParts>(values, parts, Side::template axis<A>);
        for (int p = 0; p < kAll; ++p) store(to + p * part + tile * step, parts[p]);
    }
}

// The reverse for outputs; where tiles overlap, `above` are the parts of the line of tiles above it, if there is one.
template <class Side, class Stage, class A, class Behind>
void put_together(const A* from, const A* above, int64_t step, int64_t part, const Tiles& tiles, int64_t line,
                  int64_t c, A* scratch, const Maps<A>& maps, const Behind& behind) {
    constexpr int W = kWidth<A>, kTile = Side::kTile, kStep = Side::kStep, kParts = Side::kParts;
    const int64_t n = line / tiles.down(), top = line % tiles.down() * kStep;
    const int64_t width = (tiles.across() - 1) * kStep + kTile;
    Vec<A> carried[kTile] = {};
    for (int64_t tile = 0; tile < tiles.across(); ++tile) {
        Vec<A> parts[kParts * kParts], values[kTile * kTile];
        for (int p = 0; p < kParts * kParts; ++p) parts[p] = load(from + p * part + tile * step);
        both<kParts, kTile>(parts, values, Side::template axis<A>);
        if constexpr (kTile > kStep) {
            if (above) {  // its last line is the first of this
                Vec<A> column[kParts], row[kParts], last[kTile];
                for (int x = 0; x < kParts; ++x) {
                    Vec<A> all[kTile];
                    for (int y = 0; y < kParts; ++y) column[y] = load(above + (y * kParts + x) * part + tile * step);
                    Side::template axis<A>(column, 1, all, 1);
                    row[x] = all[kTile - 1];
                }
                Side::template axis<A>(row, 1, last, 1);
                for (int x = 0; x < kTile; ++x) values[x] += last[x];
            }
            for (int r = 0; r < kTile; ++r) {
                values[r * kTile] += carried[r];
                carried[r] = values[r * kTile + kTile - 1];
            }
        }
        for (int r = 0; r < kTile; ++r) {
            for (int x = 0; x < kTile; ++x) store(scratch + (r * width + tile * kStep + x) * W, values[r * kTile + x]);
        }
    }
    const bool last = line % tiles.down() == tiles.down() - 1;
    for (int64_t r = 0; r < (last ? kTile : kStep) && top + r < maps.rows; ++r) {
        Stage stage(behind, maps, n, top + r, c);
        write_line(maps, n, top + r, c, [&](int64_t x) { return scratch + (r * width + x) * W; }, stage);
    }
}

// How many lines of tiles are worked on together, and whether each thread has some of its own.
struct Share {
    int64_t lines, count;
    bool outer;

    // bytes: of all parts of a line of tiles; weights: of all matrices
    Share(const Tiles& tiles, int64_t bytes, int64_t weights, bool may_be_outer) {
        const int64_t threads = at::get_num_threads();
        constexpr int64_t kOwn = 1 << 20, kLight = 4 << 20;
        // the matrices are read once for each share; beyond what they take, a larger one only leaves the caches
        const int64_t shared = std::clamp<int64_t>(2 * weights, 2 << 20, 24 << 20);
        lines = std::clamp<int64_t>(kOwn / bytes, 1, tiles.lines());
        count = (tiles.lines() + lines - 1) / lines;
        outer = may_be_outer && weights <= kLight && count >= 4 * threads;
        if (outer) return;
        lines = std::clamp<int64_t>(shared / bytes, 1, tiles.lines());
        count = (tiles.lines() + lines - 1) / lines;
        lines = (tiles.lines() + count - 1) / count;
    }
};

// A convolution of whole maps; `small` are the sides of the smaller of input and output. What stands behind the sums is
// as Gemm has it.
template <class Form, class Stage, class A, class Behind>
void convolution(const Weights<A>& weights, const Tiles& tiles, const Maps<const A>& in, const A* factors,
                 const Maps<A>& out, const Behind& behind) {
    using Input = typename Form::Input;
    using Output = typename Form::Output;
    constexpr int64_t C = kColumns<A>;
    constexpr int kParts = Input::kParts, kAll = kParts * kParts;
    constexpr bool kOverlap = Output::kTile > Output::kStep;
    const int64_t in_step = PixelRow<A>::step_for(in.channels), out_step = weights.blocks() * C + 16;
    const int64_t across = tiles.across(), matrix = spread<A>(weights.blocks() * weights.inputs * C);
    const Share share(tiles, kAll * across * (in_step + out_step) * sizeof(A), kAllMatrices * matrix * sizeof(A),
                      !kOverlap);
    const int64_t threads = at::get_num_threads(), owners = share.outer ? threads : 1, count = share.lines * across;
    // the line above a share's first, for what overlaps
    const int64_t in_part = spread<A>(count * in_step), out_part = spread<A>((count + kOverlap * across) * out_step);
    using Space = Workspace;
    Space space(Space::bytes<A>(kAllMatrices * matrix) + owners * Space::bytes<A>(kAll * in_part) +
                owners * Space::bytes<A>(kAll * out_part) + threads * Space::bytes<A>(tiles.scratch<A>()));
    A* weight = space.take<A>(kAllMatrices * matrix);
    std::vector<A*> parts(owners), sums(owners), scratch(threads);
    for (auto& one : parts) one = space.take<A>(kAll * in_part);
    for (auto& one : sums) one = space.take<A>(kAll * out_part);
    for (auto& one : scratch) one = space.take<A>(tiles.scratch<A>());
    matrices<typename Form::Kernel>(weights, Form::kTurned, matrix, weight);
    // owner: the thread, where it works alone; inside, ATen counts it as the first
    const auto work = [&](int64_t number, int owner, A* v, A* m_all) {
        const auto own_scratch = [&] { return scratch[share.outer ? owner : at::get_thread_num()]; };
        const int64_t first = number * share.lines, lines = std::min(share.lines, tiles.lines() - first);
        A* m = m_all + kOverlap * across * out_step;
        if (kOverlap && number > 0) {
            at::parallel_for(0, kAll, 1, [&](int64_t begin, int64_t end) {
                for (int64_t p = begin; p < end; ++p) {
                    A* to = m_all + p * out_part;
                    std::copy_n(to + count * out_step, across * out_step, to);
                }
            });
        }
        at::parallel_for(0, lines * in.groups(), 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t line = task / in.groups(), c = task % in.groups() * kWidth<A>;
                take_apart<Input>(in, tiles, first + line, c, factors, own_scratch(), v + line * across * in_step + c,
                                  in_step, in_part);
            }
        });
        at::parallel_for(0, kAll * weights.blocks(), 1, [&](int64_t begin, int64_t end) {
            const auto& order = Order<kParts>::get();
            int64_t task = 0;
            for (int first = 0; first < kAll; first += order.together(first)) {
                for (int64_t b = 0; b < weights.blocks(); ++b) {
                    for (int i = first; i < first + order.together(first); ++i, ++task) {
                        if (task < begin || task >= end) continue;
                        const A* columns = weight + order.matrix[i] * matrix + b * weights.inputs * C;
                        const Factor<A> factor{v + order.part[i] * in_part, columns};
                        products<false, false>(lines * across, &factor, 1, weights.inputs, in_step, C,
                                               m + order.part[i] * out_part + b * C, out_step);
                    }
                }
            }
        });
        at::parallel_for(0, lines * out.groups(), 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t line = task / out.groups(), c = task % out.groups() * kWidth<A>;
                const A* from = m + line * across * out_step + c;
                const A* above = (first + line) % tiles.down() > 0 ? from - across * out_step : nullptr;
                put_together<Output, Stage>(from, above, out_step, out_part, tiles, first + line, c, own_scratch(), out,
                                            behind);
            }
        });
    };
    if (share.outer) {
        at::parallel_for(0, share.count, 1, [&](int64_t begin, int64_t end) {
            const int id = at::get_thread_num();
            for (int64_t number = begin; number < end; ++number) work(number, id, parts[id], sums[id]);
        });
    } else {
        for (int64_t number = 0; number < share.count; ++number) work(number, 0, parts[0], sums[0]);
    }
}

// The gradient of a weight [outputs, inputs, 3, 3] from the maps on both sides of it.
template <class Input, class Grad, class Kernel, class A>
void weight_gradient(const Maps<const A>& x, const A* factors, const Maps<const A>& grad, A* out) {
    constexpr int64_t C = kColumns<A>, W = kWidth<A>;
    constexpr int kParts = Input::kParts, kAll = kParts * kParts;
    const Tiles tiles{x.batch, x.rows, x.columns};
    const int64_t blocks = (grad.channels + C - 1) / C, across = tiles.across();
    const int64_t x_step = PixelRow<A>::step_for(x.channels), grad_step = blocks * C + 16;
    const int64_t matrix = spread<A>(blocks * x.channels * C);
    const Share share(tiles, kAll * across * (x_step + grad_step) * sizeof(A), kAllMatrices * matrix * sizeof(A),
                      false);
    const int64_t x_part = spread<A>(share.lines * across * x_step);
    const int64_t grad_part = spread<A>(share.lines * across * grad_step);
    const int64_t threads = at::get_num_threads();
    using Space = Workspace;
    Space space(Space::bytes<A>(kAll * x_part) + Space::bytes<A>(kAll * grad_part) +
                Space::bytes<A>(kAllMatrices * matrix) + threads * Space::bytes<A>(tiles.scratch<A>()));
    A* v = space.take<A>(kAll * x_part);
    A* d = space.take<A>(kAll * grad_part);
    A* sums = space.take<A>(kAllMatrices * matrix);
    std::vector<A*> scratch(threads);
    for (auto& one : scratch) one = space.take<A>(tiles.scratch<A>());
    for (int64_t first = 0; first < tiles.lines(); first += share.lines) {
        const int64_t lines = std::min(share.lines, tiles.lines() - first);
        const int64_t groups = x.groups() + blocks * kVectors;  // whole blocks, 0 where there are no channels
        at::parallel_for(0, lines * groups, 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t line = task / groups, group = task % groups, c = (group - x.groups()) * W;
                A* memory = scratch[at::get_thread_num()];
                A* to = d + line * across * grad_step + c;
                if (group < x.groups()) {
                    take_apart<Input>(x, tiles, first + line, group * W, factors, memory,
                                      v + line * across * x_step + group * W, x_step, x_part);
                } else if (c < grad.channels) {
                    take_apart<Grad>(grad, tiles, first + line, c, static_cast<const A*>(nullptr), memory, to,
                                     grad_step, grad_part);
                } else {
                    for (int64_t p = 0; p < kAll; ++p) {
                        for (int64_t t = 0; t < across; ++t) store(to + p * grad_part + t * grad_step, Vec<A>{});
                    }
                }
            }
        });
        // a matrix of a block of outputs is one thread's, where its first product falls to it
        at::parallel_for(0, kAll * blocks, 1, [&](int64_t begin, int64_t end) {
            const auto& order = Order<kParts>::get();
            for (int point = 0; point < kAllMatrices; ++point) {
                const int from = order.begin[point], products_of = order.begin[point + 1] - from;
                for (int64_t b = 0; b < blocks; ++b) {
                    const int64_t task = from * blocks + b * products_of;
                    if (task < begin || task >= end) continue;
                    Factor<A> factors_of[16];
                    for (int i = 0; i < products_of; ++i) {
                        const int64_t p = order.part[from + i];
                        factors_of[i] = {v + p * x_part, d + p * grad_part + b * C};
                    }
                    A* to = sums + point * matrix + b * x.channels * C;
                    if (first == 0) {
                        products<true, false>(x.channels, factors_of, products_of, lines * across, x_step, grad_step,
                                              to, C);
                    } else {
                        products<true, true>(x.channels, factors_of, products_of, lines * across, x_step, grad_step, to,
                                             C);
                    }
                }
            }
        });
    }
    at::parallel_for(0, blocks * x.channels, 16, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t b = task / x.channels, i = task % x.channels;
            for (int half = 0; half < kVectors; ++half) {
                const int64_t o = b * C + half * W, lanes = std::clamp<int64_t>(grad.channels - o, 0, W);
                Vec<A> points[kAllMatrices], taps[9];
                for (int p = 0; p < kAllMatrices; ++p) points[p] = load(sums + p * matrix + task * C + half * W);
                both<kMatrices, 3>(points, taps, Kernel::template transposed<A>);
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
