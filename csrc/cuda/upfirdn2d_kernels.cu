// upfirdn2d on the GPU: device code and launches. anifast/ops/upfirdn2d.py tells the contract.
//
// Three kernels. Two are for 4 x 4 taps with up = down = 1, down 2 or up 2, which is what the systems use, the third is
// for everything else and for float64. All three correlate along both axes at once. For 4 x 4 taps a separable kernel
// would save little: a thread that sums along rows first does that also for the rows it shares with its neighbours,
// which makes 11 multiplications an output instead of 16 for the blur, and no fewer for down 2 (16) and up 2 (4). Taps
// stay on the device, and the host never looks at them.
//
//   planes   contiguous maps. A block takes a tile of one map, or several small maps. It loads the input of the tile
//            with its borders into shared memory, as floats, zeros where there is padding. A thread then sums 4 x 4
//            neighbouring outputs (down 2: 2 x 2) in registers, reading each row of its window with two vector loads.
//            Where the lines of the output are not whole vectors (257 columns), the sums go back through shared memory,
//            so that neighbouring threads write neighbouring elements.
//   pixels   channels last, in chunks of 4 channels. A thread takes one chunk of one column and walks down, with the
//            unfinished rows (blur 4, down 2) or the row before (up 2) in registers. Neighbouring columns find their
//            common inputs in the first cache.
//   general  one element of the output a thread, from the taps that meet a sample.
//
// Bytes of DRAM, elements of b bytes: x and out once each, + b with `add`, + 1/8 per plane of the mask, + b / channels
// of noise. That is 2b an element for the blur, 1.25b an input for down 2, 1.25b an output for up 2. What tiles share
// is read again by a block that runs at the same time, out of the second cache: (131 x 35) / (128 x 32) = 1.12 of x for
// the blur's tile of 128 x 32, and 19 / 16 for 16 rows of pixels.
//
// What a multiprocessor of an H100 (3.35 TB/s, 132 of them at 1.7 GHz) has time for: 1.9 float elements of a blur a
// clock, 3.7 of 16 bits, in one wavefront of 128 bytes of shared memory a clock and 128 instructions of a thread. The
// tile costs an element 1/8 wavefront to write by 16 bytes of float (4 threads meet in a bank), 1/16 by pairs of 16
// bits, and 14/128 to read: 0.44 and 0.63 a clock. Pairs and not more, because 8 threads would meet in a bank. Each
// thread has 4 to 8 loads on their way, 16 KiB or more in 4 blocks, where the rate takes some 10 KiB.
#include <algorithm>

#include "device.h"
#include "upfirdn2d.h"

namespace anifast {
namespace {

constexpr int kThreads = 256;
constexpr int kTaps = 4;  // of an axis, in the two fast kernels
constexpr int kAllTaps = kTaps * kTaps;
constexpr int kLanes = 32;       // planes: most threads along a row of a tile
constexpr int kCells = 6080;     // planes: floats of a tile, so that 4 blocks need less than 100 KB
constexpr int kPixelChunk = 4;   // pixels: channels of a thread
constexpr int kPixelRows = 16;   // pixels: most rows of the output for a thread
constexpr int kFewestRows = 4;   // pixels: fewest, however small the grid is
constexpr int kFewBlocks = 2;    // blocks for each multiprocessor that cuts aim at where there is little work
constexpr int kManyBlocks = 16;  // general: blocks for each multiprocessor in the whole grid
constexpr int64_t kFarthest = int64_t{1} << 28;  // sums of a few positions below it fit 32 bits

// What stands behind the filter, and where it goes.
template <typename A>
struct Epilogue {
    const void *scale, *bias, *noise, *strength, *add;
    void* out;
    uint8_t* mask;
    int64_t mask_plane;  // bytes
    bool scale_wide, bias_wide, strength_wide, shared_noise;
    Activation<A> act;
};

// What is the same for all pixels of N maps.
template <typename T, int N>
struct Factors {
    Accumulate<T> scale[N], bias[N], strength;

    __device__ __forceinline__ void load(const Epilogue<Accumulate<T>>& to, int64_t map, int64_t channel) {
        using A = Accumulate<T>;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            scale[i] = to.scale ? load_widened<T>(to.scale, to.scale_wide, map + i) : A(1);
            bias[i] = to.bias ? load_widened<T>(to.bias, to.bias_wide, channel + i) : A(0);
        }
        strength = to.strength ? load_widened<T>(to.strength, to.strength_wide, 0) : A(1);
    }
};

// What is read for each chunk of the output; loaded for several before the first is used.
template <typename T, int V, bool kPixels>
struct Beside {
    Chunk<T, kPixels ? 1 : V> noise;
    Chunk<T, V> add;

