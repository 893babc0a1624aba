// upfirdn2d on the CPU: see anifast/ops/upfirdn2d.py for the contract.
//
// A separable kernel (a matrix of rank 1 is recognised) is two sums for each line of output: of the rows of the input
// under the column (vectors along x, into a buffer of float32 that stays in the first cache, with zeros beside it for
// the padding), and of that buffer under the row, with the epilogue before the one store. Any other matrix is one sum
// over rows and columns. Zero-inserted samples are never visited: of k taps only those that meet a sample, ceil(k /
// up), are known for each phase. Rows beyond the borders are cut out of the sums.
//
// Bytes moved for each element of b bytes: x and out once each, + b with `add`, + 1/8 per plane of the mask, + b /
// channels of noise. Work is cut by the sizes alone, and nothing is summed across tasks.
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
#include "upfirdn2d_any.h"
#include "upfirdn2d_four_taps.h"
#include "upfirdn2d_plan.h"

namespace anifast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <Behind kBehind, class T>
void run(const T* x, at::IntArrayRef sizes, bool channels_last, const Plan<Accumulate<T>>& plan,
         const Epilogue<T>& epilogue) {
    const int64_t batch = sizes[0], channels = sizes[1], in = sizes[2] * sizes[3];
    const T* x_end = x + batch * channels * in;
    if (channels_last) return Pixels<kBehind, T>(plan, x, x_end, batch, channels, epilogue).run();
    const auto go = [&](const auto& kernel) {
        for_planes(epilogue.out, batch * channels, plan.y.out, plan.x.out, kernel,
                   [&](auto& kept, int64_t plane, int64_t from, int64_t until, const T* end) {
                       LineWriter<T, kBehind> to(epilogue, plane, channels, plan.y.out, plan.x.out, end);
                       kept.run(x + plane * in, from, until, to);
                   });
    };
    const Axis &along = plan.x, &across = plan.y;
    if constexpr (std::is_same_v<Accumulate<T>, float>) {
        if (plan.separable && along.taps == 4 && across.taps == 4 && along.up == across.up &&
            along.down == across.down) {
            if (along.up == 1 && along.down == 1) return go([&] { return FourTaps<1, 1, kBehind, T>(plan, x_end); });
            if (along.up == 1 && along.down == 2) return go([&] { return FourTaps<1, 2, kBehind, T>(plan, x_end); });
            if (along.up == 2 && along.down == 1) return go([&] { return FourTaps<2, 1, kBehind, T>(plan, x_end); });
        }
    }
    go([&] { return AnyPlanes<kBehind, T>(plan, x_end); });
}

template <class T>
Tensor accumulate_copy(const Tensor& value) {
    return value.to(std::is_same_v<T, double> ? at::kDouble : at::kFloat).contiguous();
}

void check_operand(const OptionalTensor& value, const Tensor& x, const char* name, int64_t numel, bool same_type) {
    if (!value) return;
    TORCH_CHECK(value->device() == x.device(), "upfirdn2d: ", name, " is on ", value->device(), ", expected ",
                x.device());
    TORCH_CHECK(value->numel() == numel, "upfirdn2d: ", name, " has ", value->numel(), " elements, expected ", numel);
    TORCH_CHECK(!same_type || value->scalar_type() == x.scalar_type(), "upfirdn2d: ", name, " has dtype ",
                value->scalar_type(), ", expected ", x.scalar_type());
}

