// The two passes that the gradient of modulated_conv2d makes over its maps, on the CPU: see
// anifast/ops/modulated_conv2d.py for the formulas and the two ops. Each reads its two maps once and writes one.
//
// The sums belong to one plane, an (image, channel). In N,C,H,W its values are one run of memory; in channels last they
// are a lane of every pixel's run. Work is cut into tasks whose borders depend on the sizes alone, each leaves its sums
// in slots of its own, and slots are added in order, so that results are the same whatever the number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
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

// Values of a task along a plane, and pixels of a task in channels last: many enough that the slots are little beside
// the maps, few enough for a sum in float32. Along a plane that is the sum of sums of kBlock values.
constexpr int64_t kTask = 8192;
constexpr int64_t kBlock = 256;
constexpr int64_t kPixels = 128;

struct Maps {
    int64_t images, channels, length, planes;
    bool pixels;       // a run of memory is one pixel's channels
    int64_t together;  // pixels of a task; planes of a task, where a plane is one piece
    int64_t pieces;    // of an image (pixels) or of a plane
    int64_t tasks, slots;

    Maps(const Tensor& x, bool channels_last) {
        images = x.size(0), channels = x.size(1), length = x.size(2) * x.size(3), planes = images * channels;
        pixels = channels_last || length == 1;
        if (pixels) {
            together = kPixels;
            pieces = (length + together - 1) / together;
            tasks = images * pieces;
            slots = tasks * channels;
        } else {
            pieces = (length + kTask - 1) / kTask;
            together = pieces > 1 ? 1 : kTask / std::max<int64_t>(1, length);
            tasks = (planes + together - 1) / together * pieces;
            slots = planes * pieces;
        }
    }
};

// What a pass does to vectors. `channel` gives what belongs to the n channels from `c` (kMany) or to one channel,
// `pixel` what belongs to the n pixels from `p` (not kMany) or to one pixel, and `apply` the result at the n values
// from `i` of the maps, whose terms it adds to the sums. Lanes beyond n are 0 in maps, and so are their terms.

// gc = scale * gz with gz = f * g. f and z, the value before the activation, are known from the output: the sign tells
// f, and what the limit stopped lies at the limit as the output's type rounds it.
template <class T, bool kNoise, bool kScaleSum>
struct EpilogueGrad {
    using A = Accumulate<T>;
    static constexpr int kSums = 1 + kScaleSum + kNoise;  // of gz, gz * c and gz * noise
    static constexpr int kOfScale = 1, kOfStrength = kSums - 1;

    const T *grad, *out, *noise;
    const A *scale, *bias;  // [images, channels] and [channels]; null: 1 and 0
    int64_t noise_stride;   // from one image's noise to the next
    A strength, gain, negative_gain, inverse, negative_inverse, limit;
    bool clamped;

    struct Channel {
        Vec<A> scale, bias;
    };
    template <bool kMany, bool kFull>
    Channel channel(int64_t image, int64_t channels, int64_t c, int64_t n) const {
        Channel found{broadcast<A>(1), broadcast<A>(0)};
        if constexpr (kMany) {
            if (scale) found.scale = load_n<kFull>(scale + image * channels + c, n);
            if (bias) found.bias = load_n<kFull>(bias + c, n);
        } else {
            if (scale) found.scale = broadcast<A>(scale[image * channels + c]);
            if (bias) found.bias = broadcast<A>(bias[c]);
        }
        return found;
    }
    template <bool kMany, bool kFull>
    Vec<A> pixel(int64_t image, int64_t p, int64_t n) const {
        if constexpr (!kNoise) {
            return Vec<A>{};
        } else if constexpr (kMany) {
            return broadcast<A>(static_cast<A>(noise[image * noise_stride + p]));
        } else {
            return load_n<kFull>(noise + image * noise_stride + p, n);
        }
    }
    template <bool kFull>
    Vec<A> apply(const Channel& channel, Vec<A> noise, int64_t i, int64_t n, Vec<A> (&sums)[kSums]) const {
        const Vec<A> y = load_n<kFull>(out + i, n);
        const LaneMask<A> positive = y > 0;  // as the activation asks, so 0 and NaN take the slope
        Vec<A> gz = load_n<kFull>(grad + i, n) * select<A>(positive, broadcast<A>(gain), broadcast<A>(negative_gain));
        if (clamped) gz = select<A>((y < limit) & (y > -limit), gz, Vec<A>{});
        sums[0] += gz;
        if constexpr (kScaleSum) {
            // c bare of noise and bias at once, not their sums apart, which would cancel where the bias is large
            Vec<A> c = y * select<A>(positive, broadcast<A>(inverse), broadcast<A>(negative_inverse)) - channel.bias;
            if constexpr (kNoise) c -= strength * noise;
            sums[kOfScale] += gz * c;
        }
        if constexpr (kNoise) sums[kOfStrength] += gz * noise;
        return gz * channel.scale;
    }
};