    __device__ __forceinline__ void load(const Epilogue<Accumulate<T>>& to, bool active, int64_t at, int64_t noise_at) {
        if (to.noise && active) noise = load_chunk<T, kPixels ? 1 : V>(to.noise, noise_at);
        if (to.add && active) add = load_chunk<T, V>(to.add, at);
    }
};

// The epilogue of V neighbours and their one store. `byte` and `shift` say where their bits are in the mask. All
// threads of a warp must call it.
template <typename T, int V, bool kPixels>
__device__ __forceinline__ void finish(const Epilogue<Accumulate<T>>& to, const Factors<T, kPixels ? V : 1>& factors,
                                       const Beside<T, V, kPixels>& beside, Accumulate<T> (&value)[V], bool active,
                                       int64_t at, int64_t byte, int shift) {
    unsigned positive = 0, kept = 0;
    if (active) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            value[i] = value[i] * factors.scale[kPixels ? i : 0] + factors.bias[kPixels ? i : 0];
            if (to.noise) value[i] += factors.strength * element(beside.noise, kPixels ? 0 : i);
        }
        to.act.apply(value, positive, kept);
        Chunk<T, V> out;
#pragma unroll
        for (int i = 0; i < V; ++i) {
            if (to.add) value[i] += element(beside.add, i);
            narrow(value[i], out.value[i]);
        }
        store_chunk(to.out, at, out);
    }
    if (to.mask) {
        store_bits<V>(to.mask + byte, positive, shift, active);
        if (to.act.clamped) store_bits<V>(to.mask + to.mask_plane + byte, kept, shift, active);
    }
}

// What the two fast kernels know of a call. Sizes, and offsets within one map or image, have 32 bits.
template <typename A>
struct FastTask {
    const void* x;
    const A* kernel;
    Epilogue<A> to;
    A gain;
    bool flip, matrix;
    int channels, in_rows, in_columns, out_rows, out_columns, pad_x, pad_y;
};

// The taps as correlated, times the gain, [y, x] or [x, y], by the first threads of a block.
template <bool kByColumn, typename A>
__device__ __forceinline__ void load_taps(const FastTask<A>& task, A* taps) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= kAllTaps) return;
    const int i = thread / kTaps, j = thread % kTaps;
    const int y = task.flip ? i : kTaps - 1 - i, x = task.flip ? j : kTaps - 1 - j;
    const A tap = task.matrix ? task.kernel[y * kTaps + x] : task.kernel[y] * task.kernel[x];
    taps[kByColumn ? j * kTaps + i : thread] = tap * task.gain;
}

// Walks over [plane, row, column] in steps of the block's threads, without a division a step.
struct Walk {
    int plane, row, column;
    int columns, rows;
    int plane_step, row_step, column_step;

    __device__ __forceinline__ Walk(int columns, int rows) : columns(columns), rows(rows) {
        const int thread = static_cast<int>(threadIdx.x);
        row = thread / columns;
        column = thread - row * columns;
        plane = row / rows;
        row -= plane * rows;
        row_step = kThreads / columns;
        column_step = kThreads - row_step * columns;
        plane_step = row_step / rows;
        row_step -= plane_step * rows;
    }
    __device__ __forceinline__ void next() {
        column += column_step;
        row += row_step;
        plane += plane_step;
        if (column >= columns) column -= columns, ++row;
        if (row >= rows) row -= rows, ++plane;
    }
};

// How the planes kernel cuts its work: by the sizes and the number of multiprocessors alone.
template <int kUp, int kDown>
struct PlanesCut {
    static constexpr int kBlock = kDown == 2 ? 2 : 4;           // outputs of a thread along each axis
    static constexpr int kStride = kBlock * kDown / kUp;        // inputs from thread to thread
    static constexpr int kHalo = kUp == 2 ? 2 : kTaps - kDown;  // inputs of a tile beyond its threads' strides
    static constexpr int kWindow = kStride + kHalo;             // inputs of a thread along each axis
    static constexpr int kSpare = kUp == 2 ? kHalo : 4;         // floats behind a row, for whole vectors
    static constexpr int kLoaded = kUp == 1 && kDown == 1 ? 8 : kWindow;  // floats that a thread reads of a row

    int lanes, groups, planes;  // threads along a row; down a map; maps of a block
    int tiles_x, tiles_y, blocks;
    int pitch, tile_rows;  // of the tile's input

    explicit PlanesCut(const Upfirdn2dParams& params) {
        const int64_t maps = params.batch * params.channels, wanted = int64_t{kFewBlocks} * params.processors;
        const int64_t chunks = divide_up(params.out_columns, kBlock), steps = divide_up(params.out_rows, kBlock);
        constexpr int64_t kByte = 8 / kBlock;  // the threads that share a byte of the mask are neighbours in one row
        const int64_t across = divide_up(chunks, kLanes);
        lanes = static_cast<int>(divide_up(divide_up(chunks, across), kByte) * kByte);
        pitch = lanes * kStride + kSpare;
        const int64_t most = std::min<int64_t>(kThreads / lanes, (kCells / pitch - kHalo) / kStride);
        int64_t down = divide_up(steps, most);
        while (divide_up(steps, down) > 4 && maps * across * down < wanted) down *= 2;
        groups = static_cast<int>(divide_up(steps, down));
        tile_rows = groups * kStride + kHalo;
        planes = 1;
        if (across == 1 && down == 1) {
            const int64_t room = std::min(kThreads / (lanes * groups), kCells / (pitch * tile_rows));
            planes = static_cast<int>(std::max<int64_t>(1, std::min(room, maps / wanted)));
        }
        tiles_x = static_cast<int>(across);
        tiles_y = static_cast<int>(down);
        blocks = static_cast<int>(across * down * divide_up(maps, planes));
    }
};

