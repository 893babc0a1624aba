// The types that CPU kernels are compiled for.
#pragma once

#include <ATen/Dispatch.h>

#define ANIFAST_DISPATCH(TYPE, NAME, ...) \
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, TYPE, NAME, __VA_ARGS__)
