// gated_residual on the CPU: see anifast/ops/gated_residual.py for the formulas and the two ops.
//
// In N,C,H,W a plane of one image's channel is walked with that channel's numbers in registers; in channels last (and
// in matrices) lanes are channels, and a few pixels go through each vector of them. A shortcut that is to be doubled is
// doubled a few lines at a time into a buffer, or (channels last) met by its four pixels together. The sums for the
// parameters are five a channel, from which all four gradients follow. Work is cut into tasks whose borders depend on
// the sizes alone, each leaves its sums in slots of its own, and slots are added in order, so that results are the same
// whatever the number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
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

// Values of a task, about; of a channel at most, so that sums in float32 stay short.
constexpr int64_t kTask = 16384;
// Values of a plane that are walked at once: what is buffered of them stays in the first cache.
constexpr int64_t kPiece = 4096;
// Values of neighbouring planes, about, that a task reads before it goes to the next image.
constexpr int64_t kRun = 2048;
constexpr int64_t kMostPlanes = 32;
// Pixels of a task at least: its sums are as large as a few of them.
constexpr int64_t kFewestPixels = 64;

constexpr int64_t up_to(int64_t value, int64_t step) { return (value + step - 1) / step; }

// Sums over the pixels of a channel that have v > 0 or not: of v * g and of g; and of the shortcut times g.
enum Sum { kPositive, kNegative, kGradPositive, kGradNegative, kShortcut, kSums };

struct Sizes {
    int64_t images, channels, rows, columns, up, crop;
    int64_t small_rows, small_columns;  // of the shortcut
    bool pixels;                        // lanes are channels

    Sizes(const Tensor& x, bool channels_last, int64_t up, int64_t crop) : up(up), crop(crop) {
        TORCH_CHECK(x.dim() == 2 || x.dim() == 4, "gated_residual: x must have rank 2 or 4, got ", x.dim());
        TORCH_CHECK((up == 1 && crop == 0) || (up == 2 && crop >= 0 && crop < 1 << 30 && x.dim() == 4),
                    "gated_residual: up ", up, " and crop ", crop, " do not go with rank ", x.dim());
        images = x.size(0), channels = x.size(1);
        rows = x.dim() == 4 ? x.size(2) : 1, columns = x.dim() == 4 ? x.size(3) : 1;
        TORCH_CHECK(up == 1 || (rows % 2 == 0 && columns % 2 == 0), "gated_residual: a doubled shortcut is not ", rows,
                    " by ", columns);
        small_rows = up == 1 ? rows : rows / 2 + crop, small_columns = up == 1 ? columns : columns / 2 + crop;
        pixels = channels_last || length() == 1;
    }
    int64_t length() const { return rows * columns; }
    int64_t small_length() const { return small_rows * small_columns; }
    std::vector<int64_t> shortcut(const Tensor& x) const {
        if (x.dim() == 2) return {images, channels};
        return {images, channels, small_rows, small_columns};
    }
};

// The numbers of each channel: y = shortcut * S + (positive or negative) * (x + bias) + constant.
template <class A>
struct Numbers {
    std::vector<A> bias, positive, negative, constant, shortcut;
};

// A vector of channels' numbers, or a vector of one channel's.
template <class A>
struct Lane {
    Vec<A> bias, positive, negative, constant, shortcut;

    Lane(const Numbers<A>& of, int64_t c)
        : bias(broadcast<A>(of.bias[c])),
          positive(broadcast<A>(of.positive[c])),
          negative(broadcast<A>(of.negative[c])),
          constant(broadcast<A>(of.constant[c])),
          shortcut(broadcast<A>(of.shortcut[c])) {}
    template <bool kFull>
    Lane(const Numbers<A>& of, int64_t c, int64_t n, std::bool_constant<kFull>)
        : bias(load_n<kFull>(of.bias.data() + c, n)),
          positive(load_n<kFull>(of.positive.data() + c, n)),
          negative(load_n<kFull>(of.negative.data() + c, n)),
          constant(load_n<kFull>(of.constant.data() + c, n)),
          shortcut(load_n<kFull>(of.shortcut.data() + c, n)) {}
};

