// The matrix product under the kernels of modulated_conv2d and gram: a block of the result stays in registers while
// both operands stream by.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/vec.h"

namespace anifast {
namespace {

// A block of the result: columns, in vectors, and the most rows that there are registers for beside them.
constexpr int kVectors = 2;
template <class A>
inline constexpr int kColumns = kVectors * kWidth<A>;
#if defined(ANIFAST_AVX512)
template <class A>
inline constexpr int kMostRows = 14;
#else
template <class A>
inline constexpr int kMostRows = sizeof(A) == 4 ? 6 : 2;
#endif

// One of the products that are summed.
template <class A>
struct Factor {
    const A* rows;     // value k of row r at [r * step + k], or at [k * step + r] of a transposed one
    const A* columns;  // kColumns values of depth k from [k * kColumns], or [k * column_step]
};

// c[r][..] (+)= sum over factors and depths k of rows[r][k] * columns[k][..]. Rows of c are `line` apart. kWide vectors
// of columns are multiplied.
template <int kRows, bool kTransposed, bool kAdd, int kWide = kVectors, class A>
void product(const Factor<A>* factors, int count, int64_t depth, int64_t row_step, int64_t column_step, A* c,
             int64_t line) {
    constexpr int W = kWidth<A>;
    Vec<A> sum[kRows][kWide];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kWide; ++v) sum[r][v] = Vec<A>{};
    }
    for (int f = 0; f < count; ++f) {
        const A* b = factors[f].columns;
        // Four bases and the steps between them reach every row by an address that the processor adds up itself: a
        // pointer for each row would be more than there are registers.
        const A* base[4];
        const int64_t thrice = 3 * row_step;
        for (int i = 0; i < 4; ++i) base[i] = factors[f].rows + (kTransposed ? 4 * i : 4 * i * row_step);
        for (int64_t k = 0; k < depth; ++k, b += column_step) {
            Vec<A> column[kWide];
#pragma GCC unroll 2
            for (int v = 0; v < kWide; ++v) column[v] = load(b + v * W);
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
                const int part = r % 4;
                const int64_t step = kTransposed ? part : part == 3 ? thrice : part * row_step;
                const Vec<A> row = broadcast(base[r / 4][step]);
#pragma GCC unroll 2
                for (int v = 0; v < kWide; ++v) sum[r][v] += row * column[v];
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) base[i] += kTransposed ? row_step : 1;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kWide; ++v) {
            A* at = c + r * line + v * W;  // added at the end: sums of parts round less than one long sum
            store(at, kAdd ? load(at) + sum[r][v] : sum[r][v]);
        }
    }
}

template <bool kTransposed, bool kAdd, class A, int kRows = kMostRows<A>>
void product_of(int rows, const Factor<A>* factors, int count, int64_t depth, int64_t row_step, int64_t column_step,
                A* c, int64_t line) {
    if constexpr (kRows == 1) {
        product<1, kTransposed, kAdd>(factors, count, depth, row_step, column_step, c, line);
    } else if (rows == kRows) {
        product<kRows, kTransposed, kAdd>(factors, count, depth, row_step, column_step, c, line);
    } else {
        product_of<kTransposed, kAdd, A, kRows - 1>(rows, factors, count, depth, row_step, column_step, c, line);
    }
}

// `product` for any number of rows, in blocks of nearly equal height.
template <bool kTransposed, bool kAdd, class A>
void products(int64_t rows, const Factor<A>* factors, int count, int64_t depth, int64_t row_step, int64_t column_step,
              A* c, int64_t line) {
    constexpr int kMostFactors = 16;
    const int64_t blocks = (rows + kMostRows<A> - 1) / kMostRows<A>;
    Factor<A> moved[kMostFactors];
    int64_t row = 0;
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t height = (rows - row) / (blocks - block);
        for (int f = 0; f < count; ++f) {
            moved[f] = {factors[f].rows + (kTransposed ? row : row * row_step), factors[f].columns};
        }
        product_of<kTransposed, kAdd>(static_cast<int>(height), moved, count, depth, row_step, column_step,
                                      c + row * line, line);
        row += height;
    }
}

}  // namespace
}  // namespace anifast
