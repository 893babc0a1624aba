// bias_lrelu on the CPU: see anifast/ops/bias_lrelu.py for the three ops and their contract.
//
// Memory is [outer, channels, inner]. A row is a run that is walked with one vector loop: the inner values of one
// channel (they share a bias), or, where inner is 1 (channels last), the channels of one pixel (they share a noise
// value). Work is cut into tasks whose borders depend on the sizes alone and whose sums are added in order, so that a
// gradient is the same whatever the number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
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

// How f, the factor of an element, is known: it is the gain everywhere, the value's own sign tells it, or the mask.
enum class Factor { kGain, kOwnSign, kMask };

// Values of a task: enough to hide its start, few enough for a sum in float32.
constexpr int64_t kTask = 16384;

struct Shape {
    int64_t outer, channels, inner;
    bool pixel_rows;  // a row is one pixel's channels
    int64_t rows, length, mask_stride;
    int64_t noise_planes = 1;  // each of `inner` values; 1 also where there is no noise

    Shape(at::IntArrayRef sizes, int64_t dim, bool channels_last) {
        const auto rank = static_cast<int64_t>(sizes.size());
        TORCH_CHECK(dim >= 0 && dim < rank, "bias_lrelu: dim must lie in [0, ", rank - 1, "], got ", dim);
        outer = 1, inner = 1, channels = sizes[dim];
        for (int64_t i = 0; i < dim; ++i) outer *= sizes[i];
        for (int64_t i = dim + 1; i < static_cast<int64_t>(sizes.size()); ++i)
            (channels_last ? outer : inner) *= sizes[i];
        pixel_rows = inner == 1;
        rows = pixel_rows ? outer : outer * channels;
        length = pixel_rows ? channels : inner;
        mask_stride = (length + 7) / 8;
    }
};

// A row and the channel and plane of noise that it meets, found by counting: a division takes as long as a short row.
struct Row {
    int64_t index, channel, noise;

    Row(int64_t index, const Shape& shape) : index(index) {
        channel = shape.pixel_rows ? 0 : index % shape.channels;
        noise = (shape.pixel_rows ? index : index / shape.channels) % shape.noise_planes;
    }
    void next(const Shape& shape) {
        ++index;
        if (!shape.pixel_rows && ++channel < shape.channels) return;
        channel = 0;
        if (++noise == shape.noise_planes) noise = 0;
    }
};

// Rows are cut into tasks of at most kTask values, or several whole rows make one task.
struct Tasks {
    int64_t pieces, together, count;

    explicit Tasks(const Shape& shape) {
        pieces = shape.pixel_rows ? 1 : std::max<int64_t>(1, (shape.length + kTask - 1) / kTask);
        together = pieces > 1 ? 1 : std::max<int64_t>(1, kTask / std::max<int64_t>(1, shape.length));
        count = pieces > 1 ? shape.rows * pieces : (shape.rows + together - 1) / together;
    }
    // Calls walk(row, begin, end) for every run of values of a task.
    template <class Walk>
    void run(int64_t task, const Shape& shape, const Walk& walk) const {
        if (pieces > 1) {
            const int64_t begin = task % pieces * kTask;
            walk(Row(task / pieces, shape), begin, std::min(begin + kTask, shape.length));
        } else {
            const int64_t last = std::min((task + 1) * together, shape.rows);
            for (Row row(task * together, shape); row.index < last; row.next(shape)) walk(row, 0, shape.length);
        }
    }
};

// What is known about the elements; null pointers are absent.
template <class T>
struct Inputs {
    using A = Accumulate<T>;
    const T* x;
    const A* bias;        // [channels]
    const T* noise;       // [noise_planes, inner]
    const T* residual;    // as x
    const uint8_t* bits;  // planes of [rows, mask_stride]
    int64_t plane;
    bool clamp_plane;
    A strength, gain, negative_gain, clamp, residual_gain;
};

template <class T>
struct Outputs {
    T* out;
    uint8_t* bits;
    int64_t plane;
};

// f * v for the n lanes at `i` of a row whose bits start at byte `base`, with f as forward left it behind. What was
// clamped is 0 even where v is inf or NaN, as in torch.clamp.
template <Factor kFactor, bool kFull, class T>
inline Vec<Accumulate<T>> times_factor(Vec<Accumulate<T>> v, const Inputs<T>& in, int64_t base, int64_t i, int64_t n) {
    using A = Accumulate<T>;
    const Vec<A> positive = broadcast<A>(in.gain), negative = broadcast<A>(in.negative_gain);
    if constexpr (kFactor == Factor::kGain) return v * positive;
    const int64_t byte = base + i / 8;
    const int64_t bytes = kFull ? kWidth<A> / 8 : (n + 7) / 8;
    uint32_t bits = 0;
    std::memcpy(&bits, in.bits + byte, bytes);
    v *= select<A>(from_bits<A>(bits), positive, negative);
    if (in.clamp_plane) {
        std::memcpy(&bits, in.bits + in.plane + byte, bytes);
        v = select<A>(from_bits<A>(bits), v, Vec<A>{});
    }
    return v;
}