template <class A>
inline Vec<A> gated(Vec<A> x, Vec<A> shortcut, const Lane<A>& by) {
    const Vec<A> v = x + by.bias;
    return by.shortcut * shortcut + (select<A>(v > 0, by.positive, by.negative) * v + by.constant);
}

// The sums of a vector of pixels or channels.
template <class A>
struct Sums {
    Vec<A> at[kSums] = {};

    void add(Vec<A> v, Vec<A> g) {
        const LaneMask<A> positive = v > 0;
        const Vec<A> product = v * g, zero{};
        at[kPositive] += select<A>(positive, product, zero);
        at[kNegative] += select<A>(positive, zero, product);
        at[kGradPositive] += select<A>(positive, g, zero);
        at[kGradNegative] += select<A>(positive, zero, g);
    }
};

// Pointers of backward; what isn't wanted is null, and without sums x is read for gx alone.
template <class T>
struct Maps {
    const T *grad, *x, *shortcut;
    T *gx, *gshortcut;
};

// even[0] even[0] even[1] even[1] ...
inline void twice(Vec<float> from, Vec<float>& low, Vec<float>& high) { zip(from, from, low, high); }
inline void twice(Vec<double> from, Vec<double>& low, Vec<double>& high) {
    for (int i = 0; i < kWidth<double>; ++i) low[i] = from[i / 2], high[i] = from[kWidth<double> / 2 + i / 2];
}
// The sums of neighbours.
inline Vec<float> in_pairs(Vec<float> low, Vec<float> high) {
    Vec<float> even, odd;
    unzip(low, high, even, odd);
    return even + odd;
}
inline Vec<double> in_pairs(Vec<double> low, Vec<double> high) {
    Vec<double> sum;
    constexpr int kHalf = kWidth<double> / 2;
    for (int i = 0; i < kHalf; ++i)
        sum[i] = low[2 * i] + low[2 * i + 1], sum[kHalf + i] = high[2 * i] + high[2 * i + 1];
    return sum;
}

// N,C,H,W.

// A part of a plane: its values [begin, end), and with up = 2 the lines [first, last) of the shortcut that they meet.
struct Piece {
    int64_t begin, end, first, last;
};

struct Pieces {
    const Sizes& sizes;
    int64_t each, count;  // values, or lines of the shortcut, of a piece

    explicit Pieces(const Sizes& sizes) : sizes(sizes) {
        each = sizes.up == 1 ? kPiece : std::max<int64_t>(1, kPiece / (2 * sizes.columns));
        count = up_to(sizes.up == 1 ? sizes.length() : sizes.small_rows, each);
    }
    Piece at(int64_t index) const {
        const int64_t first = index * each;
        if (sizes.up == 1) return {first, std::min(first + each, sizes.length()), 0, 0};
        const int64_t last = std::min(first + each, sizes.small_rows);
        const auto line = [&](int64_t small) { return std::clamp<int64_t>(2 * small - sizes.crop, 0, sizes.rows); };
        return {line(first) * sizes.columns, line(last) * sizes.columns, first, last};
    }
    int64_t longest() const { return sizes.up == 1 ? std::min(each, sizes.length()) : 2 * each * sizes.columns; }
};

// Doubles lines of a shortcut and adds up the pixels that one of its pixels became; with room for whole vectors.
template <class T>
class Doubling {
    using A = Accumulate<T>;
    static constexpr int W = kWidth<A>;
    const Sizes& sizes_;
    std::vector<A> line_, doubled_;

    bool is_line(int64_t row) const { return row >= 0 && row < sizes_.rows; }

  public:
    Doubling(const Sizes& sizes, int64_t values)
        : sizes_(sizes), line_(2 * sizes.small_columns + 4 * W), doubled_(values + W) {}

