// gram on the CPU: see anifast/ops/gram.py for the formulas and the two ops.
//
// A chunk of pixels is packed into panels of neighbouring channels, pixel by pixel, and every pair of panels on or
// above the diagonal adds its products to a tile of sums. Where the pixels of a map are split among tasks each has
// tiles of its own, which are added in order. Sizes alone decide on splits, so that results are the same whatever the
// number of threads. Tiles go straight into the row of the image, scaled, mirrored or folded.
//
// The gradient is a matrix product without symmetry, which BLAS does best.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <tuple>
#include <vector>

#include "../common/layout.h"
#include "../common/vec.h"
#include "dispatch.h"
#include "memory.h"
#include "product.h"

namespace anifast {
namespace {

using at::Tensor;

// Tasks that all maps of a call are cut into, about, and the fewest pixels of one: tiles are read and added up once
// more for each.
constexpr int64_t kTasks = 32;
constexpr int64_t kFewestPixels = 128;
// Values of a packed chunk's panel: two panels and a tile stay in the first cache.
constexpr int64_t kPanel = 3072;

template <class A>
inline constexpr int64_t kChunk = kPanel / kColumns<A>;

// One map of all images, and where its matrix stands in their rows.
struct Map {
    const void* data;
    int64_t channels, pixels;
    bool channels_last;
    double scale;
    int64_t offset;
    int64_t splits;
    int64_t first_slot;  // of its partial sums, in values; only where it is split