template <typename A>
struct PlanesTask : FastTask<A> {
    int maps;
    int lanes, groups, planes, tiles_x, tiles_y, pitch, tile_rows, tile_columns;
    bool vector_in, vector_out;  // lines are whole aligned vectors
};

// Loads the input of a block's tile into shared memory by units of L elements, zeros where there is padding.
template <typename T, int L>
__device__ __forceinline__ void load_tile(const PlanesTask<float>& task, int first_map, int first_row, int first_column,
                                          float* cells) {
    constexpr int kBatch = L == 1 ? 8 : 4;
    const int shift = first_column & (L - 1);  // the first unit may begin before the tile, so as to be aligned
    const int units = (task.tile_columns + shift + L - 1) / L, all = units * task.tile_rows * task.planes;
    Walk walk(units, task.tile_rows);
    for (int done = static_cast<int>(threadIdx.x); done < all; done += kBatch * kThreads) {
        Chunk<T, L> unit[kBatch];
        int cell[kBatch], column[kBatch];
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            const int map = first_map + walk.plane, row = first_row + walk.row;
            column[u] = walk.column * L - shift;
            const int x = first_column + column[u];
            const bool inside = done + u * kThreads < all;
            cell[u] = inside ? (walk.plane * task.tile_rows + walk.row) * task.pitch + column[u] : -L;
            memset(&unit[u], 0, sizeof(unit[u]));
            if (inside && map < task.maps && row >= 0 && row < task.in_rows && x >= 0 && x < task.in_columns) {
                const int64_t at = static_cast<int64_t>(map) * (task.in_rows * task.in_columns);
                unit[u] = load_chunk<T, L>(task.x, at + (row * task.in_columns + x));
            }
            walk.next();
        }
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
#pragma unroll
            for (int i = 0; i < L; ++i) {
                const bool within = L == 1 || static_cast<unsigned>(column[u] + i) < unsigned(task.tile_columns);
                if (cell[u] + i >= 0 && within) cells[cell[u] + i] = element(unit[u], i);
            }
        }
    }
}

// Reads neighbours as two vectors.
template <int kLow, int kHigh>
__device__ __forceinline__ void load_window(const float* from, float (&window)[kLow + kHigh]) {
    const auto low = load_chunk<float, kLow>(from, 0);
    const auto high = load_chunk<float, kHigh>(from, kLow);
#pragma unroll
    for (int i = 0; i < kLow; ++i) window[i] = low.value[i];
#pragma unroll
    for (int i = 0; i < kHigh; ++i) window[kLow + i] = high.value[i];
}

// The sums of a thread's block of outputs. `cells` is its window's first cell, up 2: `odd_` tells whether a pad is odd.
template <int kUp, int kDown>
__device__ __forceinline__ void sum_window(const float* cells, int pitch, const float* taps, bool odd_x, bool odd_y,
                                           float (&sum)[PlanesCut<kUp, kDown>::kBlock][PlanesCut<kUp, kDown>::kBlock]) {
    using Cut = PlanesCut<kUp, kDown>;
    constexpr int kBlock = Cut::kBlock;
    float weight[kTaps][kTaps];
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
#pragma unroll
        for (int j = 0; j < kTaps; ++j)
            weight[i][j] = taps[(kUp == 2 ? i ^ odd_y : i) * kTaps + (kUp == 2 ? j ^ odd_x : j)];
    }
    if constexpr (kUp == 2) {
        // Output i of the thread meets inputs first and first + 1, first = (i + odd + 1) / 2, under the taps of its
        // phase i % 2 (of an even pad; an odd one swaps the phases).
#pragma unroll
        for (int i = 0; i < kBlock; ++i) {
            const float* const row = cells + (i + odd_y + 1) / 2 * pitch;
#pragma unroll
            for (int a = 0; a < 2; ++a) {
                float window[Cut::kWindow];
                load_window<Cut::kLoaded / 2, Cut::kLoaded / 2>(row + a * pitch, window);
#pragma unroll
                for (int j = 0; j < kBlock; ++j) {
#pragma unroll
                    for (int b = 0; b < 2; ++b) {
                        const int even = (j + 1) / 2 + b, odd = (j + 2) / 2 + b;  // both known when this is compiled
                        sum[i][j] += weight[i % 2 + 2 * a][j % 2 + 2 * b] * (odd_x ? window[odd] : window[even]);
                    }
                }
            }
        }
    } else {
#pragma unroll
        for (int r = 0; r < Cut::kWindow; ++r) {
            float window[Cut::kLoaded];
            load_window<4, Cut::kLoaded - 4>(cells + r * pitch, window);
#pragma unroll
            for (int i = 0; i < kBlock; ++i) {
                if (r < i * kDown || r >= i * kDown + kTaps) continue;
#pragma unroll
                for (int j = 0; j < kBlock; ++j) {
#pragma unroll
                    for (int t = 0; t < kTaps; ++t) sum[i][j] += weight[r - i * kDown][t] * window[j * kDown + t];
                }
            }
        }
    }
}