// forward (kOwnSign) and masked: out = f * (x + strength * noise + bias). kRest brings in forward's mask, clamp and
// residual.
template <class T, bool kPixel, bool kNoise, bool kRest, Factor kFactor>
void apply(const Inputs<T>& inputs, const Outputs<T>& outputs, const Shape& shape) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;

    const auto walk = [&](const Row& row, int64_t begin, int64_t end) {
        // Copies stay in registers; what the lambda refers to is read again after each byte of the mask is written,
        // which may be any of it as far as the compiler knows.
        const Inputs<T> in = inputs;
        const Outputs<T> to = outputs;
        const Vec<A> positive = broadcast<A>(in.gain), negative = broadcast<A>(in.negative_gain);
        const Vec<A> limit = broadcast<A>(in.clamp);
        const int64_t base = row.index * shape.length, bits_base = row.index * shape.mask_stride;
        const T* noise = kNoise ? in.noise + row.noise * shape.inner : nullptr;
        Vec<A> constant{};
        if (!kPixel && in.bias) constant = broadcast<A>(in.bias[row.channel]);
        if (kPixel && kNoise) constant = broadcast<A>(in.strength * static_cast<A>(*noise));
        // out at the n lanes from `i`; the bits of the mask are shifted into `up` and `kept`.
        const auto step = [&](int64_t i, int64_t n, auto full, uint64_t& up, uint64_t& kept, int shift) {
            constexpr bool kFull = decltype(full)::value;
            Vec<A> v = load_n<kFull>(in.x + base + i, n);
            if constexpr (!kPixel || kNoise) v += constant;
            if constexpr (!kPixel && kNoise) v += in.strength * load_n<kFull>(noise + i, n);
            if (kPixel && in.bias) v += load_n<kFull>(in.bias + i, n);
            if constexpr (kFactor != Factor::kOwnSign) {
                v = times_factor<kFactor, kFull>(v, in, bits_base, i, n);
            } else {
                const LaneMask<A> positive_lanes = v > 0;
                v *= select<A>(positive_lanes, positive, negative);
                if constexpr (kRest) {
                    up |= uint64_t(to_bits<A>(positive_lanes)) << shift;
                    if (in.clamp_plane) {
                        kept |= uint64_t(to_bits<A>((v >= -limit) & (v <= limit))) << shift;
                        v = select<A>(v > limit, limit, v);
                        v = select<A>(v < -limit, -limit, v);
                    }
                    if (in.residual) v += in.residual_gain * load_n<kFull>(in.residual + base + i, n);
                }
            }
            store_n<kFull>(to.out + base + i, v, n);
        };
        const auto store_bits = [&](int64_t i, uint64_t up, uint64_t kept, int64_t bytes) {
            if (!kRest || !to.bits) return;
            std::memcpy(to.bits + bits_base + i / 8, &up, bytes);
            if (in.clamp_plane) std::memcpy(to.bits + to.plane + bits_base + i / 8, &kept, bytes);
        };
        // Four vectors at a time, so that their bits are one store.
        int64_t i = begin;
        for (; i + 4 * W <= end; i += 4 * W) {
            uint64_t up = 0, kept = 0;
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) step(i + k * W, W, std::true_type{}, up, kept, k * W);
            store_bits(i, up, kept, 4 * W / 8);
        }
        for (; i + W <= end; i += W) {
            uint64_t up = 0, kept = 0;
            step(i, W, std::true_type{}, up, kept, 0);
            store_bits(i, up, kept, W / 8);
        }
        if (i < end) {
            const uint64_t valid = (uint64_t(1) << (end - i)) - 1;
            uint64_t up = 0, kept = 0;
            step(i, end - i, std::false_type{}, up, kept, 0);
            store_bits(i, up & valid, kept & valid, (end - i + 7) / 8);
        }
    };

    const Tasks tasks(shape);
    at::parallel_for(0, tasks.count, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) tasks.run(task, shape, walk);
    });
}