    // The shortcut at the values of a piece.
    const A* of(const T* shortcut, const Piece& piece) {
        A* to = doubled_.data();
        for (int64_t small = piece.first; small < piece.last; ++small) {
            const T* from = shortcut + small * sizes_.small_columns;
            for_vectors<W>(0, sizes_.small_columns, [&](int64_t i, int64_t n, auto full) {
                Vec<A> low, high;
                twice(load_n<decltype(full)::value>(from + i, n), low, high);
                store(line_.data() + 2 * i, low);
                store(line_.data() + 2 * i + W, high);
            });
            for (int64_t row = 2 * small - sizes_.crop; row < 2 * small - sizes_.crop + 2; ++row) {
                if (!is_line(row)) continue;
                for (int64_t i = 0; i < sizes_.columns; i += W) store(to + i, load(line_.data() + sizes_.crop + i));
                to += sizes_.columns;
            }
        }
        return doubled_.data();
    }
    // gshortcut = factor * the sums of grad, both of a plane, for a piece.
    void sums(const T* grad, Vec<A> factor, const Piece& piece, T* gshortcut) {
        std::fill_n(line_.begin(), sizes_.crop, A(0));
        for (int64_t small = piece.first; small < piece.last; ++small) {
            const int64_t row = 2 * small - sizes_.crop;
            const T* upper = is_line(row) ? grad + row * sizes_.columns : nullptr;
            const T* lower = is_line(row + 1) ? grad + (row + 1) * sizes_.columns : nullptr;
            for_vectors<W>(0, sizes_.columns, [&](int64_t i, int64_t n, auto full) {
                constexpr bool kFull = decltype(full)::value;
                Vec<A> sum{};
                if (upper) sum += load_n<kFull>(upper + i, n);
                if (lower) sum += load_n<kFull>(lower + i, n);
                store(line_.data() + sizes_.crop + i, sum);
            });
            std::fill_n(line_.begin() + sizes_.crop + sizes_.columns, sizes_.crop, A(0));
            T* to = gshortcut + small * sizes_.small_columns;
            for_vectors<W>(0, sizes_.small_columns, [&](int64_t i, int64_t n, auto full) {
                const Vec<A> pairs = in_pairs(load(line_.data() + 2 * i), load(line_.data() + 2 * i + W));
                store_n<decltype(full)::value>(to + i, factor * pairs, n);
            });
        }
    }
};

template <class T>
void forward_planes(const Sizes& sizes, const Numbers<Accumulate<T>>& numbers, const T* x, const T* shortcut, T* out) {
    using A = Accumulate<T>;
    const Pieces pieces(sizes);
    const int64_t all = sizes.images * sizes.channels * pieces.count;
    const int64_t together = std::max<int64_t>(1, kTask / std::max<int64_t>(1, pieces.longest()));
    at::parallel_for(0, up_to(all, together), 1, [&](int64_t begin, int64_t end) {
        Doubling<T> doubling(sizes, sizes.up == 1 ? 0 : pieces.longest());
        for (int64_t index = begin * together; index < std::min(end * together, all); ++index) {
            const int64_t plane = index / pieces.count;
            const Piece piece = pieces.at(index % pieces.count);
            const Lane<A> by(numbers, plane % sizes.channels);
            const T *from = x + plane * sizes.length() + piece.begin, *other = shortcut + plane * sizes.small_length();
            T* to = out + plane * sizes.length() + piece.begin;
            const auto walk = [&](const auto* beside) {
                for_vectors<kWidth<A>>(0, piece.end - piece.begin, [&](int64_t i, int64_t n, auto full) {
                    constexpr bool kFull = decltype(full)::value;
                    store_n<kFull>(to + i, gated<A>(load_n<kFull>(from + i, n), load_n<kFull>(beside + i, n), by), n);
                });
            };
            sizes.up == 1 ? walk(other + piece.begin) : walk(doubling.of(other, piece));
        }
    });
}