// gx = style * g, and the sum of x * g
template <class T>
struct StyleGrad {
    using A = Accumulate<T>;
    static constexpr int kSums = 1;

    const T *grad, *x;
    const A* style;  // [images, channels]

    struct Channel {
        Vec<A> style;
    };
    template <bool kMany, bool kFull>
    Channel channel(int64_t image, int64_t channels, int64_t c, int64_t n) const {
        const A* from = style + image * channels + c;
        if constexpr (kMany) return {load_n<kFull>(from, n)};
        return {broadcast<A>(*from)};
    }
    template <bool kMany, bool kFull>
    Vec<A> pixel(int64_t, int64_t, int64_t) const {
        return Vec<A>{};
    }
    template <bool kFull>
    Vec<A> apply(const Channel& channel, Vec<A>, int64_t i, int64_t n, Vec<A> (&sums)[kSums]) const {
        const Vec<A> g = load_n<kFull>(grad + i, n);
        sums[0] += g * load_n<kFull>(x + i, n);
        return g * channel.style;
    }
};

// The rows of kRows pixels at once, so that their sums are added to the task's once. All are read before any is
// written: they often lie a multiple of 4 KiB apart, where a read has to wait for a write.
template <int kRows, class T, class Pass, class A>
void walk_pixels(const Maps& maps, const Pass& pass, int64_t image, int64_t p, A* slots, T* to) {
    Vec<A> pixel[kRows];
    for (int row = 0; row < kRows; ++row) pixel[row] = pass.template pixel<true, true>(image, p + row, 0);
    const int64_t base = (image * maps.length + p) * maps.channels;
    for_vectors<kWidth<A>>(0, maps.channels, [&](int64_t c, int64_t n, auto full) {
        constexpr bool kFull = decltype(full)::value;
        const auto channel = pass.template channel<true, kFull>(image, maps.channels, c, n);
        Vec<A> sums[Pass::kSums] = {}, result[kRows];
        for (int row = 0; row < kRows; ++row) {
            result[row] = pass.template apply<kFull>(channel, pixel[row], base + row * maps.channels + c, n, sums);
        }
        for (int row = 0; row < kRows; ++row) store_n<kFull>(to + base + row * maps.channels + c, result[row], n);
        for (int s = 0; s < Pass::kSums; ++s) {
            A* slot = slots + s * maps.slots + c;
            store_n<kFull>(slot, load_n<kFull>(slot, n) + sums[s], n);
        }
    });
}

// A piece of one plane.
template <class T, class Pass, class A>
void walk_plane(const Maps& maps, const Pass& pass, int64_t plane, int64_t piece, A* slots, T* to) {
    const int64_t image = plane / maps.channels;
    const auto channel = pass.template channel<false, true>(image, maps.channels, plane % maps.channels, 0);
    Vec<A> totals[Pass::kSums] = {};
    const int64_t end = std::min((piece + 1) * kTask, maps.length);
    for (int64_t begin = piece * kTask; begin < end; begin += kBlock) {
        Vec<A> sums[Pass::kSums] = {};
        for_vectors<kWidth<A>>(begin, std::min(begin + kBlock, end), [&](int64_t p, int64_t n, auto full) {
            constexpr bool kFull = decltype(full)::value;
            const Vec<A> pixel = pass.template pixel<false, kFull>(image, p, n);
            const int64_t i = plane * maps.length + p;
            store_n<kFull>(to + i, pass.template apply<kFull>(channel, pixel, i, n, sums), n);
        });
        for (int s = 0; s < Pass::kSums; ++s) totals[s] += sums[s];
    }
    for (int s = 0; s < Pass::kSums; ++s) slots[s * maps.slots + plane * maps.pieces + piece] = sum_lanes<A>(totals[s]);
}

