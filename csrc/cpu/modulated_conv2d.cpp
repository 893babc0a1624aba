// modulated_conv2d on the CPU: see anifast/ops/modulated_conv2d.py for the contract.
//
// Pixels are brought into an order with the channels side by side, where the style scales them on the way; matrix
// products do the rest, and what stands behind them is done on the way back. One weight serves the batch.
//
//   gemm      the products of the taps, summed in registers: 2 k^2 I O FLOPs for each pixel of the output
//   winograd  3 x 3 alone, a quarter of the products (modulated_conv2d_winograd.h)
//
// The up-sampling form computes its four output phases so, 9 taps for 4 outputs; upfirdn2d follows with the epilogue.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "../common/layout.h"
#include "../common/vec.h"
#include "memory.h"
#include "modulated_conv2d_few.h"
#include "modulated_conv2d_gemm.h"
#include "modulated_conv2d_maps.h"
#include "modulated_conv2d_winograd.h"

namespace anifast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

using Upfirdn2dOp = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, at::IntArrayRef, at::IntArrayRef,
                                               c10::SymIntArrayRef, bool, double, const OptionalTensor&,
                                               const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                               const OptionalTensor&, double, double, std::optional<double>, bool);

// The filter behind a transposed convolution, or its adjoint, by the op that has both.
Tensor filter(const Tensor& x, const Tensor& fir, bool adjoint, const OptionalTensor& scale, const OptionalTensor& bias,
              const OptionalTensor& noise, const OptionalTensor& strength, const OptionalTensor& add, double slope,
              double gain, std::optional<double> clamp) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("anifast::upfirdn2d", "").typed<Upfirdn2dOp>();
    // pads of k taps behind 3: (k - 3) / 2 of up_padding in anifast/reference, k - 1 less that for the adjoint
    std::vector<c10::SymInt> pads;
    for (const int64_t taps : {fir.size(fir.dim() - 1), fir.size(0)}) {
        const int64_t spare = taps - 4, before = (spare + 1 + 1024) / 2 - 512 + 1,
                      behind = (spare + 1024) / 2 - 512 + 1;
        pads.emplace_back(adjoint ? taps - 1 - before : before);
        pads.emplace_back(adjoint ? taps - 1 - behind : behind);
    }
    const int64_t one[2] = {1, 1};
    return std::get<0>(
        op.call(x, fir, one, one, pads, adjoint, 4.0, scale, bias, noise, strength, add, slope, gain, clamp, false));
}

// The gradient before the filter, or the given one where that was done.
Tensor unfiltered(const Tensor& grad, const OptionalTensor& fir, at::MemoryFormat format) {
    if (!fir) return grad;
    const OptionalTensor none;
    return filter(grad.contiguous(format), *fir, true, none, none, none, none, none, 1.0, 1.0, std::nullopt);
}

// Tensors in the type of sums and in memory as kernels want them, kept alive.
template <class A>
class Operands {
  public:
    explicit Operands(at::MemoryFormat format) : format_(format) {}
    Maps<const A> maps(const Tensor& x) {
        const Tensor& kept = keep(x, format_);
        return {kept.template const_data_ptr<A>(),        x.size(0), x.size(1), x.size(2), x.size(3),
                format_ == at::MemoryFormat::ChannelsLast};
    }
    const A* vector(const OptionalTensor& value) {
        return value ? keep(*value, at::MemoryFormat::Contiguous).template const_data_ptr<A>() : nullptr;
    }

  private:
    const Tensor& keep(const Tensor& value, at::MemoryFormat format) {
        kept_.push_back(value.to(sizeof(A) == 8 ? at::kDouble : at::kFloat).contiguous(format));
        return kept_.back();
    }
    at::MemoryFormat format_;
    std::vector<Tensor> kept_;
};

template <class A>
Maps<A> output(const Tensor& out, at::MemoryFormat format) {
    return {out.mutable_data_ptr<A>(),
            out.size(0),
            out.size(1),
            out.size(2),
            out.size(3),
            format == at::MemoryFormat::ChannelsLast};
}