template <typename T, int kUp, int kDown>
__global__ void __launch_bounds__(kThreads) upfirdn2d_planes_kernel(const PlanesTask<float> task) {
    using Cut = PlanesCut<kUp, kDown>;
    constexpr int kBlock = Cut::kBlock;
    using Vector = Chunk<float, 4>;
    ANIFAST_SHARED(Vector, tile, kCells / 4);
    ANIFAST_SHARED(float, taps, kAllTaps);
    float* const cells = reinterpret_cast<float*>(tile);

    const int block = static_cast<int>(blockIdx.x);
    const int tile_x = block % task.tiles_x, tile_y = block / task.tiles_x % task.tiles_y;
    const int first_map = block / task.tiles_x / task.tiles_y * task.planes;
    const int columns = task.lanes * kBlock, rows = task.groups * kBlock;  // of the tile's output
    const int from_x = tile_x * columns * kDown - task.pad_x, from_y = tile_y * rows * kDown - task.pad_y;
    const int first_column = kUp == 2 ? from_x >> 1 : from_x, first_row = kUp == 2 ? from_y >> 1 : from_y;
    load_taps<false>(task, taps);
    constexpr int kUnit = sizeof(T) == 4 ? 4 : 2;
    if (task.vector_in) {
        load_tile<T, kUnit>(task, first_map, first_row, first_column, cells);
    } else {
        load_tile<T, 1>(task, first_map, first_row, first_column, cells);
    }
    __syncthreads();

    const int thread = static_cast<int>(threadIdx.x);
    const int group = thread / task.lanes, lane = thread - group * task.lanes;
    const int local = group / task.groups, step = group - local * task.groups;
    const bool working = local < task.planes;
    float sum[kBlock][kBlock] = {};
    if (working) {
        const int first = (local * task.tile_rows + step * Cut::kStride) * task.pitch + lane * Cut::kStride;
        sum_window<kUp, kDown>(cells + first, task.pitch, taps, task.pad_x & 1, task.pad_y & 1, sum);
    }

    const int64_t out_size = task.out_rows * task.out_columns;
    if (task.vector_out) {
        constexpr int kBatch = 2;
        const int map = first_map + local, sample = map / task.channels;
        const int column = tile_x * columns + lane * kBlock;
        const bool wanted = working && map < task.maps && column < task.out_columns;
        const int64_t noise_shift = ((task.to.shared_noise ? 0 : sample) - int64_t{map}) * out_size;
        Factors<T, 1> factors{};
        if (wanted) factors.load(task.to, map, map - sample * task.channels);
#pragma unroll
        for (int i = 0; i < kBlock; i += kBatch) {
            bool active[kBatch];
            int64_t at[kBatch];
            Beside<T, kBlock, false> beside[kBatch];
#pragma unroll
            for (int u = 0; u < kBatch; ++u) {
                const int row = tile_y * rows + step * kBlock + i + u;
                active[u] = wanted && row < task.out_rows;
                at[u] = map * out_size + int64_t{row} * task.out_columns + column;
                beside[u].load(task.to, active[u], at[u], at[u] + noise_shift);
            }
#pragma unroll
            for (int u = 0; u < kBatch; ++u) {
                finish<T, kBlock, false>(task.to, factors, beside[u], sum[i + u], active[u], at[u], at[u] / 8,
                                         at[u] % 8);
            }
        }
        return;
    }

    __syncthreads();  // all windows are read
    if (working) {
#pragma unroll
        for (int i = 0; i < kBlock; ++i) {
            Chunk<float, kBlock> chunk;
#pragma unroll
            for (int j = 0; j < kBlock; ++j) chunk.value[j] = sum[i][j];
            store_chunk(cells, (local * rows + step * kBlock + i) * columns + lane * kBlock, chunk);
        }
    }
    __syncthreads();
    constexpr int kBatch = 4;
    const int all = columns * rows * task.planes;
    Walk walk(columns, rows);
    for (int done = 0; done < all; done += kBatch * kThreads) {  // the same number of steps for all threads
        bool active[kBatch];
        int64_t at[kBatch];
        Factors<T, 1> factors[kBatch];
        Beside<T, 1, false> beside[kBatch];
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            const int map = first_map + walk.plane;
            const int row = tile_y * rows + walk.row, column = tile_x * columns + walk.column;
            active[u] = walk.plane < task.planes && map < task.maps && row < task.out_rows && column < task.out_columns;
            at[u] = map * out_size + int64_t{row} * task.out_columns + column;
            if (active[u]) {
                const int sample = map / task.channels;
                factors[u].load(task.to, map, map - sample * task.channels);
                beside[u].load(task.to, true, at[u], at[u] + ((task.to.shared_noise ? 0 : sample) - map) * out_size);
            }
            walk.next();
        }
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            const int cell = done + u * kThreads + thread;
            float value[1] = {active[u] ? cells[cell] : 0.0f};
            finish<T, 1, false>(task.to, factors[u], beside[u], value, active[u], at[u], at[u] / 8, at[u] % 8);
        }
    }
}