// The values of a piece; `beside` is the shortcut there, doubled where it is to be.
template <bool kWithSums, class T, class S, class A>
inline void backward_run(const Maps<T>& at, const S* beside, int64_t count, const Lane<A>& by, Sums<A>& sums) {
    Sums<A> here = sums;
    for_vectors<kWidth<A>>(0, count, [&](int64_t i, int64_t n, auto full) {
        constexpr bool kFull = decltype(full)::value;
        const Vec<A> g = load_n<kFull>(at.grad + i, n);
        if (kWithSums || at.gx) {
            Vec<A> v = load_n<kFull>(at.x + i, n) + by.bias;
            if (at.gx) store_n<kFull>(at.gx + i, select<A>(v > 0, by.positive, by.negative) * g, n);
            if constexpr (kWithSums) {
                if constexpr (!kFull) v = select<A>(first_lanes<A>(n), v, Vec<A>{});  // a bias may be infinite
                here.add(v, g);
                if (beside) here.at[kShortcut] += load_n<kFull>(beside + i, n) * g;
            }
        }
        if (at.gshortcut) store_n<kFull>(at.gshortcut + i, by.shortcut * g, n);
    });
    sums = here;
}

// The kSums * channels sums of tasks that follow one another.
template <class A>
std::vector<double> added(const std::vector<A>& slots, int64_t channels) {
    const int64_t width = kSums * channels;
    std::vector<double> total(slots.empty() ? 0 : width, 0.0);
    for (size_t task = 0; task < slots.size(); task += width) {
        for (int64_t i = 0; i < width; ++i) total[i] += slots[task + i];
    }
    return total;
}

template <bool kWithSums, class T>
std::vector<double> backward_planes(const Sizes& sizes, const Numbers<Accumulate<T>>& numbers, const Maps<T>& maps) {
    using A = Accumulate<T>;
    const Pieces pieces(sizes);
    // a task has `planes` channels and of each `units` pieces, of one image after the other
    const int64_t planes = std::clamp<int64_t>(up_to(kRun, sizes.length()), 1, std::min(kMostPlanes, sizes.channels));
    const int64_t all = sizes.images * pieces.count;
    const int64_t units = std::max<int64_t>(1, kTask / pieces.longest());
    const int64_t blocks = up_to(sizes.channels, planes), tasks = up_to(all, units);
    std::vector<A> slots(kWithSums ? tasks * sizes.channels * kSums : 0);
    at::parallel_for(0, tasks * blocks, 1, [&](int64_t begin, int64_t end) {
        Doubling<T> doubling(sizes, sizes.up == 1 ? 0 : pieces.longest());
        for (int64_t index = begin; index < end; ++index) {
            const int64_t task = index / blocks, first = index % blocks * planes;
            const int64_t last = std::min(first + planes, sizes.channels);
            Sums<A> sums[kMostPlanes] = {};
            for (int64_t unit = task * units; unit < std::min((task + 1) * units, all); ++unit) {
                const Piece piece = pieces.at(unit % pieces.count);
                for (int64_t c = first; c < last; ++c) {
                    const int64_t plane = unit / pieces.count * sizes.channels + c;
                    const int64_t at = plane * sizes.length() + piece.begin, small = plane * sizes.small_length();
                    const Lane<A> by(numbers, c);
                    Maps<T> here{maps.grad + at, maps.x + at, nullptr, maps.gx ? maps.gx + at : nullptr, nullptr};
                    const int64_t count = piece.end - piece.begin;
                    if (sizes.up == 1) {
                        if (maps.gshortcut) here.gshortcut = maps.gshortcut + at;
                        const T* beside = maps.shortcut ? maps.shortcut + at : nullptr;
                        backward_run<kWithSums>(here, beside, count, by, sums[c - first]);
                    } else {
                        const A* beside = maps.shortcut ? doubling.of(maps.shortcut + small, piece) : nullptr;
                        backward_run<kWithSums>(here, beside, count, by, sums[c - first]);
                        if (maps.gshortcut) {
                            doubling.sums(maps.grad + plane * sizes.length(), by.shortcut, piece,
                                          maps.gshortcut + small);
                        }
                    }
                }
            }
            if constexpr (kWithSums) {
                for (int64_t c = first; c < last; ++c) {
                    for (int sum = 0; sum < kSums; ++sum)
                        slots[(task * kSums + sum) * sizes.channels + c] = sum_lanes<A>(sums[c - first].at[sum]);
                }
            }
        }
    });
    return added(slots, sizes.channels);
}