// Whether the strategies here do this.
void check(int64_t size, int64_t up, int64_t down, int64_t padding, std::string_view strategy) {
    const bool winograd = strategy == "winograd";
    TORCH_CHECK(winograd || strategy == "gemm", "modulated_conv2d: unknown strategy ", std::string(strategy));
    TORCH_CHECK(
        down == 1 &&
            ((up == 1 && padding == size / 2 && (size == 3 || (size == 1 && !winograd))) || (up == 2 && size == 3)),
        "modulated_conv2d: ", std::string(strategy), " does not do up ", up, ", down ", down, ", kernel ", size);
}

void check_maps(const Tensor& x, const Tensor& weight, int64_t channels) {
    TORCH_CHECK(x.dim() == 4 && weight.dim() == 4, "modulated_conv2d: x and weight must have rank 4");
    TORCH_CHECK(weight.scalar_type() == x.scalar_type() || weight.scalar_type() == at::kFloat,
                "modulated_conv2d: weight has dtype ", weight.scalar_type(), ", expected ", x.scalar_type(),
                " or Float");
    TORCH_CHECK(x.scalar_type() != at::kDouble || weight.scalar_type() == at::kDouble,
                "modulated_conv2d: weight has dtype ", weight.scalar_type(), ", expected Double");
    TORCH_CHECK(x.size(1) == channels && weight.size(2) == weight.size(3), "modulated_conv2d: maps ", x.sizes(),
                " and weight ", weight.sizes(), " do not fit");
}

void check_numbers(const OptionalTensor& value, const Tensor& x, const char* name, int64_t numel) {
    if (!value) return;
    TORCH_CHECK(value->device() == x.device(), "modulated_conv2d: ", name, " is on ", value->device(), ", expected ",
                x.device());
    TORCH_CHECK(value->numel() == numel, "modulated_conv2d: ", name, " has ", value->numel(), " elements, expected ",
                numel);
}

void check_size(const Tensor& grad, int64_t rows, int64_t columns, int64_t up, bool filtered) {
    const int64_t more = up == 2 && filtered ? 1 : 0;
    TORCH_CHECK(grad.dim() == 4 && grad.size(2) == rows * up + more && grad.size(3) == columns * up + more,
                "modulated_conv2d: grad is ", grad.sizes(), ", expected the output's size for ", rows, " x ", columns);
}

template <class Run>
auto by_type(const Tensor& x, const Run& run) {
    return x.scalar_type() == at::kDouble ? run(double()) : run(float());
}