    int64_t split_begin(int64_t split) const { return pixels * split / splits; }
};

template <class A>
inline int64_t panels(int64_t channels) {
    return (channels + kColumns<A> - 1) / kColumns<A>;
}
// Values of all tiles on and above the diagonal.
template <class A>
inline int64_t tile_values(int64_t channels) {
    const int64_t n = panels<A>(channels);
    return n * (n + 1) / 2 * kColumns<A> * kColumns<A>;
}
// Calls visit(row panel, column panel, tile) for each of them.
template <class A, class Visit>
inline void for_tiles(A* tiles, int64_t channels, const Visit& visit) {
    for (int64_t column = 0; column < panels<A>(channels); ++column) {
        for (int64_t row = 0; row <= column; ++row, tiles += kColumns<A> * kColumns<A>) visit(row, column, tiles);
    }
}

// Rows and lanes change places: each round shuffles the first half of all values into the second.
template <class A>
inline void transpose(Vec<A> (&rows)[kWidth<A>]) {
    constexpr int W = kWidth<A>;
    if constexpr (std::is_same_v<A, float>) {
        for (int round = 1; round < W; round *= 2) {
            Vec<A> next[W];
#pragma GCC unroll 8
            for (int i = 0; i < W / 2; ++i) zip(rows[i], rows[i + W / 2], next[2 * i], next[2 * i + 1]);
            std::copy(next, next + W, rows);
        }
    } else {
        for (int i = 0; i < W; ++i) {
            for (int j = 0; j < i; ++j) {
                const A kept = rows[i][j];
                rows[i][j] = rows[j][i];
                rows[j][i] = kept;
            }
        }
    }
}

// Pixels [begin, begin + count) of an image into panels [panel][pixel][kColumns], 0 beyond the channels.
template <class T, class A>
void pack(const T* x, const Map& map, int64_t begin, int64_t count, A* packed) {
    constexpr int W = kWidth<A>;
    constexpr int64_t kPanelWidth = kColumns<A>;
    for (int64_t c = 0; c < panels<A>(map.channels) * kPanelWidth; c += W) {
        A* to = packed + c / kPanelWidth * kChunk<A> * kPanelWidth + c % kPanelWidth;
        const int64_t here = std::clamp<int64_t>(map.channels - c, 0, W);
        if (map.channels_last) {
            const T* from = x + begin * map.channels + c;
            for (int64_t k = 0; k < count; ++k) {
                const T* at = from + k * map.channels;
                store(to + k * kPanelWidth, here == W ? load(at) : load_first(at, here));
            }
        } else {
            for (int64_t k = 0; k < count; k += W) {
                const int64_t there = std::min<int64_t>(W, count - k);
                const T* from = x + c * map.pixels + begin + k;
                Vec<A> rows[W] = {};
                if (here == W && there == W) {
                    for (int i = 0; i < W; ++i) rows[i] = load(from + i * map.pixels);
                } else {
                    for (int i = 0; i < here; ++i) rows[i] = load_first(from + i * map.pixels, there);
                }
                transpose<A>(rows);
                for (int i = 0; i < there; ++i) store(to + (k + i) * kPanelWidth, rows[i]);
            }
        }
    }
}

// Adds a chunk's products of two panels to their tile. Of a tile on the diagonal what lies in the lower left quarter is
// left out.
template <bool kAdd, class A>
inline void add_products(const Factor<A>& pair, bool diagonal, int64_t pixels, A* tile) {
    constexpr int W = kWidth<A>;
    constexpr int64_t kSide = kColumns<A>;
    static_assert(kVectors == 2);
    products<true, kAdd>(diagonal ? W : kSide, &pair, 1, pixels, kSide, kSide, tile, kSide);
    if (!diagonal) return;
    const Factor<A> last{pair.rows + W, pair.columns + W};
    product<W, true, kAdd, 1>(&last, 1, pixels, kSide, kSide, tile + W * kSide + W, kSide);
}

// The sums of products over pixels [begin, end) of an image.
template <class T, class A>
void multiply(const T* x, const Map& map, int64_t begin, int64_t end, A* packed, A* tiles) {
    constexpr int64_t kSide = kColumns<A>;
    for (int64_t k = begin; k < end; k += kChunk<A>) {
        const int64_t count = std::min(kChunk<A>, end - k);
        pack(x, map, k, count, packed);
        for_tiles(tiles, map.channels, [&](int64_t row, int64_t column, A* tile) {
            const Factor<A> pair{packed + row * kChunk<A> * kSide, packed + column * kChunk<A> * kSide};
            if (k == begin) {
                add_products<false>(pair, row == column, count, tile);
            } else {
                add_products<true>(pair, row == column, count, tile);
            }
        });
    }
}

// A tile, scaled, into the row of its image.
template <class A>
void write(const A* tile, int64_t row, int64_t column, const Map& map, bool folded, A* out) {
    constexpr int64_t kSide = kColumns<A>;
    constexpr int W = kWidth<A>;
    const int64_t channels = map.channels, first = column * kSide;
    const int64_t rows = std::min(kSide, channels - row * kSide), columns = std::min(kSide, channels - first);
    const A scale = static_cast<A>(map.scale);
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = row * kSide + r;
        // left of the diagonal: nothing, or the lower left quarter that mirroring fills
        const int64_t skipped = row < column ? 0 : folded ? r : r / W * W;
        A* to = out + (folded ? i * channels - i * (i + 1) / 2 : i * channels) + first;
        for (int64_t j = skipped; j < columns; ++j) to[j] = scale * tile[r * kSide + j];
    }
    if (folded) return;
    for (int64_t i = 0; i < rows; i += W) {
        for (int64_t j = row == column ? i + W : 0; j < columns; j += W) {
            Vec<A> block[W];
            for (int l = 0; l < W; ++l) block[l] = scale * load(tile + (i + l) * kSide + j);
            transpose<A>(block);
            const int64_t n = std::min<int64_t>(W, rows - i);
            for (int l = 0; l < std::min<int64_t>(W, columns - j); ++l) {
                store_first(out + (first + j + l) * channels + row * kSide + i, block[l], n);
            }
        }
    }
}

template <class T>
void forward(const std::vector<Map>& maps, int64_t images, bool folded, Accumulate<T>* out, int64_t width) {
    using A = Accumulate<T>;
    struct Task {
        int64_t map, image, split;
    };
    std::vector<Task> tasks, split_maps;
    int64_t most = 0, slots = 0;
    for (size_t m = 0; m < maps.size(); ++m) {
        most = std::max(most, maps[m].channels);
        if (maps[m].splits > 1) slots = maps[m].first_slot + images * maps[m].splits * tile_values<A>(maps[m].channels);
        for (int64_t image = 0; image < images; ++image) {
            for (int64_t split = 0; split < maps[m].splits; ++split) tasks.push_back({int64_t(m), image, split});
            if (maps[m].splits > 1) split_maps.push_back({int64_t(m), image, 0});
        }
    }
    // the longest first, so that the others fill the end
    const auto cost = [&](const Task& task) {
        const Map& map = maps[task.map];
        return map.channels * map.channels * (map.pixels / map.splits);
    };
    std::stable_sort(tasks.begin(), tasks.end(), [&](const Task& a, const Task& b) { return cost(a) > cost(b); });
    const auto numbers = at::TensorOptions().dtype(std::is_same_v<A, double> ? at::kDouble : at::kFloat);
    const Tensor partial = at::empty({slots}, numbers);
    A* const sums = partial.mutable_data_ptr<A>();
    const auto slot = [&](const Map& map, int64_t image, int64_t split) {
        return sums + map.first_slot + (image * map.splits + split) * tile_values<A>(map.channels);
    };
    std::atomic<size_t> next{0};
    at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), tasks.size()), 1, [&](int64_t, int64_t) {
        const int64_t chunk = panels<A>(most) * kColumns<A> * kChunk<A>;
        const Tensor scratch = at::empty({chunk + tile_values<A>(most)}, numbers);
        A* const packed = scratch.mutable_data_ptr<A>();
        for (size_t i; (i = next++) < tasks.size();) {
            const auto& [m, image, split] = tasks[i];
            const Map& map = maps[m];
            A* const tiles = map.splits > 1 ? slot(map, image, split) : packed + chunk;
            multiply(static_cast<const T*>(map.data) + image * map.channels * map.pixels, map, map.split_begin(split),
                     map.split_begin(split + 1), packed, tiles);
            if (map.splits > 1) continue;
            for_tiles(tiles, map.channels, [&](int64_t row, int64_t column, const A* tile) {
                write(tile, row, column, map, folded, out + image * width + map.offset);
            });
        }
    });
    // the rest of those whose pixels were split
    std::vector<std::tuple<Task, int64_t, int64_t, int64_t>> rest;
    for (const Task& task : split_maps) {
        for_tiles(sums, maps[task.map].channels, [&](int64_t row, int64_t column, const A* tile) {
            rest.emplace_back(task, row, column, tile - sums);
        });
    }
    at::parallel_for(0, rest.size(), 4, [&](int64_t begin, int64_t end) {
        constexpr int64_t kSide = kColumns<A>;
        for (int64_t i = begin; i < end; ++i) {
            const auto& [task, row, column, at] = rest[i];
            const Map& map = maps[task.map];
            A* const tile = slot(map, task.image, 0) + at;
            for (int64_t split = 1; split < map.splits; ++split) {
                const A* more = slot(map, task.image, split) + at;
                for (int64_t j = 0; j < kSide * kSide; ++j) tile[j] += more[j];
            }
            write(tile, row, column, map, folded, out + task.image * width + map.offset);
        }
    });
}

