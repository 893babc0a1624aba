// Vectors with float or double lanes, and loads and stores that convert.
//
// GCC's and clang's vector extensions carry the arithmetic, so one source serves AVX-512, AVX2, SSE and NEON. A vector
// of float is a register of AVX-512 or AVX2: what is wider the compiler splits, but it fills it lane by lane through
// memory. A vector of double has 8 lanes everywhere, because masks are written in whole bytes.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define ANIFAST_AVX512 1
#endif
// AddressSanitizer does not see what masked instructions read and write.
#if defined(__SANITIZE_ADDRESS__)
#define ANIFAST_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ANIFAST_ADDRESS_SANITIZER 1
#endif
#endif
#if defined(ANIFAST_AVX512) && !defined(ANIFAST_ADDRESS_SANITIZER)
#define ANIFAST_MASKED_MEMORY 1
#endif

namespace anifast {

// The type in which values of T are computed and summed.
template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class A>
struct Lanes;

template <>
struct Lanes<float> {
    using Int = int32_t;
#if defined(ANIFAST_AVX512)
    static constexpr int kWidth = 16;
#else
    static constexpr int kWidth = 8;
#endif
};
template <>
struct Lanes<double> {
    using Int = int64_t;
    static constexpr int kWidth = 8;
};

template <class A>
inline constexpr int kWidth = Lanes<A>::kWidth;

template <class A>
struct VecTypes {
    typedef A Value __attribute__((vector_size(sizeof(A) * Lanes<A>::kWidth)));
    typedef typename Lanes<A>::Int Int __attribute__((vector_size(sizeof(A) * Lanes<A>::kWidth)));
};
template <class A>
using Vec = typename VecTypes<A>::Value;
// All-ones or all-zeros in each lane: what comparing two Vec gives.
template <class A>
using LaneMask = typename VecTypes<A>::Int;

template <class A>
inline Vec<A> broadcast(A value) {
    return value - Vec<A>{};
}

template <class T>
inline Vec<Accumulate<T>> load(const T* from) {
    using A = Accumulate<T>;
    Vec<A> out;
    if constexpr (std::is_same_v<T, A>) {
        std::memcpy(&out, from, sizeof(out));
    } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
#if defined(ANIFAST_AVX512)
        // one instruction each, where the compiler makes four of the conversions below
        __m256i bits;
        std::memcpy(&bits, from, sizeof(bits));
        out = (Vec<A>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#else
        typedef uint16_t Bits __attribute__((vector_size(sizeof(Vec<float>) / 2)));
        typedef uint32_t Wide __attribute__((vector_size(sizeof(Vec<float>))));
        Bits bits;
        std::memcpy(&bits, from, sizeof(bits));
        const Wide wide = __builtin_convertvector(bits, Wide) << 16;
        std::memcpy(&out, &wide, sizeof(out));
#endif
    } else {
#if defined(ANIFAST_AVX512)
        __m256i bits;
        std::memcpy(&bits, from, sizeof(bits));
        out = (Vec<A>)_mm512_cvtph_ps(bits);
#elif defined(__F16C__)
        __m128i bits;
        std::memcpy(&bits, from, sizeof(bits));
        out = (Vec<A>)_mm256_cvtph_ps(bits);
#else
        for (int i = 0; i < kWidth<A>; ++i) out[i] = static_cast<A>(from[i]);
#endif
    }
    return out;
}

template <class T>
inline void store(T* to, Vec<Accumulate<T>> value) {
    using A = Accumulate<T>;
    if constexpr (std::is_same_v<T, A>) {
        std::memcpy(to, &value, sizeof(value));
    } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
        // round to nearest even; NaN keeps a set mantissa bit
#if defined(ANIFAST_AVX512)
        const __m512i wide = (__m512i)value;
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(wide, 16), _mm512_set1_epi32(1));
        __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(wide, _mm512_set1_epi32(0x7fff)), odd);
        rounded = _mm512_srli_epi32(rounded, 16);
        const __mmask16 nan = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_UNORD_Q);
        rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
        const __m256i bits = _mm512_cvtepi32_epi16(rounded);
        std::memcpy(to, &bits, sizeof(bits));
#else
        typedef uint16_t Bits __attribute__((vector_size(sizeof(Vec<float>) / 2)));
        typedef uint32_t Wide __attribute__((vector_size(sizeof(Vec<float>))));
        Wide wide;
        std::memcpy(&wide, &value, sizeof(wide));
        const Wide rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
        const Wide nan = (Wide)(value != value);
        const Bits bits = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), Bits);
        std::memcpy(to, &bits, sizeof(bits));