Tensor forward(const Tensor& x_any, const Tensor& weight, const OptionalTensor& style, const OptionalTensor& scale,
               const OptionalTensor& bias, const OptionalTensor& noise, const OptionalTensor& strength,
               const OptionalTensor& add, const OptionalTensor& weight_scale, const OptionalTensor& fir, int64_t up,
               int64_t down, int64_t padding, c10::string_view strategy, double slope, double gain,
               std::optional<double> clamp) {
    check_maps(x_any, weight, weight.size(1));
    check(weight.size(2), up, down, padding, strategy);
    TORCH_CHECK(!weight_scale, "modulated_conv2d: weights here are in the type of sums and need no scale");
    TORCH_CHECK(up == 1 || fir, "modulated_conv2d: up needs its filter");
    check_numbers(style, x_any, "style", x_any.size(0) * x_any.size(1));
    if (up == 1) {  // else upfirdn2d does
        const int64_t pixels = x_any.size(2) * x_any.size(3), outputs = weight.size(0);
        check_numbers(scale, x_any, "scale", x_any.size(0) * outputs);
        check_numbers(bias, x_any, "bias", outputs);
        check_numbers(noise, x_any, "noise", noise && noise->numel() == pixels ? pixels : x_any.size(0) * pixels);
        check_numbers(strength, x_any, "noise_strength", 1);
        check_numbers(add, x_any, "add", x_any.size(0) * outputs * pixels);
    }
    const auto format = memory_format(4, is_channels_last(x_any));
    const int64_t batch = x_any.size(0), outputs = weight.size(0), size = weight.size(2);
    const int64_t rows = up == 2 ? 2 * x_any.size(2) + 1 : x_any.size(2);
    const int64_t columns = up == 2 ? 2 * x_any.size(3) + 1 : x_any.size(3);
    return by_type(x_any, [&](auto type) {
        using A = decltype(type);
        Operands<A> given(format);
        const auto x = given.maps(x_any);
        const Weights<A> weights{given.vector(weight),         outputs,     weight.size(1),
                                 weight.size(1) * size * size, size * size, size * size};
        const auto options = x_any.options().dtype(sizeof(A) == 8 ? at::kDouble : at::kFloat);
        const Tensor out = empty({batch, outputs, rows, columns}, options, format);
        const bool only_bias = !scale && !noise && slope == 1.0 && gain == 1.0 && !clamp;
        ForwardEpilogue<A> epilogue{};
        epilogue.gain = epilogue.negative_gain = A(1);
        if (up == 1) {
            epilogue = {given.vector(scale),
                        given.vector(bias),
                        given.vector(noise),
                        noise ? noise->size(0) : 1,
                        A(1),
                        A(gain),
                        A(gain * slope),
                        A(clamp.value_or(0.0)),
                        slope != 1.0 || gain != 1.0,
                        clamp.has_value()};
            if (strength) epilogue.strength = given.vector(strength)[0];
        }
        if (out.numel() > 0 && strategy == "winograd") {
            const winograd::Tiles tiles{x.batch, x.rows, x.columns};
            const auto go = [&](auto form) {
                winograd::convolution<decltype(form), ForwardStage<A>>(weights, tiles, x, given.vector(style),
                                                                       output<A>(out, format), epilogue);
            };
            up == 2 ? go(winograd::Up()) : go(winograd::Plain());
        } else if (out.numel() > 0 && size == 1 && outputs <= few::kMost && only_bias) {
            few::forward(x, weights.data, given.vector(style), epilogue.bias, output<A>(out, format));
        } else if (out.numel() > 0) {
            const Form form = up == 2 ? up_form() : plain_form(static_cast<int>(size), false);
            Gemm<A>(form, weights, x, output<A>(out, format))
                .template run<ForwardStage<A>>(given.vector(style), epilogue);
        }
        const Tensor narrow = out.to(x_any.scalar_type());
        if (up == 2) return filter(narrow, *fir, false, scale, bias, noise, strength, add, slope, gain, clamp);
        return add ? narrow.add_(*add) : narrow;
    });
}

std::tuple<Tensor, Tensor> input_grad(const Tensor& grad_any, const Tensor& weight, const OptionalTensor& x,
                                      const OptionalTensor& style, int64_t rows, int64_t columns,
                                      const OptionalTensor& fir, int64_t up, int64_t down, int64_t padding,
                                      c10::string_view strategy) {
    check_maps(grad_any, weight, weight.size(0));
    check(weight.size(2), up, down, padding, strategy);
    check_size(grad_any, rows, columns, up, !fir);
    check_numbers(style, grad_any, "style", grad_any.size(0) * weight.size(1));
    check_numbers(x, grad_any, "x", grad_any.size(0) * weight.size(1) * rows * columns);
    const auto format = memory_format(4, is_channels_last(grad_any));
    const int64_t batch = grad_any.size(0), inputs = weight.size(1), size = weight.size(2);
    const Tensor behind = unfiltered(grad_any, up == 2 ? fir : std::nullopt, format);
    return by_type(grad_any, [&](auto type) {
        using A = decltype(type);
        Operands<A> given(format);
        const auto grad = given.maps(behind);
        const Weights<A> weights{given.vector(weight), inputs,     weight.size(0), size * size,
                                 inputs * size * size, size * size};
        const auto options = grad_any.options().dtype(sizeof(A) == 8 ? at::kDouble : at::kFloat);
        const Tensor out = empty({batch, inputs, rows, columns}, options, format);
        const bool fused = style && x;
        const bool to_few = size == 1 && grad.channels <= few::kMost;
        Tensor sums = at::empty({fused ? batch : 0, to_few ? 1 : rows, inputs}, options);
        GradEpilogue<A> epilogue{given.vector(style), nullptr, nullptr};
        if (fused) epilogue.x = given.maps(*x).data, epilogue.sums = sums.template mutable_data_ptr<A>();
        if (out.numel() > 0 && strategy == "winograd") {
            const winograd::Tiles tiles{batch, rows, columns};
            const auto go = [&](auto form) {
                winograd::convolution<decltype(form), GradStage<A>>(
                    weights, tiles, grad, static_cast<const A*>(nullptr), output<A>(out, format), epilogue);
            };
            up == 2 ? go(winograd::UpAdjoint()) : go(winograd::PlainAdjoint());
        } else if (out.numel() > 0 && to_few) {
            few::input_grad(grad, weights.data, epilogue.style, epilogue.x, output<A>(out, format), epilogue.sums);
        } else if (out.numel() > 0) {
            const Form form = up == 2 ? down_form() : plain_form(static_cast<int>(size), true);
            Gemm<A>(form, weights, grad, output<A>(out, format)).template run<GradStage<A>>(nullptr, epilogue);
        }
        sums = fused ? sums.sum(1) : sums.flatten();
        return std::tuple<Tensor, Tensor>(out.to(grad_any.scalar_type()), sums);
    });
}