// backward: gx = f * g, and with it the sums over gx and gx * noise in parts of one task (for the bias, of one row).
template <class T, bool kPixel, bool kStrength, Factor kFactor>
void backward(const Inputs<T>& in, T* gx, const Shape& shape, Accumulate<T>* gbias, Accumulate<T>* gstrength) {
    using A = Accumulate<T>;
    constexpr int W = kWidth<A>;
    const Tasks tasks(shape);
    // A pixel's channels are summed lane by lane into one row for each task; other rows into one number a piece.
    const int64_t parts = kPixel ? tasks.count * shape.channels : shape.rows * tasks.pieces;
    std::vector<A> bias_parts(gbias ? parts : 0), strength_parts(kStrength ? tasks.count : 0);

    // gx of the n lanes at `i` of a row; lanes beyond n may hold NaN from 0 * inf.
    const auto value = [&](int64_t row, int64_t i, int64_t n, auto full) {
        constexpr bool kFull = decltype(full)::value;
        return times_factor<kFactor, kFull>(load_n<kFull>(in.x + row * shape.length + i, n), in,
                                            row * shape.mask_stride, i, n);
    };
    const auto counted = [](Vec<A> v, int64_t n, auto full) {
        return decltype(full)::value ? v : select<A>(from_bits<A>((1u << n) - 1), v, Vec<A>{});
    };
    // Several pixels at a time, so that their sum is added to the task's row once. All are read before any is written:
    // their rows often lie a multiple of 4 KiB apart, where a read has to wait for a write.
    const auto walk_pixels = [&](Row& at, auto pixels, A* bias_row, Vec<A>& dot) {
        constexpr int kPixels = decltype(pixels)::value;
        const int64_t row = at.index;
        Vec<A> noise[kPixels];
        for (int p = 0; p < kPixels; ++p, at.next(shape)) {
            if constexpr (kStrength) noise[p] = broadcast<A>(static_cast<A>(in.noise[at.noise]));
        }
        for_vectors<W>(0, shape.length, [&](int64_t i, int64_t n, auto full) {
            constexpr bool kFull = decltype(full)::value;
            Vec<A> v[kPixels], sum{};
            for (int p = 0; p < kPixels; ++p) v[p] = value(row + p, i, n, full);
            if (bias_row) sum = load_n<kFull>(bias_row + i, n);
            for (int p = 0; p < kPixels; ++p) {
                store_n<kFull>(gx + (row + p) * shape.length + i, v[p], n);
                sum += v[p];
                if constexpr (kStrength) dot += counted(v[p], n, full) * noise[p];
            }
            if (bias_row) store_n<kFull>(bias_row + i, sum, n);
        });
    };
    const auto walk_row = [&](const Row& row, int64_t begin, int64_t end, Vec<A>& dot) {
        const T* noise = kStrength ? in.noise + row.noise * shape.inner : nullptr;
        Vec<A> sum{};
        for_vectors<W>(begin, end, [&](int64_t i, int64_t n, auto full) {
            constexpr bool kFull = decltype(full)::value;
            Vec<A> v = value(row.index, i, n, full);
            store_n<kFull>(gx + row.index * shape.length + i, v, n);
            v = counted(v, n, full);
            sum += v;
            if constexpr (kStrength) dot += v * load_n<kFull>(noise + i, n);
        });
        if (gbias) bias_parts[row.index * tasks.pieces + begin / kTask] = sum_lanes<A>(sum);
    };

    at::parallel_for(0, tasks.count, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
            Vec<A> dot{};
            if constexpr (kPixel) {
                A* bias_row = gbias ? bias_parts.data() + task * shape.channels : nullptr;
                Row row(task * tasks.together, shape);
                const int64_t end = std::min(row.index + tasks.together, shape.rows);
                while (row.index + 4 <= end) walk_pixels(row, std::integral_constant<int, 4>{}, bias_row, dot);
                while (row.index < end) walk_pixels(row, std::integral_constant<int, 1>{}, bias_row, dot);
            } else {
                tasks.run(task, shape,
                          [&](const Row& row, int64_t begin, int64_t end) { walk_row(row, begin, end, dot); });
            }
            if constexpr (kStrength) strength_parts[task] = sum_lanes<A>(dot);
        }
    });

    if (gbias) {
        std::vector<double> total(shape.channels, 0.0);
        const int64_t each = kPixel ? 1 : tasks.pieces;  // parts of a channel that follow each other
        for (const A* part = bias_parts.data(); part != bias_parts.data() + parts;) {
            for (int64_t c = 0; c < shape.channels; ++c) {
                for (int64_t piece = 0; piece < each; ++piece) total[c] += *part++;
            }
        }
        for (int64_t c = 0; c < shape.channels; ++c) gbias[c] = static_cast<A>(total[c]);
    }
    if constexpr (kStrength) {
        double total = 0.0;
        for (const A part : strength_parts) total += part;
        *gstrength = static_cast<A>(total);
    }
}