// Writes the map `to` and returns the sums of each plane, [kSums, planes].
template <class T, class Pass>
std::vector<double> run(const Maps& maps, const Pass& given, T* to) {
    using A = Accumulate<T>;
    std::vector<A> slots(Pass::kSums * maps.slots);
    at::parallel_for(0, maps.tasks, 1, [&](int64_t first, int64_t last) {
        const Pass pass = given;  // stays in registers, where `given` would be read again after each write
        for (int64_t task = first; task < last; ++task) {
            const int64_t at = task / maps.pieces, piece = task % maps.pieces;
            if (maps.pixels) {
                int64_t p = piece * maps.together;
                const int64_t end = std::min(p + maps.together, maps.length);
                A* own = slots.data() + task * maps.channels;
                for (; p + 4 <= end; p += 4) walk_pixels<4>(maps, pass, at, p, own, to);
                for (; p < end; ++p) walk_pixels<1>(maps, pass, at, p, own, to);
            } else {
                const int64_t end = std::min((at + 1) * maps.together, maps.planes);
                for (int64_t plane = at * maps.together; plane < end; ++plane)
                    walk_plane(maps, pass, plane, piece, slots.data(), to);
            }
        }
    });
    std::vector<double> totals(Pass::kSums * maps.planes);
    const A* slot = slots.data();
    for (double* total = totals.data(); slot != slots.data() + slots.size();) {
        // the channels of a task, or a plane, follow each other once for each piece
        const int64_t beside = maps.pixels ? maps.channels : 1;
        for (int64_t piece = 0; piece < maps.pieces; ++piece) {
            for (int64_t c = 0; c < beside; ++c) total[c] += *slot++;
        }
        total += beside;
    }
    return totals;
}

// grad in one of the two layouts, and what stands beside it.
struct Call {
    at::MemoryFormat format;
    Tensor grad;
    std::vector<Tensor> keep;

    explicit Call(const Tensor& any) {
        TORCH_CHECK(any.dim() == 4, "modulated_conv2d: grad must have rank 4, got shape ", any.sizes());
        format = memory_format(4, is_channels_last(any));
        grad = any.contiguous(format);
    }

