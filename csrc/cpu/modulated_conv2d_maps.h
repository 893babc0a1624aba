// Between maps in memory, N,C,H,W or N,H,W,C, and the order that modulated_conv2d's kernels compute in: for each pixel
// the channels side by side, a vector of them at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "../common/vec.h"

namespace anifast {
namespace {

template <class T>
struct Maps {
    using A = std::remove_const_t<T>;
    T* data;
    int64_t batch, channels, rows, columns;
    bool last;  // channels last

    int64_t pixel_step() const { return last ? channels : 1; }
    int64_t channel_step() const { return last ? 1 : rows * columns; }
    T* at(int64_t n, int64_t c, int64_t y) const {
        return last ? data + (n * rows + y) * columns * channels + c : data + ((n * channels + c) * rows + y) * columns;
    }
    int64_t groups() const { return (channels + kWidth<A> - 1) / kWidth<A>; }
};

// Rows become columns, by perfect shuffles.
template <class A>
inline void transpose(Vec<A>* v) {
    constexpr int W = kWidth<A>;
    if constexpr (std::is_same_v<A, float>) {
        Vec<A> other[W];
        Vec<A>*from = v, *to = other;
#pragma GCC unroll 4
        for (int round = 1; round < W; round *= 2) {
#pragma GCC unroll 8
            for (int j = 0; j < W / 2; ++j) zip(from[j], from[j + W / 2], to[2 * j], to[2 * j + 1]);
            std::swap(from, to);
        }
        if (from != v) std::memcpy(v, from, sizeof(other));
    } else {
        for (int r = 0; r < W; ++r) {
            for (int c = r + 1; c < W; ++c) {
                const A kept = v[r][c];
                v[r][c] = v[c][r];
                v[c][r] = kept;
            }
        }
    }
}

// The first `count` channels' values, 0 beyond.
template <class A>
inline Vec<A> load_channels(const A* from, int64_t count) {
    return count >= kWidth<A> ? load(from) : load_first(from, count);
}

// One line of the maps, times the channels' factors if there are any: the vector of channels c, c + 1, ... of column x
// goes to to(x). Channels that do not exist are 0.
template <class A, class To>
void read_line(const Maps<const A>& maps, int64_t n, int64_t y, int64_t c, const A* factors, const To& to) {
    constexpr int W = kWidth<A>;
    const int64_t count = std::min<int64_t>(W, maps.channels - c), columns = maps.columns;
    const Vec<A> factor = factors ? load_channels(factors + n * maps.channels + c, count) : broadcast(A(1));
    const A* from = maps.at(n, c, y);
    if (maps.last) {
        for (int64_t x = 0; x < columns; ++x) store(to(x), load_channels(from + x * maps.channels, count) * factor);
        return;
    }
    const int64_t step = maps.channel_step();
    for (int64_t x = 0; x < columns; x += W) {
        const int64_t here = std::min<int64_t>(W, columns - x);
        Vec<A> v[W];
        for (int i = 0; i < count; ++i)
            v[i] = here == W ? load(from + i * step + x) : load_first(from + i * step + x, here);
        for (int64_t i = count; i < W; ++i) v[i] = Vec<A>{};
        transpose<A>(v);
        for (int i = 0; i < here; ++i) store(to(x + i), v[i] * factor);
    }
}

// The reverse. `stage` sees every vector on its way: stage.pixel(v, x) of the channels of column x; then, for
// N,C,H,W, stage.line(v, i, x, count) of `count` columns from x of channel c + i.
template <class A, class From, class Stage>
void write_line(const Maps<A>& maps, int64_t n, int64_t y, int64_t c, const From& from, Stage& stage) {
    constexpr int W = kWidth<A>;
    const int64_t count = std::min<int64_t>(W, maps.channels - c), columns = maps.columns;
    A* to = maps.at(n, c, y);
    if (maps.last) {
        for (int64_t x = 0; x < columns; ++x) {
            const Vec<A> v = stage.pixel(load(from(x)), x);
            if (count == W) {
                store(to + x * maps.channels, v);
            } else {
                store_first(to + x * maps.channels, v, count);
            }
        }
        return;
    }
    const int64_t step = maps.channel_step();
    for (int64_t x = 0; x < columns; x += W) {
        const int64_t here = std::min<int64_t>(W, columns - x);
        Vec<A> v[W];
        for (int i = 0; i < here; ++i) v[i] = stage.pixel(load(from(x + i)), x + i);
        for (int64_t i = here; i < W; ++i) v[i] = Vec<A>{};
        transpose<A>(v);
        for (int i = 0; i < count; ++i) {
            const Vec<A> value = stage.line(v[i], i, x, here);
            if (here == W) {
                store(to + i * step + x, value);
            } else {
                store_first(to + i * step + x, value, here);
            }
        }
    }
}

// What stands behind the sums of a forward pass; null pointers are absent.
template <class A>
struct ForwardEpilogue {
    const A *scale, *bias, *noise;  // [N, O], [O], [noise_batch, rows, columns]
    int64_t noise_batch;
    A strength, gain, negative_gain, clamp;
    bool act, clamped;
};

template <class A>
class ForwardStage {
  public:
    ForwardStage(const ForwardEpilogue<A>& e, const Maps<A>& out, int64_t n, int64_t y, int64_t c) : e_(e) {
        const int64_t count = std::min<int64_t>(kWidth<A>, out.channels - c);
        scale_ = e.scale ? load_channels(e.scale + n * out.channels + c, count) : broadcast(A(1));
        bias_ = e.bias ? load_channels(e.bias + c, count) : Vec<A>{};
        if (e.noise) noise_ = e.noise + ((e.noise_batch == 1 ? 0 : n) * out.rows + y) * out.columns;
    }
    Vec<A> pixel(Vec<A> v, int64_t x) const {
        v = v * scale_ + bias_;
        if (noise_) v += broadcast(noise_[x] * e_.strength);
        if (e_.act) v *= select<A>(v < A(0), broadcast(e_.negative_gain), broadcast(e_.gain));
        if (e_.clamped) {
            v = select<A>(v > e_.clamp, broadcast(e_.clamp), v);
            v = select<A>(v < -e_.clamp, broadcast(-e_.clamp), v);
        }
        return v;
    }
    Vec<A> line(Vec<A> v, int, int64_t, int64_t) const { return v; }