// Channels last.

// Pixels that go through each vector of channels together, as the places of their first values: with up = 2 those that
// one pixel of the shortcut became (fewer than four where some are cut), else neighbours, each with its own.
struct Group {
    int64_t small, count = 0;
    std::array<int64_t, 4> pixels;
};

struct PixelTasks {
    const Sizes& sizes;
    int64_t all, each, count;  // pixels of all shortcuts, pixels of a task, tasks

    explicit PixelTasks(const Sizes& sizes) : sizes(sizes) {
        all = sizes.images * sizes.small_length();
        each = std::max(kFewestPixels, kTask / sizes.channels) / (sizes.up * sizes.up);
        count = up_to(all, each);
    }
    // Calls visit(group) for the pixels of a task.
    template <class Visit>
    void run(int64_t task, const Visit& visit) const {
        const int64_t begin = task * each, end = std::min(begin + each, all);
        sizes.up == 1 ? neighbours(begin, end, visit) : windows(begin, end, visit);
    }

  private:
    template <class Visit>
    void neighbours(int64_t begin, int64_t end, const Visit& visit) const {
        for (int64_t pixel = begin; pixel < end;) {
            Group group{pixel * sizes.channels, end - pixel >= 4 ? 4 : 1, {}};
            for (int64_t p = 0; p < group.count; ++p) group.pixels[p] = pixel++ * sizes.channels;
            visit(group);
        }
    }
    template <class Visit>
    void windows(int64_t begin, int64_t end, const Visit& visit) const {
        int64_t column = begin % sizes.small_columns, row = begin / sizes.small_columns % sizes.small_rows;
        int64_t image = begin / sizes.small_length();
        for (int64_t index = begin; index < end; ++index) {
            Group group{index * sizes.channels, 0, {}};
            for (int64_t y = 2 * row - sizes.crop; y < 2 * row - sizes.crop + 2; ++y) {
                for (int64_t x = 2 * column - sizes.crop; x < 2 * column - sizes.crop + 2; ++x) {
                    if (y < 0 || y >= sizes.rows || x < 0 || x >= sizes.columns) continue;
                    group.pixels[group.count++] = ((image * sizes.rows + y) * sizes.columns + x) * sizes.channels;
                }
            }
            visit(group);
            if (++column < sizes.small_columns) continue;
            column = 0;
            if (++row < sizes.small_rows) continue;
            row = 0, ++image;
        }
    }
};

// Calls run(pixels) with the number of a group's pixels as a constant.
template <class Run>
inline void with_count(const Group& group, const Run& run) {
    if (group.count == 4) return run(std::integral_constant<int, 4>{});
    if (group.count == 2) return run(std::integral_constant<int, 2>{});
    group.count == 1 ? run(std::integral_constant<int, 1>{}) : run(std::integral_constant<int, 0>{});
}