template <class T>
Tensor accumulate_copy(const Tensor& value) {
    constexpr auto type = std::is_same_v<T, double> ? at::kDouble : at::kFloat;
    return value.to(type).contiguous();
}

void check_operand(const OptionalTensor& value, const Tensor& x, const char* name, int64_t numel) {
    if (!value) return;
    TORCH_CHECK(value->device() == x.device(), "bias_lrelu: ", name, " is on ", value->device(), ", expected ",
                x.device());
    TORCH_CHECK(numel < 0 || value->numel() == numel, "bias_lrelu: ", name, " has ", value->numel(),
                " elements, expected ", numel);
}

// The pointers of the operands of f * (x + strength * noise + bias); `keep` holds what had to be copied, and `shape`
// learns how many planes of noise there are.
template <class T>
Inputs<T> gather(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& noise,
                 const OptionalTensor& strength, double slope, double gain, Shape& shape, std::vector<Tensor>& keep) {
    using A = Accumulate<T>;
    check_operand(bias, x, "bias", shape.channels);
    check_operand(strength, x, "noise_strength", 1);
    Inputs<T> in{};
    in.x = x.const_data_ptr<T>();
    in.gain = static_cast<A>(gain);
    in.negative_gain = static_cast<A>(gain * slope);
    in.strength = 1;
    if (bias) in.bias = keep.emplace_back(accumulate_copy<T>(*bias)).template const_data_ptr<A>();
    if (noise) {
        const int64_t planes = noise->numel() / std::max<int64_t>(1, shape.inner);
        check_operand(noise, x, "noise", std::max<int64_t>(1, planes) * shape.inner);
        TORCH_CHECK(shape.outer % planes == 0, "bias_lrelu: ", planes, " planes of noise do not fit ", shape.outer);
        TORCH_CHECK(noise->scalar_type() == x.scalar_type(), "bias_lrelu: noise has dtype ", noise->scalar_type(),
                    ", expected ", x.scalar_type());
        in.noise = keep.emplace_back(noise->contiguous()).template const_data_ptr<T>();
        shape.noise_planes = planes;
    }
    if (strength) in.strength = keep.emplace_back(accumulate_copy<T>(*strength)).template const_data_ptr<A>()[0];
    return in;
}

template <class T>
void attach_mask(Inputs<T>& in, const OptionalTensor& mask, double slope, const Shape& shape) {
    TORCH_CHECK(mask || slope == 1.0, "bias_lrelu: the mask is missing, and slope ", slope, " needs it");
    if (!mask) return;
    in.plane = shape.rows * shape.mask_stride;
    TORCH_CHECK(mask->scalar_type() == at::kByte && mask->is_contiguous() && mask->dim() == 3 &&
                    (mask->size(0) == 1 || mask->size(0) == 2) && mask->numel() == mask->size(0) * in.plane,
                "bias_lrelu: mask must be uint8 with ", in.plane, " bytes a plane, got ", mask->scalar_type(),
                " of shape ", mask->sizes());
    in.bits = mask->const_data_ptr<uint8_t>();
    in.clamp_plane = mask->size(0) == 2;
}

// Calls `function` with run-time bools as compile-time constants.
template <class Function>
void with_bools(const Function& function) {
    function();
}
template <class Function, class... Rest>
void with_bools(const Function& function, bool value, Rest... rest) {
    const auto bind = [&](auto constant) { with_bools([&](auto... more) { function(constant, more...); }, rest...); };
    value ? bind(std::true_type{}) : bind(std::false_type{});
}