  private:
    const ForwardEpilogue<A>& e_;
    Vec<A> scale_, bias_;
    const A* noise_ = nullptr;
};

// Behind the gradient of x * style: times the style, and the sum over the line of the gradient times x.
template <class A>
struct GradEpilogue {
    const A* style;  // [N, I] or null
    const A* x;      // the maps that had the style before them, in the output's layout, or null
    A* sums;         // [N, rows, I] or null
};

template <class A>
class GradStage {
  public:
    GradStage(const GradEpilogue<A>& e, const Maps<A>& out, int64_t n, int64_t y, int64_t c)
        : last_(out.last), count_(std::min<int64_t>(kWidth<A>, out.channels - c)), step_(out.channel_step()) {
        const Maps<const A> of_x{e.x, out.batch, out.channels, out.rows, out.columns, out.last};
        if (e.x) x_ = of_x.at(n, c, y);
        style_ = e.style ? load_channels(e.style + n * out.channels + c, count_) : broadcast(A(1));
        if (e.sums) to_ = e.sums + (n * out.rows + y) * out.channels + c;
        pixel_step_ = out.pixel_step();
        for (auto& sum : sums_) sum = Vec<A>{};
    }
    ~GradStage() {
        if (!to_) return;
        for (int64_t i = 0; i < count_; ++i) to_[i] = last_ ? sums_[0][i] : sum_lanes<A>(sums_[i]);
    }
    Vec<A> pixel(Vec<A> v, int64_t x) {
        if (last_ && x_) sums_[0] += v * load_channels(x_ + x * pixel_step_, count_);
        return last_ ? v * style_ : v;
    }
    Vec<A> line(Vec<A> v, int i, int64_t x, int64_t count) {
        if (x_) {
            const A* from = x_ + i * step_ + x;
            sums_[i] += v * (count == kWidth<A> ? load(from) : load_first(from, count));
        }
        return v * broadcast(style_[i]);
    }

  private:
    bool last_;
    int64_t count_, step_, pixel_step_;
    Vec<A> style_;
    const A* x_ = nullptr;
    A* to_ = nullptr;
    Vec<A> sums_[kWidth<A>];
};

// Memory that is kept from call to call: fresh pages cost as much as the convolution of a small map. A second thread
// that calls meanwhile gets memory of its own, and with AddressSanitizer each piece is apart.
class Workspace {
  public:
    explicit Workspace(size_t bytes) : kept_(mutex(), std::try_to_lock) {
#if !defined(ANIFAST_ADDRESS_SANITIZER)
        std::vector<Line>& memory = kept_.owns_lock() ? shared() : own_;
        const size_t lines = bytes / sizeof(Line);
        if (memory.size() < lines) {
            memory = {};
            memory = std::vector<Line>(lines);
        }
        next_ = memory.data();
#endif
    }
    template <class A>
    A* take(int64_t count) {
#if defined(ANIFAST_ADDRESS_SANITIZER)
        void* piece = nullptr;
        if (posix_memalign(&piece, sizeof(Line), std::max<size_t>(count * sizeof(A), 1)) != 0) throw std::bad_alloc();
        pieces_.emplace_back(piece, &std::free);
        return static_cast<A*>(piece);
#else
        A* taken = reinterpret_cast<A*>(next_);
        next_ += bytes<A>(count) / sizeof(Line);
        return taken;
#endif
    }
    // What `take` uses of it.
    template <class A>
    static size_t bytes(int64_t count) {
        return (count * sizeof(A) + sizeof(Line) - 1) / sizeof(Line) * sizeof(Line);
    }

  private:
    struct alignas(64) Line {
        Line() {}  // leaves its memory as it is
        char values[64];
    };
    static std::mutex& mutex() {
        static std::mutex only;
        return only;
    }
    static std::vector<Line>& shared() {
        static std::vector<Line> kept;
        return kept;
    }
    std::unique_lock<std::mutex> kept_;
    std::vector<Line> own_;
    std::vector<std::unique_ptr<void, decltype(&std::free)>> pieces_;
    Line* next_ = nullptr;
};

}  // namespace
}  // namespace anifast