    at::TensorOptions sums() const {
        return grad.options().dtype(grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    }
    Maps maps() const { return Maps(grad, format != at::MemoryFormat::Contiguous); }

    void check(const Tensor& value, const char* name, at::IntArrayRef sizes) const {
        TORCH_CHECK(value.sizes() == sizes && value.device() == grad.device(), "modulated_conv2d: ", name,
                    " has shape ", value.sizes(), " on ", value.device(), ", expected ", sizes, " on ", grad.device());
    }
    void check_type(const Tensor& value, const char* name) const {
        TORCH_CHECK(value.scalar_type() == grad.scalar_type(), "modulated_conv2d: ", name, " has dtype ",
                    value.scalar_type(), ", expected ", grad.scalar_type());
    }
    template <class T>
    const T* map(const Tensor& value, const char* name) {
        check(value, name, grad.sizes());
        check_type(value, name);
        return keep.emplace_back(value.contiguous(format)).template const_data_ptr<T>();
    }
    // A parameter in the type of sums.
    template <class A>
    const A* wide(const OptionalTensor& value, const char* name, at::IntArrayRef sizes) {
        if (!value) return nullptr;
        check(*value, name, sizes);
        return keep.emplace_back(value->to(sums().dtype().toScalarType()).contiguous()).template const_data_ptr<A>();
    }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> epilogue_grad_cpu(const Tensor& grad, const Tensor& out,
                                                             const OptionalTensor& scale, const OptionalTensor& bias,
                                                             const OptionalTensor& noise,
                                                             const OptionalTensor& strength, double slope, double gain,
                                                             std::optional<double> clamp, bool want_scale,
                                                             bool want_bias, bool want_strength) {
    Call call(grad);
    TORCH_CHECK(slope >= 0.0 && gain > 0.0, "modulated_conv2d: the output tells the gradient where slope >= 0 and ",
                "gain > 0, got slope ", slope, " and gain ", gain);
    TORCH_CHECK(!want_scale || scale, "modulated_conv2d: the gradient of scale needs the scale");
    TORCH_CHECK(!want_strength || noise, "modulated_conv2d: the gradient of noise_strength needs the noise");
    const Maps maps = call.maps();
    Tensor gc = empty_like(call.grad, call.format);
    Tensor gscale =
        at::zeros(want_scale ? at::IntArrayRef{maps.images, maps.channels} : at::IntArrayRef{0}, call.sums());
    Tensor gbias = at::zeros({want_bias ? maps.channels : 0}, call.sums());
    Tensor gstrength = at::zeros({want_strength ? 1 : 0}, call.sums());
    ANIFAST_DISPATCH(grad.scalar_type(), "modulated_conv2d_epilogue_grad", [&] {
        using A = Accumulate<scalar_t>;
        const auto* y = call.map<scalar_t>(out, "out");
        const auto* scales = call.wide<A>(scale, "scale", {maps.images, maps.channels});
        const auto* biases = call.wide<A>(bias, "bias", {maps.channels});
        A factor = 1;
        const scalar_t* noises = nullptr;
        if (noise) {
            const int64_t planes = noise->dim() == 4 && noise->size(0) == 1 ? 1 : maps.images;
            call.check(*noise, "noise", {planes, 1, grad.size(2), grad.size(3)});
            call.check_type(*noise, "noise");
            noises = call.keep.emplace_back(noise->contiguous()).template const_data_ptr<scalar_t>();
            TORCH_CHECK(!strength || strength->numel() == 1, "modulated_conv2d: noise_strength has ", strength->numel(),
                        " elements, expected 1");
            if (strength) factor = strength->item<A>();
        }
        if (grad.numel() == 0) return;
        const auto pass_with = [&](auto has_noise, auto scale_sum) {
            using Pass = EpilogueGrad<scalar_t, has_noise, scale_sum>;
            Pass pass{call.grad.const_data_ptr<scalar_t>(), y, noises, scales, biases};
            pass.noise_stride = noise && noise->size(0) > 1 ? maps.length : 0;
            pass.strength = factor;
            pass.gain = static_cast<A>(gain);
            pass.negative_gain = static_cast<A>(gain * slope);
            pass.inverse = static_cast<A>(1.0 / gain);
            pass.negative_inverse =
                slope > 0.0 ? static_cast<A>(1.0 / (gain * slope)) : A(0);  // z is lost, and gz is 0
            pass.clamped = clamp.has_value();
            pass.limit = static_cast<A>(static_cast<scalar_t>(static_cast<A>(clamp.value_or(0.0))));
            const auto sums = run<scalar_t>(maps, pass, gc.mutable_data_ptr<scalar_t>());
            auto* of_scale = gscale.mutable_data_ptr<A>();
            std::vector<double> of_bias(maps.channels, 0.0);
            double of_strength = 0.0;
            for (int64_t plane = 0; plane < maps.planes; ++plane) {
                of_bias[plane % maps.channels] += sums[plane];
                if (scale_sum)
                    of_scale[plane] = static_cast<A>(sums[Pass::kOfScale * maps.planes + plane] / scales[plane]);
                if (has_noise) of_strength += sums[Pass::kOfStrength * maps.planes + plane];
            }
            if (want_bias) std::copy(of_bias.begin(), of_bias.end(), gbias.mutable_data_ptr<A>());
            if (want_strength) gstrength.mutable_data_ptr<A>()[0] = static_cast<A>(of_strength);
        };
        const bool reads_noise = noise && (want_scale || want_strength);
        const auto with_noise = [&](auto scale_sum) {
            reads_noise ? pass_with(std::true_type{}, scale_sum) : pass_with(std::false_type{}, scale_sum);
        };
        want_scale ? with_noise(std::true_type{}) : with_noise(std::false_type{});
    });
    return {gc, gscale, gbias, gstrength};
}

std::tuple<Tensor, Tensor> style_grad_cpu(const Tensor& grad, const Tensor& x, const Tensor& style) {
    Call call(grad);
    const Maps maps = call.maps();
    Tensor gx = empty_like(call.grad, call.format);
    Tensor gstyle = at::zeros({maps.images, maps.channels}, call.sums());
    ANIFAST_DISPATCH(grad.scalar_type(), "modulated_conv2d_style_grad", [&] {
        using A = Accumulate<scalar_t>;
        const StyleGrad<scalar_t> pass{call.grad.const_data_ptr<scalar_t>(), call.map<scalar_t>(x, "x"),
                                       call.wide<A>(style, "style", {maps.images, maps.channels})};
        if (grad.numel() == 0) return;
        const auto sums = run<scalar_t>(maps, pass, gx.mutable_data_ptr<scalar_t>());
        std::copy(sums.begin(), sums.end(), gstyle.mutable_data_ptr<A>());
    });
    return {gx, gstyle};
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CPU, m) {
    m.impl("modulated_conv2d_epilogue_grad", &epilogue_grad_cpu);
    m.impl("modulated_conv2d_style_grad", &style_grad_cpu);
}

}  // namespace anifast