int64_t entries(int64_t channels, bool folded) { return folded ? channels * (channels + 1) / 2 : channels * channels; }

// The maps, checked and dense.
std::vector<Tensor> dense_maps(at::TensorList features, at::IntArrayRef divisors) {
    TORCH_CHECK(!features.empty() && features.size() == divisors.size(), "gram: ", features.size(), " maps and ",
                divisors.size(), " divisors");
    std::vector<Tensor> dense;
    for (const Tensor& x : features) {
        const Tensor& first = features[0];
        TORCH_CHECK(x.dim() == 4 && x.size(0) == first.size(0) && x.size(1) * x.size(2) * x.size(3) > 0 &&
                        x.scalar_type() == first.scalar_type() && x.is_cpu(),
                    "gram: a map is ", x.scalar_type(), " of shape ", x.sizes(), " on ", x.device(),
                    ", expected N,C,H,W without a 0 behind N, of ", first.scalar_type(), " and N of ", first.size(0),
                    " on cpu");
        dense.push_back(x.contiguous(memory_format(4, is_channels_last(x))));
    }
    return dense;
}

Tensor gram_cpu(at::TensorList features, at::IntArrayRef divisors, bool folded) {
    const std::vector<Tensor> dense = dense_maps(features, divisors);
    const int64_t images = dense[0].size(0);
    int64_t width = 0;
    double work = 0;
    for (const Tensor& x : dense) {
        width += entries(x.size(1), folded);
        work += static_cast<double>(x.size(1)) * x.size(1) * x.size(2) * x.size(3);
    }
    const auto wide = dense[0].scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    Tensor out = at::empty({images, width}, dense[0].options().dtype(wide));
    if (out.numel() == 0) return out;
    ANIFAST_DISPATCH(dense[0].scalar_type(), "gram", [&] {
        using A = Accumulate<scalar_t>;
        std::vector<Map> maps;
        int64_t offset = 0, slots = 0;
        for (size_t i = 0; i < dense.size(); ++i) {
            const int64_t channels = dense[i].size(1), pixels = dense[i].size(2) * dense[i].size(3);
            const double share = static_cast<double>(channels) * channels * pixels / work;
            const int64_t wanted = static_cast<int64_t>(share * kTasks / static_cast<double>(images));
            const int64_t splits = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, pixels / kFewestPixels));
            maps.push_back({dense[i].const_data_ptr(), channels, pixels, is_channels_last(dense[i]),
                            1.0 / static_cast<double>(divisors[i]), offset, splits, slots});
            offset += entries(channels, folded);
            if (splits > 1) slots += images * splits * tile_values<A>(channels);
        }
        forward<scalar_t>(maps, images, folded, out.mutable_data_ptr<A>(), width);
    });
    return out;
}