template <typename A>
struct PixelsTask : FastTask<A> {
    int chunks, line, blocks_x, strips, rows;  // chunks of a pixel and of a line; blocks of a line; strips, their rows
    int mask_stride;                           // bytes of a pixel
};

// The inputs under a thread's column of the output.
template <typename T>
struct Column {
    static constexpr int V = kPixelChunk;
    const void* x;    // of the image
    unsigned first;   // offset of the first one in row 0; wraps around, like all offsets here, where it lies outside
    unsigned inside;  // bit t: that the one under tap t is no padding

    // Those of a row, zeros where there is padding.
    template <int N>
    __device__ __forceinline__ void load(const PixelsTask<float>& task, int row, Chunk<T, V> (&window)[N]) const {
        const unsigned there = row >= 0 && row < task.in_rows ? inside : 0;
        const unsigned channels = task.channels, at = first + row * (task.in_columns * channels);
#pragma unroll
        for (int t = 0; t < N; ++t) {
            memset(&window[t], 0, sizeof(window[t]));
            if (there >> t & 1) window[t] = load_chunk<T, V>(x, at + t * channels);
        }
    }
};

template <typename T, int kUp, int kDown>
__global__ void __launch_bounds__(kThreads, 4) upfirdn2d_pixels_kernel(const PixelsTask<float> task) {
    constexpr int V = kPixelChunk;
    using Taps = Chunk<float, kTaps>;
    ANIFAST_SHARED(Taps, tap_columns, kTaps);
    float* const taps = reinterpret_cast<float*>(tap_columns);
    load_taps<true>(task, taps);
    __syncthreads();

    const int block = static_cast<int>(blockIdx.x);
    const int strip = block / task.blocks_x % task.strips, sample = block / task.blocks_x / task.strips;
    const int place = block % task.blocks_x * kThreads + static_cast<int>(threadIdx.x);
    const int out_column = place / task.chunks, channel = (place - out_column * task.chunks) * V;
    const int from_x = out_column * kDown - task.pad_x;
    const int odd_x = from_x & 1;  // up 2: the phase of this column
    const int64_t in_size = static_cast<int64_t>(task.in_rows) * task.in_columns * task.channels;
    const int64_t pixels = static_cast<int64_t>(task.out_rows) * task.out_columns;
    const bool working = place < task.line && channel < task.channels;
    const int in_column = kUp == 2 ? (from_x + odd_x) >> 1 : from_x;
    const unsigned first = static_cast<unsigned>(in_column) * task.channels + channel;
    Column<T> column{static_cast<const T*>(task.x) + sample * in_size, first, 0};
#pragma unroll
    for (int t = 0; t < kTaps / kUp; ++t) {
        column.inside |= static_cast<unsigned>(working && in_column + t >= 0 && in_column + t < task.in_columns) << t;
    }
    const int first_row = strip * task.rows;
    const int last_row = first_row + task.rows < task.out_rows ? first_row + task.rows : task.out_rows;

    const auto write = [&](int row, float (&sum)[V]) {
        int here = channel;
        asm volatile("" : "+r"(here));  // or addresses of scale and bias would take eight registers through the loop
        const int64_t pixel = sample * pixels + (row * task.out_columns + out_column);
        const int64_t at = pixel * task.channels + here;
        Factors<T, V> factors{};
        Beside<T, V, true> beside;
        if (working) factors.load(task.to, sample * static_cast<int64_t>(task.channels) + here, here);
        beside.load(task.to, working, at,
                    (task.to.shared_noise ? 0 : sample * pixels) + (row * task.out_columns + out_column));
        finish<T, V, true>(task.to, factors, beside, sum, working, at, pixel * task.mask_stride + here / 8, here % 8);
    };

    if constexpr (kUp == 2) {
        float weight[kTaps][2];
#pragma unroll
        for (int i = 0; i < kTaps; ++i) {
#pragma unroll
            for (int b = 0; b < 2; ++b) weight[i][b] = taps[(odd_x + 2 * b) * kTaps + i];
        }
        // Between inputs i and i + 1 lie the outputs 2 i + pad - phase.
        Chunk<T, V> before[2], behind[2];
        int input = (first_row - task.pad_y + 1) >> 1;
        column.load(task, input, before);
        for (; 2 * input + task.pad_y - 1 < last_row; ++input) {
            column.load(task, input + 1, behind);
#pragma unroll
            for (int phase = 1; phase >= 0; --phase) {
                const int row = 2 * input + task.pad_y - phase;
                if (row < first_row || row >= last_row) continue;
                float sum[V] = {};
#pragma unroll
                for (int b = 0; b < 2; ++b) {
#pragma unroll
                    for (int i = 0; i < V; ++i) {
                        sum[i] +=
                            weight[phase][b] * element(before[b], i) + weight[phase + 2][b] * element(behind[b], i);
                    }
                }
                write(row, sum);
            }
            before[0] = behind[0];
            before[1] = behind[1];
        }
    } else {
        constexpr int kOpen = kTaps / kDown;  // rows of the output that an input meets
        float sum[kOpen][V] = {};             // the oldest first
        int input = first_row * kDown - task.pad_y;
        for (int row = first_row - (kOpen - 1); row < last_row; ++row) {  // which row the oldest is
#pragma unroll
            for (int d = 0; d < kDown; ++d) {
                Chunk<T, V> window[kTaps];
                column.load(task, input++, window);
#pragma unroll
                for (int t = 0; t < kTaps; ++t) {
                    // Read again for each row: held through the loop, all taps would cost a block of each four.
                    const auto weight = load_chunk<float, kTaps>(taps, t * kTaps);
#pragma unroll
                    for (int i = 0; i < V; ++i) {
                        const float value = element(window[t], i);
#pragma unroll
                        for (int o = 0; o < kOpen; ++o) sum[o][i] += weight.value[(kOpen - 1 - o) * kDown + d] * value;
                    }
                }
            }
            if (row >= first_row) write(row, sum[0]);
#pragma unroll
            for (int o = 0; o < kOpen; ++o) {
#pragma unroll
                for (int i = 0; i < V; ++i) sum[o][i] = o + 1 < kOpen ? sum[o + 1][i] : 0.0f;
            }
        }
    }
}

