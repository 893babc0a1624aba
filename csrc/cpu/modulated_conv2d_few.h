// 1 x 1 convolutions to a few channels, as an image has: each value of x is read once and meets them all in registers,
// so that memory is the bound and not products.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../common/vec.h"
#include "modulated_conv2d_maps.h"

namespace anifast {
namespace {

namespace few {

constexpr int64_t kMost = 4;
// Pixels of a task: the sums of one lie in the first cache.
constexpr int64_t kPixels = 1024;

// run(number) with the number of channels as a constant.
template <int kCount = kMost, class Run>
void with_count(int64_t count, const Run& run) {
    if constexpr (kCount > 0) {
        if (count == kCount) return run(std::integral_constant<int, kCount>());
        with_count<kCount - 1>(count, run);
    }
}

// Calls task(n, block, first pixel, pixels) for all blocks of pixels.
template <class Task>
void for_blocks(int64_t batch, int64_t pixels, const Task& task) {
    const int64_t blocks = (pixels + kPixels - 1) / kPixels;
    at::parallel_for(0, batch * blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
            const int64_t first = at % blocks * kPixels;
            task(at / blocks, at % blocks, first, std::min(kPixels, pixels - first));
        }
    });
}

// The weight times the style of each sample, [N][O][I].
template <class A>
std::vector<A> styled(const A* weight, const A* style, int64_t batch, int64_t outputs, int64_t inputs) {
    std::vector<A> made(batch * outputs * inputs);
    for (int64_t n = 0; n < batch; ++n) {
        for (int64_t o = 0; o < outputs; ++o) {
            for (int64_t i = 0; i < inputs; ++i) {
                made[(n * outputs + o) * inputs + i] = weight[o * inputs + i] * (style ? style[n * inputs + i] : A(1));
            }
        }
    }
    return made;
}

// out[n, o] = sum of weight[o, i] * style[n, i] * x[n, i], plus bias[o].
template <class A>
void forward(const Maps<const A>& x, const A* weight, const A* style, const A* bias, const Maps<A>& out) {
    constexpr int64_t W = kWidth<A>;
    const int64_t pixels = x.rows * x.columns, inputs = x.channels, outputs = out.channels;
    const std::vector<A> weights = styled(weight, style, x.batch, outputs, inputs);
    with_count(outputs, [&](auto number) {
        constexpr int O = decltype(number)::value;
        for_blocks(x.batch, pixels, [&](int64_t n, int64_t, int64_t first, int64_t count) {
            const A* w = weights.data() + n * O * inputs;
            if (x.last) {
                const A* from = x.data + (n * pixels + first) * inputs;
                A* to = out.data + (n * pixels + first) * O;
                for (int64_t pixel = 0; pixel < count; ++pixel, from += inputs, to += O) {
                    Vec<A> sum[O] = {};
                    for_vectors<W>(0, inputs, [&](int64_t i, int64_t lanes, auto full) {
                        const Vec<A> value = load_n<full>(from + i, lanes);
                        for (int o = 0; o < O; ++o) sum[o] += value * load_n<full>(w + o * inputs + i, lanes);
                    });
                    for (int o = 0; o < O; ++o) to[o] = sum_lanes<A>(sum[o]) + (bias ? bias[o] : A(0));
                }
                return;
            }
            A sums[O][kPixels];
            for (int o = 0; o < O; ++o) std::fill_n(sums[o], count, bias ? bias[o] : A(0));
            for (int64_t i = 0; i < inputs; ++i) {
                const A* from = x.data + (n * inputs + i) * pixels + first;
                for_vectors<W>(0, count, [&](int64_t pixel, int64_t lanes, auto full) {
                    const Vec<A> value = load_n<full>(from + pixel, lanes);
                    for (int o = 0; o < O; ++o) {
                        A* sum = sums[o] + pixel;
                        store_n<full>(sum, load_n<full>(sum, lanes) + value * broadcast(w[o * inputs + i]), lanes);
                    }
                });
            }
            for (int o = 0; o < O; ++o) std::copy_n(sums[o], count, out.data + (n * O + o) * pixels + first);
        });
    });
}

// out[n, i] = style[n, i] * v with v = sum of weight[o, i] * grad[n, o]; with x, sums[n, i] = sum over pixels of x * v.
template <class A>
void input_grad(const Maps<const A>& grad, const A* weight, const A* style, const A* x, const Maps<A>& out, A* sums) {
    constexpr int64_t W = kWidth<A>;
    const int64_t pixels = out.rows * out.columns, inputs = out.channels, outputs = grad.channels;
    const int64_t blocks = (pixels + kPixels - 1) / kPixels;
    std::vector<A> partial(x ? out.batch * blocks * inputs : 0);
    with_count(outputs, [&](auto number) {
        constexpr int O = decltype(number)::value;
        for_blocks(out.batch, pixels, [&](int64_t n, int64_t block, int64_t first, int64_t count) {
            A* part = partial.data() + (n * blocks + block) * inputs;
            if (out.last) {
                const int64_t start = n * pixels + first;
                for_vectors<W>(0, inputs, [&](int64_t i, int64_t lanes, auto full) {
                    const Vec<A> factor = style ? load_n<full>(style + n * inputs + i, lanes) : broadcast(A(1));
                    Vec<A> w[O], sum{};
                    for (int o = 0; o < O; ++o) w[o] = load_n<full>(weight + o * inputs + i, lanes);
                    for (int64_t pixel = start; pixel < start + count; ++pixel) {
                        Vec<A> value{};
                        for (int o = 0; o < O; ++o) value += w[o] * broadcast(grad.data[pixel * O + o]);
                        if (x) sum += value * load_n<full>(x + pixel * inputs + i, lanes);
                        store_n<full>(out.data + pixel * inputs + i, value * factor, lanes);
                    }
                    if (x) store_n<full>(part + i, sum, lanes);
                });
                return;
            }
            for (int64_t i = 0; i < inputs; ++i) {
                const int64_t at = (n * inputs + i) * pixels + first;
                const A factor = style ? style[n * inputs + i] : A(1);
                Vec<A> sum{};
                for_vectors<W>(0, count, [&](int64_t pixel, int64_t lanes, auto full) {
                    Vec<A> value{};
                    for (int o = 0; o < O; ++o) {
                        const A* from = grad.data + (n * O + o) * pixels + first + pixel;
                        value += load_n<full>(from, lanes) * broadcast(weight[o * inputs + i]);
                    }
                    if (x) sum += value * load_n<full>(x + at + pixel, lanes);
                    store_n<full>(out.data + at + pixel, value * broadcast(factor), lanes);
                });
                if (x) part[i] = sum_lanes<A>(sum);
            }
        });
    });
    if (!x) return;
    for (int64_t n = 0; n < out.batch; ++n) {
        for (int64_t i = 0; i < inputs; ++i) {
            A sum = 0;
            for (int64_t block = 0; block < blocks; ++block) sum += partial[(n * blocks + block) * inputs + i];
            sums[n * inputs + i] = sum;
        }
    }
}

// out[o, i] = sum over samples and pixels of grad[n, o] * style[n, i] * x[n, i].
template <class A>
void weight_gradient(const Maps<const A>& x, const A* style, const Maps<const A>& grad, A* out) {
    constexpr int64_t W = kWidth<A>;
    const int64_t pixels = x.rows * x.columns, inputs = x.channels, outputs = grad.channels;
    const int64_t blocks = (pixels + kPixels - 1) / kPixels;
    std::vector<A> partial(x.batch * blocks * outputs * inputs);
    with_count(outputs, [&](auto number) {
        constexpr int O = decltype(number)::value;
        for_blocks(x.batch, pixels, [&](int64_t n, int64_t block, int64_t first, int64_t count) {
            A* part = partial.data() + (n * blocks + block) * O * inputs;
            if (x.last) {
                const int64_t start = n * pixels + first;
                for_vectors<W>(0, inputs, [&](int64_t i, int64_t lanes, auto full) {
                    Vec<A> sum[O] = {};
                    for (int64_t pixel = start; pixel < start + count; ++pixel) {
                        const Vec<A> value = load_n<full>(x.data + pixel * inputs + i, lanes);
                        for (int o = 0; o < O; ++o) sum[o] += value * broadcast(grad.data[pixel * O + o]);
                    }
                    for (int o = 0; o < O; ++o) store_n<full>(part + o * inputs + i, sum[o], lanes);
                });
                return;
            }
            for (int64_t i = 0; i < inputs; ++i) {
                const A* from = x.data + (n * inputs + i) * pixels + first;
                Vec<A> sum[O] = {};
                for_vectors<W>(0, count, [&](int64_t pixel, int64_t lanes, auto full) {
                    const Vec<A> value = load_n<full>(from + pixel, lanes);
                    for (int o = 0; o < O; ++o) {
                        sum[o] += value * load_n<full>(grad.data + (n * O + o) * pixels + first + pixel, lanes);
                    }
                });
                for (int o = 0; o < O; ++o) part[o * inputs + i] = sum_lanes<A>(sum[o]);
            }
        });
    });
    for (int64_t o = 0; o < outputs; ++o) {
        for (int64_t i = 0; i < inputs; ++i) {
            A all = 0;
            for (int64_t n = 0; n < x.batch; ++n) {
                A sum = 0;
                for (int64_t block = 0; block < blocks; ++block) {
                    sum += partial[((n * blocks + block) * outputs + o) * inputs + i];
                }
                all += sum * (style ? style[n * inputs + i] : A(1));
            }
            out[o * inputs + i] = all;
        }
    }
}

}  // namespace few

}  // namespace
}  // namespace anifast