// scale (g + g^T) of each image's part of the row.
template <class A>
void symmetric(const A* grad, int64_t width, int64_t images, int64_t channels, bool folded, double scale, A* out) {
    at::parallel_for(0, images * channels, std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t i = row % channels;
            const A* g = grad + row / channels * width;
            A* to = out + row * channels;
            const auto start = [&](int64_t r) { return folded ? r * channels - r * (r + 1) / 2 : r * channels; };
            for (int64_t j = 0; j < channels; ++j) {
                const A over = folded && j < i ? A(0) : g[start(i) + j],
                        under = folded && j > i ? A(0) : g[start(j) + i];
                to[j] = static_cast<A>(scale) * (over + under);
            }
        }
    });
}

std::vector<Tensor> gram_backward_cpu(const Tensor& grad_any, at::TensorList features, at::IntArrayRef divisors,
                                      bool folded, const c10::List<bool>& wanted) {
    const std::vector<Tensor> dense = dense_maps(features, divisors);
    const int64_t images = dense[0].size(0);
    int64_t width = 0;
    for (const Tensor& x : dense) width += entries(x.size(1), folded);
    const auto wide = dense[0].scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    TORCH_CHECK(grad_any.scalar_type() == wide && grad_any.numel() == images * width, "gram: grad is ",
                grad_any.scalar_type(), " with ", grad_any.numel(), " values, expected ", wide, " with ",
                images * width);
    TORCH_CHECK(wanted.size() == dense.size(), "gram: ", dense.size(), " maps and ", wanted.size(), " wanted");
    const Tensor grad = grad_any.contiguous();
    std::vector<Tensor> found;
    int64_t offset = 0;
    for (size_t i = 0; i < dense.size(); ++i) {
        const Tensor& x = dense[i];
        const int64_t channels = x.size(1), pixels = x.size(2) * x.size(3), here = offset;
        offset += entries(channels, folded);
        if (!wanted.get(i)) {
            found.push_back(at::empty({0}, x.options()));
            continue;
        }
        const bool channels_last = is_channels_last(x);
        Tensor gx = empty_like(x, memory_format(4, channels_last));
        found.push_back(gx);
        if (images == 0) continue;
        const Tensor matrix = at::empty({images, channels, channels}, grad.options());
        AT_DISPATCH_FLOATING_TYPES(wide, "gram_backward", [&] {
            symmetric(grad.const_data_ptr<scalar_t>() + here, width, images, channels, folded,
                      1.0 / static_cast<double>(divisors[i]), matrix.mutable_data_ptr<scalar_t>());
        });
        const auto rows = [&](const Tensor& map) {  // N,C,H*W, or N,H*W,C
            return channels_last ? map.permute({0, 2, 3, 1}).view({images, pixels, channels})
                                 : map.view({images, channels, pixels});
        };
        const Tensor from = rows(x).to(wide);
        const Tensor &left = channels_last ? from : matrix, &right = channels_last ? matrix : from;
        Tensor to = rows(gx);
        if (gx.scalar_type() == wide) {
            at::bmm_out(to, left, right);
        } else {
            to.copy_(at::bmm(left, right));
        }
    }
    return found;
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CPU, m) {
    m.impl("gram", &gram_cpu);
    m.impl("gram_backward", &gram_backward_cpu);
}

}  // namespace anifast