// One axis of the general kernel.
template <typename S>
struct Axis {
    S in, out, up, down, pad, taps;
};

template <typename A, typename Index>
struct GeneralTask {
    using S = std::make_signed_t<Index>;
    const void* x;
    const A* kernel;
    Epilogue<A> to;
    A gain;
    bool flip, matrix, channels_last;
    Axis<S> across, along;                       // y, x
    Index channels, row_units;                   // row_units: channels last, units of a pixel: whole bytes of the mask
    Index units;                                 // of work, one a thread
    Index x_sample, x_channel, x_row, x_column;  // distances of elements
    Index mask_stride;
};

template <typename T, typename Index>
__global__ void __launch_bounds__(kThreads, 4) upfirdn2d_general_kernel(const GeneralTask<Accumulate<T>, Index> task) {
    using A = Accumulate<T>;
    using S = std::make_signed_t<Index>;
    const Index rows = task.across.out, columns = task.along.out;
    const T* const x = static_cast<const T*>(task.x);
    for (Index done = static_cast<Index>(blockIdx.x) * kThreads; done < task.units;  // the same for all threads
         done += static_cast<Index>(gridDim.x) * kThreads) {
        const Index unit = done + threadIdx.x;
        Index channel, pixel;
        if (task.channels_last) {
            pixel = unit / task.row_units;
            channel = unit - pixel * task.row_units;
        } else {
            const Index map = unit / (rows * columns), sample = map / task.channels;
            channel = map - sample * task.channels;
            pixel = unit - (map - sample) * (rows * columns);  // less the maps that are no samples
        }
        const Index line = pixel / columns, sample = line / rows;
        const S column = pixel - line * columns, row = line - sample * rows;
        const Index at = task.channels_last ? pixel * task.channels + channel : unit;
        const bool active = unit < task.units && channel < task.channels;
        A value[1] = {};
        Factors<T, 1> factors{};
        Beside<T, 1, true> beside;
        beside.load(task.to, active, at, task.to.shared_noise ? pixel - sample * (rows * columns) : pixel);
        if (active) {
            factors.load(task.to, sample * task.channels + channel, channel);
            const auto& along = task.along;
            const auto& across = task.across;
            const S from_x = column * along.down - along.pad, from_y = row * across.down - across.pad;
            // the first taps that meet a sample, and the samples under them
            S phase_x = from_x % along.up, phase_y = from_y % across.up;
            phase_x = phase_x > 0 ? along.up - phase_x : -phase_x;
            phase_y = phase_y > 0 ? across.up - phase_y : -phase_y;
            const S first_x = (from_x + phase_x) / along.up;
            S y = (from_y + phase_y) / across.up;
            for (S i = phase_y; i < across.taps; i += across.up, ++y) {
                if (y < 0 || y >= across.in) continue;
                const S tap_y = task.flip ? i : across.taps - 1 - i;
                const A* const taps = task.kernel + (task.matrix ? tap_y * along.taps : 0);
                const T* const samples = x + sample * task.x_sample + channel * task.x_channel + y * task.x_row;
                A sum = 0;
                S xs = first_x;
                for (S j = phase_x; j < along.taps; j += along.up, ++xs) {
                    if (xs < 0 || xs >= along.in) continue;
                    sum += taps[task.flip ? j : along.taps - 1 - j] * widen(samples[xs * task.x_column]);
                }
                value[0] += task.matrix ? sum : task.kernel[tap_y] * sum;
            }
            value[0] *= task.gain;
        }
        const Index byte = task.channels_last ? pixel * task.mask_stride + channel / 8 : unit / 8;
        finish<T, 1, true>(task.to, factors, beside, value, active, at, byte,
                           (task.channels_last ? channel : unit) % 8);
    }
}