#endif
    } else {
#if defined(ANIFAST_AVX512)
        const __m256i bits = _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
        std::memcpy(to, &bits, sizeof(bits));
#elif defined(__F16C__)
        const __m128i bits = _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
        std::memcpy(to, &bits, sizeof(bits));
#else
        for (int i = 0; i < kWidth<A>; ++i) to[i] = static_cast<T>(value[i]);
#endif
    }
}

// Past the caches, for what is not read again soon; `to` is aligned to a vector.
template <class A>
inline void store_past_caches(A* to, Vec<A> value) {
#if defined(ANIFAST_AVX512)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)value);
#elif defined(__AVX2__)
    if constexpr (sizeof(value) == 32) {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)value);
    } else {
        store(to, value);
    }
#else
    store(to, value);
#endif
}

// Behind the last of them, before other threads read.
inline void fence_past_caches() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

#if defined(ANIFAST_MASKED_MEMORY)
inline __mmask16 first_of_16(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
inline __mmask8 first_of_8(int64_t count) { return static_cast<__mmask8>((1u << count) - 1); }
#endif

// All ones in the first `count` lanes.
template <class A>
inline LaneMask<A> first_lanes(int64_t count) {
    LaneMask<A> lane;
    for (int i = 0; i < kWidth<A>; ++i) lane[i] = i;
    return lane < static_cast<typename Lanes<A>::Int>(count);
}

// The first `count` values, 0 .. a full vector; the lanes beyond are 0.
template <class T>
inline Vec<Accumulate<T>> load_first(const T* from, int64_t count) {
#if defined(ANIFAST_MASKED_MEMORY)
    if constexpr (std::is_same_v<T, float>) {
        return (Vec<float>)_mm512_maskz_loadu_ps(first_of_16(count), from);
    } else if constexpr (std::is_same_v<T, double>) {
        return (Vec<double>)_mm512_maskz_loadu_pd(first_of_8(count), from);
    } else {
        T buffer[16];
        const __m256i bits = _mm256_maskz_loadu_epi16(first_of_16(count), from);
        std::memcpy(buffer, &bits, sizeof(bits));
        return load(buffer);
    }
#else
#if defined(__AVX2__) && !defined(ANIFAST_ADDRESS_SANITIZER)
    if constexpr (std::is_same_v<T, float>) {
        return (Vec<float>)_mm256_maskload_ps(from, (__m256i)first_lanes<float>(count));
    }
#endif
    T buffer[kWidth<Accumulate<T>>] = {};
    std::memcpy(buffer, from, count * sizeof(T));
    return load(buffer);
#endif
}

template <class T>
inline void store_first(T* to, Vec<Accumulate<T>> value, int64_t count) {
#if defined(ANIFAST_MASKED_MEMORY)
    if constexpr (std::is_same_v<T, float>) {
        _mm512_mask_storeu_ps(to, first_of_16(count), (__m512)value);
    } else if constexpr (std::is_same_v<T, double>) {
        _mm512_mask_storeu_pd(to, first_of_8(count), (__m512d)value);
    } else {
        T buffer[16];
        store(buffer, value);
        __m256i bits;
        std::memcpy(&bits, buffer, sizeof(bits));
        _mm256_mask_storeu_epi16(to, first_of_16(count), bits);
    }
#else
#if defined(__AVX2__) && !defined(ANIFAST_ADDRESS_SANITIZER)
    if constexpr (std::is_same_v<T, float>) {
        return _mm256_maskstore_ps(to, (__m256i)first_lanes<float>(count), (__m256)value);
    }
#endif
    T buffer[kWidth<Accumulate<T>>];
    store(buffer, value);
    std::memcpy(to, buffer, count * sizeof(T));
#endif
}

// load_first for a run that ends before `end`, up to which may be read.
template <class T>
inline Vec<Accumulate<T>> load_until(const T* from, [[maybe_unused]] const T* end, int64_t count) {
#if !defined(ANIFAST_MASKED_MEMORY)
    if (from + kWidth<Accumulate<T>> <= end) return load(from);
#endif
    return load_first(from, count);
}

// load_first; with kWhole a whole vector may be read.
template <bool kWhole, class T>
inline Vec<Accumulate<T>> load_lanes(const T* from, int64_t count) {
#if !defined(ANIFAST_MASKED_MEMORY)
    if constexpr (kWhole) {
        using A = Accumulate<T>;
        return (Vec<A>)((LaneMask<A>)load(from) & first_lanes<A>(count));
    }
#endif
    return load_first(from, count);
}

template <class A>
inline Vec<A> select(LaneMask<A> mask, Vec<A> yes, Vec<A> no) {
    return mask ? yes : no;
}

template <bool kFull, class T>
inline Vec<Accumulate<T>> load_n(const T* from, int64_t n) {
    if constexpr (kFull) {
        return load(from);
    } else {
        return load_first(from, n);
    }
}

template <bool kFull, class T>
inline void store_n(T* to, Vec<Accumulate<T>> value, int64_t n) {
    if constexpr (kFull) {
        store(to, value);
    } else {
        store_first(to, value, n);
    }
}

// Calls step(i, n, full) over [begin, end): whole vectors, then the rest.
template <int W, class Step>
inline void for_vectors(int64_t begin, int64_t end, const Step& step) {
    int64_t i = begin;
#pragma GCC unroll 4
    for (; i + W <= end; i += W) step(i, W, std::true_type{});
    if (i < end) step(i, end - i, std::false_type{});
}

// By halves: one after the other, sixteen lanes would wait fifteen times for the sum before.
template <class A>
inline A sum_lanes(Vec<A> value) {
    A lanes[kWidth<A>];
    std::memcpy(lanes, &value, sizeof(value));
#pragma GCC unroll 4
    for (int half = kWidth<A> / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

// The even and the odd of two vectors of neighbours.
inline void unzip(Vec<float> low, Vec<float> high, Vec<float>& even, Vec<float>& odd) {
#if defined(ANIFAST_AVX512)
    const __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i second = _mm512_or_si512(first, _mm512_set1_epi32(1));
    even = (Vec<float>)_mm512_permutex2var_ps((__m512)low, first, (__m512)high);
    odd = (Vec<float>)_mm512_permutex2var_ps((__m512)low, second, (__m512)high);
#elif defined(__AVX2__)
    const auto sorted = [](__m256 v) {
        return (Vec<float>)_mm256_permute4x64_pd(_mm256_castps_pd(v), _MM_SHUFFLE(3, 1, 2, 0));
    };
    even = sorted(_mm256_shuffle_ps((__m256)low, (__m256)high, _MM_SHUFFLE(2, 0, 2, 0)));
    odd = sorted(_mm256_shuffle_ps((__m256)low, (__m256)high, _MM_SHUFFLE(3, 1, 3, 1)));
#else
    constexpr int kHalf = kWidth<float> / 2;
    for (int i = 0; i < kHalf; ++i) even[i] = low[2 * i], odd[i] = low[2 * i + 1];
    for (int i = 0; i < kHalf; ++i) even[kHalf + i] = high[2 * i], odd[kHalf + i] = high[2 * i + 1];
#endif
}

// The reverse: even[0] odd[0] even[1] odd[1] ...
inline void zip(Vec<float> even, Vec<float> odd, Vec<float>& low, Vec<float>& high) {
#if defined(ANIFAST_AVX512)
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    low = (Vec<float>)_mm512_permutex2var_ps((__m512)even, first, (__m512)odd);
    high = (Vec<float>)_mm512_permutex2var_ps((__m512)even, second, (__m512)odd);
#elif defined(__AVX2__)
    const __m256 first = _mm256_unpacklo_ps((__m256)even, (__m256)odd);
    const __m256 second = _mm256_unpackhi_ps((__m256)even, (__m256)odd);
    low = (Vec<float>)_mm256_permute2f128_ps(first, second, 0x20);
    high = (Vec<float>)_mm256_permute2f128_ps(first, second, 0x31);
#else
    constexpr int kHalf = kWidth<float> / 2;
    for (int i = 0; i < kHalf; ++i) low[2 * i] = even[i], low[2 * i + 1] = odd[i];
    for (int i = 0; i < kHalf; ++i) high[2 * i] = even[kHalf + i], high[2 * i + 1] = odd[kHalf + i];
#endif
}

// One bit a lane, lane 0 lowest.
template <class A>
inline uint32_t to_bits(LaneMask<A> mask) {
#if defined(ANIFAST_AVX512)
    if constexpr (std::is_same_v<A, float>) {
        return _mm512_movepi32_mask((__m512i)mask);
    } else {
        return _mm512_movepi64_mask((__m512i)mask);
    }
#elif defined(__AVX2__)
    if constexpr (std::is_same_v<A, float>) {
        return _mm256_movemask_ps((__m256)mask);
    } else {
        __m256d halves[2];
        std::memcpy(halves, &mask, sizeof(mask));
        return _mm256_movemask_pd(halves[0]) | _mm256_movemask_pd(halves[1]) << 4;
    }
#else
    uint32_t bits = 0;
    for (int i = 0; i < kWidth<A>; ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
    return bits;
#endif
}

template <class A>
inline LaneMask<A> from_bits(uint32_t bits) {
    LaneMask<A> lane_bit;
    for (int i = 0; i < kWidth<A>; ++i) lane_bit[i] = typename Lanes<A>::Int(1) << i;
    const LaneMask<A> all = static_cast<typename Lanes<A>::Int>(bits) - LaneMask<A>{};
    return (all & lane_bit) != 0;
}

}  // namespace anifast