std::tuple<Tensor, Tensor> forward_cpu(const Tensor& x_any, const OptionalTensor& bias, const OptionalTensor& noise,
                                       const OptionalTensor& strength, const OptionalTensor& residual, int64_t dim,
                                       double slope, double gain, std::optional<double> clamp, double residual_gain,
                                       bool save_mask) {
    const bool channels_last = dim == 1 && is_channels_last(x_any);
    const auto format = memory_format(x_any.dim(), channels_last);
    const Tensor x = x_any.contiguous(format);
    Shape shape(x.sizes(), dim, channels_last);
    check_operand(residual, x, "residual", x.numel());
    Tensor out = empty_like(x, format);
    Tensor mask = save_mask ? at::empty({clamp ? 2 : 1, shape.rows, shape.mask_stride}, x.options().dtype(at::kByte))
                            : at::empty({0}, x.options().dtype(at::kByte));
    if (x.numel() == 0) return {out, mask};
    ANIFAST_DISPATCH(x.scalar_type(), "bias_lrelu", [&] {
        std::vector<Tensor> keep;
        auto in = gather<scalar_t>(x, bias, noise, strength, slope, gain, shape, keep);
        if (residual) {
            TORCH_CHECK(residual->scalar_type() == x.scalar_type(), "bias_lrelu: residual has dtype ",
                        residual->scalar_type(), ", expected ", x.scalar_type());
            in.residual = keep.emplace_back(residual->contiguous(format)).template const_data_ptr<scalar_t>();
            in.residual_gain = static_cast<Accumulate<scalar_t>>(residual_gain);
        }
        in.clamp_plane = clamp.has_value();
        in.clamp = static_cast<Accumulate<scalar_t>>(clamp.value_or(0.0));
        const Outputs<scalar_t> to{out.mutable_data_ptr<scalar_t>(),
                                   save_mask ? mask.mutable_data_ptr<uint8_t>() : nullptr,
                                   shape.rows * shape.mask_stride};
        with_bools([&](auto pixel, auto has_noise,
                       auto rest) { apply<scalar_t, pixel, has_noise, rest, Factor::kOwnSign>(in, to, shape); },
                   shape.pixel_rows, noise.has_value(), save_mask || clamp || residual);
    });
    return {out, mask};
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(const Tensor& grad_any, const OptionalTensor& mask,
                                                const OptionalTensor& noise, int64_t dim, bool channels_last,
                                                double slope, double gain, bool want_bias, bool want_strength) {
    const auto format = memory_format(grad_any.dim(), channels_last);
    const Tensor grad = grad_any.contiguous(format);
    Shape shape(grad.sizes(), dim, channels_last);
    TORCH_CHECK(!want_strength || noise, "bias_lrelu: the gradient of noise_strength needs the noise");
    const auto sums = grad.options().dtype(grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    Tensor gx = empty_like(grad, format);
    Tensor gbias = at::empty({want_bias ? shape.channels : 0}, sums);
    Tensor gstrength = want_strength ? at::empty({}, sums) : at::empty({0}, sums);
    if (grad.numel() == 0) return {gx, gbias.zero_(), gstrength.zero_()};
    ANIFAST_DISPATCH(grad.scalar_type(), "bias_lrelu_backward", [&] {
        using A = Accumulate<scalar_t>;
        std::vector<Tensor> keep;
        auto in = gather<scalar_t>(grad, {}, want_strength ? noise : OptionalTensor{}, {}, slope, gain, shape, keep);
        attach_mask(in, mask, slope, shape);
        with_bools(
            [&](auto pixel, auto strength, auto masked) {
                constexpr Factor kFactor = masked ? Factor::kMask : Factor::kGain;
                backward<scalar_t, pixel, strength, kFactor>(in, gx.mutable_data_ptr<scalar_t>(), shape,
                                                             want_bias ? gbias.mutable_data_ptr<A>() : nullptr,
                                                             want_strength ? gstrength.mutable_data_ptr<A>() : nullptr);
            },
            shape.pixel_rows, want_strength, mask.has_value());
    });
    return {gx, gbias, gstrength};
}

Tensor masked_cpu(const Tensor& x_any, const OptionalTensor& mask, const OptionalTensor& bias,
                  const OptionalTensor& noise, const OptionalTensor& strength, int64_t dim, bool channels_last,
                  double slope, double gain) {
    const auto format = memory_format(x_any.dim(), channels_last);
    const Tensor x = x_any.contiguous(format);
    Shape shape(x.sizes(), dim, channels_last);
    Tensor out = empty_like(x, format);
    if (x.numel() == 0) return out;
    ANIFAST_DISPATCH(x.scalar_type(), "bias_lrelu_masked", [&] {
        std::vector<Tensor> keep;
        auto in = gather<scalar_t>(x, bias, noise, strength, slope, gain, shape, keep);
        attach_mask(in, mask, slope, shape);
        const Outputs<scalar_t> to{out.mutable_data_ptr<scalar_t>(), nullptr, 0};
        with_bools(
            [&](auto pixel, auto has_noise, auto masked) {
                constexpr Factor kFactor = masked ? Factor::kMask : Factor::kGain;
                apply<scalar_t, pixel, has_noise, false, kFactor>(in, to, shape);
            },
            shape.pixel_rows, noise.has_value(), mask.has_value());
    });
    return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CPU, m) {
    m.impl("bias_lrelu", &forward_cpu);
    m.impl("bias_lrelu_backward", &backward_cpu);
    m.impl("bias_lrelu_masked", &masked_cpu);
}

}  // namespace anifast