template <typename A>
Epilogue<A> make_epilogue(const Upfirdn2dParams& params) {
    Epilogue<A> to{};
    to.scale = params.scale;
    to.bias = params.bias;
    to.noise = params.noise;
    to.strength = params.strength;
    to.add = params.add;
    to.out = params.out;
    to.mask = params.mask;
    const int64_t pixels = params.batch * params.out_rows * params.out_columns;
    to.mask_plane = params.channels_last ? pixels * divide_up(params.channels, 8) : pixels * params.channels / 8;
    to.scale_wide = params.scale_wide;
    to.bias_wide = params.bias_wide;
    to.strength_wide = params.strength_wide;
    to.shared_noise = params.shared_noise;
    to.act.gain = static_cast<A>(params.act_gain);
    to.act.negative_gain = static_cast<A>(params.act_gain * params.slope);
    to.act.clamp = static_cast<A>(params.clamp);
    to.act.clamped = params.clamped;
    return to;
}

template <typename Task>
Task make_fast_task(const Upfirdn2dParams& params) {
    Task task{};
    task.x = params.x;
    task.kernel = static_cast<const float*>(params.kernel);
    task.to = make_epilogue<float>(params);
    task.gain = static_cast<float>(params.gain);
    task.flip = params.flip;
    task.matrix = params.matrix;
    task.channels = static_cast<int>(params.channels);
    task.in_rows = static_cast<int>(params.in_rows);
    task.in_columns = static_cast<int>(params.in_columns);
    task.out_rows = static_cast<int>(params.out_rows);
    task.out_columns = static_cast<int>(params.out_columns);
    task.pad_x = static_cast<int>(params.pad_x);
    task.pad_y = static_cast<int>(params.pad_y);
    return task;
}

template <typename T, int kUp, int kDown>
cudaError_t planes_launch(const Upfirdn2dParams& params, cudaStream_t stream) {
    using Cut = PlanesCut<kUp, kDown>;
    const Cut cut(params);
    auto task = make_fast_task<PlanesTask<float>>(params);
    task.maps = static_cast<int>(params.batch * params.channels);
    task.lanes = cut.lanes;
    task.groups = cut.groups;
    task.planes = cut.planes;
    task.tiles_x = cut.tiles_x;
    task.tiles_y = cut.tiles_y;
    task.pitch = cut.pitch;
    task.tile_rows = cut.tile_rows;
    task.tile_columns = cut.lanes * Cut::kStride + Cut::kHalo;
    constexpr int kUnit = sizeof(T) == 4 ? 4 : 2;
    constexpr int64_t kOut = Cut::kBlock * sizeof(T);
    task.vector_in = params.in_columns % kUnit == 0 && aligned(params.x, kUnit * sizeof(T));
    task.vector_out = params.out_columns % Cut::kBlock == 0 && aligned(params.out, kOut) && aligned(params.add, kOut) &&
                      aligned(params.noise, kOut);
    const auto kernel = &upfirdn2d_planes_kernel<T, kUp, kDown>;
    ANIFAST_LAUNCH(kernel, dim3(static_cast<unsigned>(cut.blocks)), kThreads, stream, task);
    return cudaGetLastError();
}

template <typename T, int kUp, int kDown>
cudaError_t pixels_launch(const Upfirdn2dParams& params, cudaStream_t stream) {
    auto task = make_fast_task<PixelsTask<float>>(params);
    constexpr int64_t kByte = 8 / kPixelChunk;
    int64_t chunks = params.channels / kPixelChunk;
    if (params.mask) chunks = divide_up(chunks, kByte) * kByte;  // the threads that share a byte are neighbours
    const int64_t line = params.out_columns * chunks, across = divide_up(line, kThreads);
    int64_t rows = kPixelRows;
    const auto blocks = [&] { return across * divide_up(params.out_rows, rows) * params.batch; };
    while (rows > kFewestRows && blocks() < int64_t{4} * kFewBlocks * params.processors) rows /= 2;
    task.chunks = static_cast<int>(chunks);
    task.line = static_cast<int>(line);
    task.blocks_x = static_cast<int>(across);
    task.strips = static_cast<int>(divide_up(params.out_rows, rows));
    task.rows = static_cast<int>(rows);
    task.mask_stride = static_cast<int>(divide_up(params.channels, 8));
    const auto kernel = &upfirdn2d_pixels_kernel<T, kUp, kDown>;
    ANIFAST_LAUNCH(kernel, dim3(static_cast<unsigned>(blocks())), kThreads, stream, task);
    return cudaGetLastError();
}