std::tuple<Tensor, Tensor> upfirdn2d_cpu(const Tensor& x_any, const Tensor& kernel_any, at::IntArrayRef up,
                                         at::IntArrayRef down, at::IntArrayRef padding, bool flip, double gain,
                                         const OptionalTensor& scale, const OptionalTensor& bias,
                                         const OptionalTensor& noise, const OptionalTensor& strength,
                                         const OptionalTensor& add, double slope, double act_gain,
                                         std::optional<double> clamp, bool save_mask) {
    TORCH_CHECK(x_any.dim() == 4, "upfirdn2d: x must have rank 4, got ", x_any.sizes());
    TORCH_CHECK(up.size() == 2 && down.size() == 2 && padding.size() == 4,
                "upfirdn2d: up and down need 2 numbers and padding 4");
    TORCH_CHECK(kernel_any.device() == x_any.device() && (kernel_any.dim() == 1 || kernel_any.dim() == 2),
                "upfirdn2d: kernel must be a vector or matrix on ", x_any.device());
    const bool channels_last = is_channels_last(x_any);
    const auto format = memory_format(4, channels_last);
    const Tensor x = x_any.contiguous(format);
    const auto sizes = x.sizes();
    const Axis along(sizes[3], up[0], down[0], padding[0], padding[1], kernel_any.size(kernel_any.dim() - 1));
    const Axis across(sizes[2], up[1], down[1], padding[2], padding[3], kernel_any.size(0));
    const int64_t maps = sizes[0] * sizes[1], rows = across.out, columns = along.out, numel = maps * rows * columns;
    const int64_t noise_planes = noise ? noise->numel() / (rows * columns) : 1;
    check_operand(scale, x, "scale", maps, false);
    check_operand(bias, x, "bias", sizes[1], false);
    check_operand(noise, x, "noise", noise_planes == 1 ? rows * columns : sizes[0] * rows * columns, true);
    check_operand(strength, x, "noise_strength", 1, false);
    check_operand(add, x, "add", numel, true);
    TORCH_CHECK(!save_mask || channels_last || columns % 8 == 0,
                "upfirdn2d: save_mask needs lines of whole bytes, got ", columns, " columns");

    Tensor out = empty({sizes[0], sizes[1], rows, columns}, x.options(), format);
    // bias_lrelu's mask: a line is one pixel's channels, or one map
    const int64_t lines = channels_last ? sizes[0] * rows * columns : maps;
    const int64_t line = channels_last ? (sizes[1] + 7) / 8 : rows * columns / 8;
    Tensor mask = at::empty({0}, x.options().dtype(at::kByte));
    if (save_mask) mask = at::empty({clamp ? 2 : 1, lines, line}, x.options().dtype(at::kByte));
    if (numel == 0) return {out, mask};
    ANIFAST_DISPATCH(x.scalar_type(), "upfirdn2d", [&] {
        using A = Accumulate<scalar_t>;
        const Tensor kernel = accumulate_copy<scalar_t>(kernel_any);
        const Plan<A> plan(along, across, Taps<A>(kernel, flip, gain));
        std::vector<Tensor> keep;
        const auto wide = [&](const OptionalTensor& value) {
            return value ? keep.emplace_back(accumulate_copy<scalar_t>(*value)).template const_data_ptr<A>() : nullptr;
        };
        Epilogue<scalar_t> epilogue{};
        epilogue.noise_planes = noise_planes;
        epilogue.scale = wide(scale);
        epilogue.bias = wide(bias);
        epilogue.strength = strength ? wide(strength)[0] : A(1);
        if (noise) {
            epilogue.noise = keep.emplace_back(noise->contiguous()).template const_data_ptr<scalar_t>();
            epilogue.noise_end = epilogue.noise + noise->numel();
        }
        if (add) {
            epilogue.add = keep.emplace_back(add->contiguous(format)).template const_data_ptr<scalar_t>();
            epilogue.add_end = epilogue.add + numel;
        }
        epilogue.gain = static_cast<A>(act_gain);
        epilogue.negative_gain = static_cast<A>(act_gain * slope);
        epilogue.act = slope != 1.0 || act_gain != 1.0;
        epilogue.clamped = clamp.has_value();
        epilogue.clamp = static_cast<A>(clamp.value_or(0.0));
        epilogue.out = out.mutable_data_ptr<scalar_t>();
        epilogue.bits = save_mask ? mask.mutable_data_ptr<uint8_t>() : nullptr;
        epilogue.plane = lines * line;
        const scalar_t* from = x.const_data_ptr<scalar_t>();
        if (scale || bias || noise || epilogue.act || clamp) {
            run<Behind::kAll>(from, sizes, channels_last, plan, epilogue);
        } else if (add) {
            run<Behind::kAdd>(from, sizes, channels_last, plan, epilogue);
        } else {
            run<Behind::kNothing>(from, sizes, channels_last, plan, epilogue);
        }
    });
    return {out, mask};
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CPU, m) { m.impl("upfirdn2d", &upfirdn2d_cpu); }

}  // namespace anifast