Tensor weight_grad(const Tensor& x_any, const OptionalTensor& style, const Tensor& grad_any, int64_t size,
                   const OptionalTensor& fir, int64_t up, int64_t down, int64_t padding, c10::string_view strategy) {
    check(size, up, down, padding, strategy);
    TORCH_CHECK(x_any.dim() == 4, "modulated_conv2d: x must have rank 4, got ", x_any.sizes());
    check_size(grad_any, x_any.size(2), x_any.size(3), up, !fir);
    TORCH_CHECK(grad_any.size(0) == x_any.size(0) && grad_any.scalar_type() == x_any.scalar_type(),
                "modulated_conv2d: grad ", grad_any.sizes(), " and x ", x_any.sizes(), " do not fit");
    check_numbers(style, x_any, "style", x_any.size(0) * x_any.size(1));
    const auto format = memory_format(4, is_channels_last(x_any));
    const Tensor behind = unfiltered(grad_any, up == 2 ? fir : std::nullopt, format);
    return by_type(x_any, [&](auto type) {
        using A = decltype(type);
        Operands<A> given(format);
        const auto x = given.maps(x_any), grad = given.maps(behind);
        const auto options = x_any.options().dtype(sizeof(A) == 8 ? at::kDouble : at::kFloat);
        if (x_any.numel() == 0) return at::zeros({grad.channels, x.channels, size, size}, options);
        const Tensor out = at::empty({grad.channels, x.channels, size, size}, options);
        if (size == 1 && grad.channels <= few::kMost) {
            few::weight_gradient(x, given.vector(style), grad, out.template mutable_data_ptr<A>());
            return out;
        }
        if (strategy == "winograd") {
            using namespace winograd;
            const auto run = up == 2 ? &winograd::weight_gradient<UpInput, UpGrad, UpKernel, A>
                                     : &winograd::weight_gradient<PlainInput, PlainGrad, PlainKernel, A>;
            run(x, given.vector(style), grad, out.template mutable_data_ptr<A>());
            return out;
        }
        const Form form = up == 2 ? down_form() : plain_form(static_cast<int>(size), false);
        weight_gradient<A>(form, size * size, x, given.vector(style), grad, out.template mutable_data_ptr<A>());
        return out;
    });
}

// [O, I]: what each pair of channels adds to the square that demodulation divides by.
Tensor square_sums(const Tensor& weight_any) {
    const Tensor weight = weight_any.contiguous();
    const int64_t pairs = weight.size(0) * weight.size(1), taps = weight.size(2) * weight.size(3);
    Tensor out = at::empty({weight.size(0), weight.size(1)}, weight.options());
    AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "modulated_conv2d_square_sums", [&] {
        const scalar_t* from = weight.const_data_ptr<scalar_t>();
        scalar_t* to = out.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, pairs, 4096, [&](int64_t begin, int64_t end) {
            for (int64_t pair = begin; pair < end; ++pair) {
                scalar_t sum = 0;
                for (int64_t tap = 0; tap < taps; ++tap) sum += from[pair * taps + tap] * from[pair * taps + tap];
                to[pair] = sum;
            }
        });
    });
    return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(anifast, CPU, m) {
    m.impl("modulated_conv2d", &forward);
    m.impl("modulated_conv2d_input_grad", &input_grad);
    m.impl("modulated_conv2d_weight_grad", &weight_grad);
    m.impl("modulated_conv2d_square_sums", &square_sums);
}

}  // namespace anifast