// All pixels are read before any is written: they often lie a multiple of 4 KiB apart, where a read has to wait for a
// write.
template <bool kUp, class T>
void forward_pixels(const Sizes& sizes, const Numbers<Accumulate<T>>& numbers, const T* x, const T* shortcut, T* out) {
    using A = Accumulate<T>;
    const PixelTasks tasks(sizes);
    at::parallel_for(0, tasks.count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            tasks.run(task, [&](const Group& group) {
                with_count(group, [&](auto pixels) {
                    constexpr int kPixels = decltype(pixels)::value;
                    if constexpr (kPixels == 0) return;
                    for_vectors<kWidth<A>>(0, sizes.channels, [&](int64_t c, int64_t n, auto full) {
                        constexpr bool kFull = decltype(full)::value;
                        const Lane<A> by(numbers, c, n, full);
                        Vec<A> other{}, y[kPixels + 1];
                        if constexpr (kUp) other = load_n<kFull>(shortcut + group.small + c, n);
                        for (int p = 0; p < kPixels; ++p) {
                            if constexpr (!kUp) other = load_n<kFull>(shortcut + group.pixels[p] + c, n);
                            y[p] = gated<A>(load_n<kFull>(x + group.pixels[p] + c, n), other, by);
                        }
                        for (int p = 0; p < kPixels; ++p) store_n<kFull>(out + group.pixels[p] + c, y[p], n);
                    });
                });
            });
        }
    });
}

// One group; `slots` has the sums of its task.
template <bool kUp, bool kWithSums, int kPixels, class T, class A>
inline void backward_group(const Group& group, const Numbers<A>& numbers, const Maps<T>& maps, int64_t channels,
                           A* slots) {
    for_vectors<kWidth<A>>(0, channels, [&](int64_t c, int64_t n, auto full) {
        constexpr bool kFull = decltype(full)::value;
        const Lane<A> by(numbers, c, n, full);
        Vec<A> g[kPixels + 1], v[kPixels + 1], all{}, dot{};
        for (int p = 0; p < kPixels; ++p) {
            g[p] = load_n<kFull>(maps.grad + group.pixels[p] + c, n);
            all += g[p];
            if (kWithSums || maps.gx) v[p] = load_n<kFull>(maps.x + group.pixels[p] + c, n) + by.bias;
            if (kWithSums && !kUp && maps.shortcut) dot += load_n<kFull>(maps.shortcut + group.pixels[p] + c, n) * g[p];
        }
        if (kWithSums && kUp && maps.shortcut) dot = load_n<kFull>(maps.shortcut + group.small + c, n) * all;
        if (maps.gx) {
            for (int p = 0; p < kPixels; ++p) {
                const Vec<A> factor = select<A>(v[p] > 0, by.positive, by.negative);
                store_n<kFull>(maps.gx + group.pixels[p] + c, factor * g[p], n);
            }
        }
        if (maps.gshortcut) {
            if constexpr (kUp) store_n<kFull>(maps.gshortcut + group.small + c, by.shortcut * all, n);
            for (int p = 0; p < (kUp ? 0 : kPixels); ++p)
                store_n<kFull>(maps.gshortcut + group.pixels[p] + c, by.shortcut * g[p], n);
        }
        if constexpr (kWithSums) {
            Sums<A> sums;
            for (int sum = 0; sum < kSums; ++sum) sums.at[sum] = load_n<kFull>(slots + sum * channels + c, n);
            for (int p = 0; p < kPixels; ++p) sums.add(v[p], g[p]);
            sums.at[kShortcut] += dot;
            for (int sum = 0; sum < kSums; ++sum) store_n<kFull>(slots + sum * channels + c, sums.at[sum], n);
        }
    });
}

template <bool kUp, bool kWithSums, class T>
std::vector<double> backward_pixels(const Sizes& sizes, const Numbers<Accumulate<T>>& numbers, const Maps<T>& maps) {
    using A = Accumulate<T>;
    const PixelTasks tasks(sizes);
    std::vector<A> slots(kWithSums ? tasks.count * kSums * sizes.channels : 0);
    at::parallel_for(0, tasks.count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            A* own = kWithSums ? slots.data() + task * kSums * sizes.channels : nullptr;
            tasks.run(task, [&](const Group& group) {
                with_count(group, [&](auto pixels) {
                    constexpr int kPixels = decltype(pixels)::value;
                    backward_group<kUp, kWithSums, kPixels>(group, numbers, maps, sizes.channels, own);
                });
            });
        }
    });
    return added(slots, sizes.channels);
}