template <typename T, typename Index>
cudaError_t general_launch(const Upfirdn2dParams& params, cudaStream_t stream) {
    using A = Accumulate<T>;
    using S = std::make_signed_t<Index>;
    const auto axis = [](int64_t in, int64_t out, int64_t up, int64_t down, int64_t pad, int64_t taps) {
        return Axis<S>{S(in), S(out), S(up), S(down), S(pad), S(taps)};
    };
    GeneralTask<A, Index> task{};
    task.x = params.x;
    task.kernel = static_cast<const A*>(params.kernel);
    task.to = make_epilogue<A>(params);
    task.gain = static_cast<A>(params.gain);
    task.flip = params.flip;
    task.matrix = params.matrix;
    task.channels_last = params.channels_last;
    task.along = axis(params.in_columns, params.out_columns, params.up_x, params.down_x, params.pad_x, params.taps_x);
    task.across = axis(params.in_rows, params.out_rows, params.up_y, params.down_y, params.pad_y, params.taps_y);
    const int64_t padded = params.mask ? divide_up(params.channels, 8) * 8 : params.channels;
    const int64_t row_units = params.channels_last ? padded : 1;
    const int64_t pixels = params.batch * params.out_rows * params.out_columns;
    const int64_t units = pixels * (params.channels_last ? row_units : params.channels);
    const int64_t image = params.in_rows * params.in_columns;
    task.channels = static_cast<Index>(params.channels);
    task.row_units = static_cast<Index>(row_units);
    task.units = static_cast<Index>(units);
    task.x_sample = static_cast<Index>(image * params.channels);
    task.x_channel = static_cast<Index>(params.channels_last ? 1 : image);
    task.x_column = static_cast<Index>(params.channels_last ? params.channels : 1);
    task.x_row = static_cast<Index>(params.in_columns * (params.channels_last ? params.channels : 1));
    task.mask_stride = static_cast<Index>(divide_up(params.channels, 8));
    const int64_t most = int64_t{kManyBlocks} * params.processors;
    const auto kernel = &upfirdn2d_general_kernel<T, Index>;
    const auto blocks = static_cast<unsigned>(std::min(most, divide_up(units, kThreads)));
    ANIFAST_LAUNCH(kernel, dim3(blocks), kThreads, stream, task);
    return cudaGetLastError();
}

// Whether positions along an axis, and offsets within that many elements, fit 32 bits.
bool positions_fit(const Upfirdn2dParams& params, int64_t elements) {
    const auto small = [](int64_t value) { return -kFarthest < value && value < kFarthest; };
    return elements < ANIFAST_WIDE_INDEX_FROM && params.batch * params.channels < ANIFAST_WIDE_INDEX_FROM &&
           small(params.pad_x) && small(params.pad_y) && small(params.in_columns * params.up_x) &&
           small(params.in_rows * params.up_y) && small(params.out_columns * params.down_x) &&
           small(params.out_rows * params.down_y) && small(params.taps_x) && small(params.taps_y);
}

// What the fast kernels are made for: 0 nothing, else up + 2 * down of both axes.
int fast_form(const Upfirdn2dParams& params) {
    const bool square = params.up_x == params.up_y && params.down_x == params.down_y;
    const bool taps = params.taps_x == kTaps && params.taps_y == kTaps;
    if (params.dtype == DType::float64 || !square || !taps) return 0;
    if (params.up_x * params.down_x > 2) return 0;
    return static_cast<int>(params.up_x + 2 * params.down_x);
}

// Calls `function` with up and down as compile-time constants.
template <typename Function>
cudaError_t with_form(int form, const Function& function) {
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    return form == 3 ? function(One{}, One{}) : form == 5 ? function(One{}, Two{}) : function(Two{}, One{});
}

}  // namespace

cudaError_t upfirdn2d_launch(const Upfirdn2dParams& params, cudaStream_t stream) {
    const int form = fast_form(params);
    const int64_t out_map = params.out_rows * params.out_columns, in_map = params.in_rows * params.in_columns;
    const int64_t chunk = kPixelChunk * element_size(params.dtype);
    const bool chunks = params.channels % kPixelChunk == 0 && aligned(params.x, chunk) && aligned(params.out, chunk) &&
                        aligned(params.add, chunk);
    return with_type(params.dtype, [&](auto zero) {
        using T = decltype(zero);
        if constexpr (!std::is_same_v<T, double>) {
            const int64_t map = std::max(in_map, out_map), image = map * params.channels;
            const bool planes = form && !params.channels_last && positions_fit(params, map);
            const bool pixels = form && params.channels_last && chunks && positions_fit(params, image);
            if (planes || pixels) {
                return with_form(form, [&](auto up, auto down) {
                    constexpr int kUp = decltype(up)::value, kDown = decltype(down)::value;
                    return planes ? planes_launch<T, kUp, kDown>(params, stream)
                                  : pixels_launch<T, kUp, kDown>(params, stream);
                });
            }
        }
        const int64_t padded = params.channels + 7;
        const bool wide = !positions_fit(params, std::max(in_map, out_map) * padded * params.batch);
        return wide ? general_launch<T, int64_t>(params, stream) : general_launch<T, uint32_t>(params, stream);
    });
}

}  // namespace anifast