// A parameter's number for each channel, or `other` for all where there is none.
std::vector<double> parameter(const OptionalTensor& given, const char* name, const Tensor& x, double other) {
    std::vector<double> out(x.size(1), other);
    if (!given) return out;
    TORCH_CHECK(given->is_cpu() && given->dim() == 1 && given->numel() == x.size(1), "gated_residual: ", name,
                " has shape ", given->sizes(), " on ", given->device(), ", expected [", x.size(1), "] on cpu");
    const Tensor dense = given->contiguous();
    ANIFAST_DISPATCH(dense.scalar_type(), "gated_residual", [&] {
        const auto* from = dense.const_data_ptr<scalar_t>();
        for (size_t c = 0; c < out.size(); ++c) out[c] = static_cast<double>(from[c]);
    });
    return out;
}

// The arguments that both ops have, checked and in one layout.
struct Call {
    bool channels_last;
    at::MemoryFormat format;
    Tensor x;
    Sizes sizes;
    std::vector<double> gate, shortcut_gate, slope, bias;
    double mean, std;

    Call(const Tensor& any, const Tensor& gate, const Tensor& shortcut_gate, const OptionalTensor& slope,
         const OptionalTensor& bias, double mean, double std, int64_t up, int64_t crop)
        : channels_last(is_channels_last(any)),
          format(memory_format(any.dim(), channels_last)),
          x(any.contiguous(format)),
          sizes(x, channels_last, up, crop),
          gate(parameter(gate, "gate", x, 1.0)),
          shortcut_gate(parameter(shortcut_gate, "shortcut_gate", x, 1.0)),
          slope(parameter(slope, "slope", x, 1.0)),
          bias(parameter(bias, "bias", x, 0.0)),
          mean(mean),
          std(std) {}

    Tensor map(const Tensor& given, const char* name, at::IntArrayRef shape) const {
        TORCH_CHECK(given.sizes() == shape && given.scalar_type() == x.scalar_type() && given.is_cpu(),
                    "gated_residual: ", name, " is ", given.scalar_type(), " of shape ", given.sizes(), " on ",
                    given.device(), ", expected ", x.scalar_type(), " of shape ", shape, " on cpu");
        return given.contiguous(format);
    }
    template <class A>
    Numbers<A> numbers() const {
        Numbers<A> out;
        for (int64_t c = 0; c < sizes.channels; ++c) {
            out.bias.push_back(static_cast<A>(bias[c]));
            out.positive.push_back(static_cast<A>(gate[c] / std));
            out.negative.push_back(static_cast<A>(slope[c] * gate[c] / std));
            out.constant.push_back(static_cast<A>(-mean * gate[c] / std));
            out.shortcut.push_back(static_cast<A>(shortcut_gate[c]));
        }
        return out;
    }
};

Tensor forward_cpu(const Tensor& x_any, const Tensor& shortcut_any, const Tensor& gate, const Tensor& shortcut_gate,
                   const OptionalTensor& slope, const OptionalTensor& bias, double mean, double std, int64_t up,
                   int64_t crop) {
    const Call call(x_any, gate, shortcut_gate, slope, bias, mean, std, up, crop);
    const Tensor shortcut = call.map(shortcut_any, "shortcut", call.sizes.shortcut(call.x));
    Tensor out = empty_like(call.x, call.format);
    if (out.numel() == 0) return out;
    ANIFAST_DISPATCH(out.scalar_type(), "gated_residual", [&] {
        const auto numbers = call.numbers<Accumulate<scalar_t>>();
        const auto *x = call.x.const_data_ptr<scalar_t>(), *other = shortcut.const_data_ptr<scalar_t>();
        auto* to = out.mutable_data_ptr<scalar_t>();
        if (!call.sizes.pixels) return forward_planes<scalar_t>(call.sizes, numbers, x, other, to);
        up == 1 ? forward_pixels<false, scalar_t>(call.sizes, numbers, x, other, to)
                : forward_pixels<true, scalar_t>(call.sizes, numbers, x, other, to);
    });
    return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward_cpu(
    const Tensor& grad_any, const Tensor& x_any, const OptionalTensor& shortcut_any, const Tensor& gate,
    const Tensor& shortcut_gate, const OptionalTensor& slope, const OptionalTensor& bias, double mean, double std,
    int64_t up, int64_t crop, std::array<bool, 6> wanted) {
    const Call call(x_any, gate, shortcut_gate, slope, bias, mean, std, up, crop);
    const Sizes& sizes = call.sizes;
    const Tensor grad = call.map(grad_any, "grad", call.x.sizes());
    TORCH_CHECK(shortcut_any || !wanted[3], "gated_residual: the gradient of shortcut_gate needs the shortcut");
    Tensor shortcut;
    if (wanted[3]) shortcut = call.map(*shortcut_any, "shortcut", sizes.shortcut(call.x));
    const auto options = call.x.options();
    const auto wide = options.dtype(call.x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    Tensor gx = wanted[0] ? empty_like(call.x, call.format) : at::empty({0}, options);
    Tensor gshortcut = wanted[1] ? empty(sizes.shortcut(call.x), options, call.format) : at::empty({0}, options);
    const auto number = [&](bool want) { return at::empty({want ? sizes.channels : 0}, wide); };
    Tensor ggate = number(wanted[2]), gshortcut_gate = number(wanted[3]), gslope = number(wanted[4]);
    Tensor gbias = number(wanted[5]);
    if (call.x.numel() == 0) {
        for (Tensor* out : {&gshortcut, &ggate, &gshortcut_gate, &gslope, &gbias}) out->zero_();
        return {gx, gshortcut, ggate, gshortcut_gate, gslope, gbias};
    }
    const bool sums = wanted[2] || wanted[3] || wanted[4] || wanted[5];
    ANIFAST_DISPATCH(call.x.scalar_type(), "gated_residual_backward", [&] {
        using A = Accumulate<scalar_t>;
        const auto numbers = call.numbers<A>();
        const Maps<scalar_t> maps{grad.const_data_ptr<scalar_t>(), call.x.const_data_ptr<scalar_t>(),
                                  wanted[3] ? shortcut.const_data_ptr<scalar_t>() : nullptr,
                                  wanted[0] ? gx.mutable_data_ptr<scalar_t>() : nullptr,
                                  wanted[1] ? gshortcut.mutable_data_ptr<scalar_t>() : nullptr};
        const auto run = [&](auto with_sums) {
            constexpr bool kWithSums = decltype(with_sums)::value;
            if (!sizes.pixels) return backward_planes<kWithSums, scalar_t>(sizes, numbers, maps);
            return up == 1 ? backward_pixels<false, kWithSums, scalar_t>(sizes, numbers, maps)
                           : backward_pixels<true, kWithSums, scalar_t>(sizes, numbers, maps);
        };
        const auto total = sums ? run(std::true_type{}) : run(std::false_type{});
        for (int64_t c = 0; sums && c < sizes.channels; ++c) {
            const auto of = [&](Sum sum) { return total[sum * sizes.channels + c]; };
            const auto put = [&](Tensor& to, double value) { to.mutable_data_ptr<A>()[c] = static_cast<A>(value); };
            const double positive = of(kGradPositive), negative = of(kGradNegative), scale = call.gate[c] / std;
            const double slope_here = call.slope[c], below = of(kNegative);
            if (wanted[2]) put(ggate, (of(kPositive) + slope_here * below - mean * (positive + negative)) / std);
            if (wanted[3]) put(gshortcut_gate, of(kShortcut));
            if (wanted[4]) put(gslope, scale * below);
            if (wanted[5]) put(gbias, scale * (positive + slope_here * negative));
        }
    });
    return {gx, gshortcut, ggate, gshortcut_gate, gslope, gbias};
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CPU, m) {
    m.impl("gated_residual", &forward_cpu);
    m.impl("gated_residual_backward", &backward_cpu);
}

}  // namespace anifast
