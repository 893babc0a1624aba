// The scheduler behind cuda_on_cpu.h, the runtime functions that host code calls, and the tests' handles on both.
#include "cuda_on_cpu.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {

int64_t wide_index_from = (int64_t{1} << 31) - (int64_t{1} << 16);

namespace {

constexpr size_t kStack = 128 * 1024;
constexpr int kWarp = 32;

enum class State { ready, at_barrier, at_shuffle, left };

struct Fiber {
    ucontext_t context;
    void* stack = nullptr;
    State state = State::left;
    uint3 index;
    // Two slots in turn: a lane can be one shuffle ahead of a lane that still reads.
    unsigned char given[2][8];
    unsigned shuffles = 0;
    void* fake_stack = nullptr;
};

int processors = 4;
unsigned order_seed = 0;
int64_t launches = 0;
int64_t blocks_played = 0;
bool fail_next = false;
std::string failure;       // of the launch that plays now, or of the last one until it is asked for
std::string last_message;  // what cudaGetErrorString tells

std::vector<std::unique_ptr<Fiber>> fibers;
ucontext_t scheduler;
Fiber* current = nullptr;
const std::function<void()>* playing = nullptr;
std::map<int, std::unique_ptr<char[]>> shared_blocks;

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;
void* scheduler_fake_stack = nullptr;
#endif

void to_scheduler(bool for_good) {
    Fiber* const fiber = current;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber->fake_stack, scheduler_stack, scheduler_stack_size);
#endif
    swapcontext(&fiber->context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber->fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

void enter() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
    (*playing)();
    current->state = State::left;
    to_scheduler(true);
}

void resume(Fiber& fiber) {
    current = &fiber;
    threadIdx = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, kStack);
#endif
    swapcontext(&scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
    current = nullptr;
}

void wait(State state) {
    current->state = state;
    to_scheduler(false);
}

std::vector<int> order_of(int64_t count, uint64_t salt) {
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    if (order_seed == 1) {
        std::reverse(order.begin(), order.end());
    } else if (order_seed > 1) {
        std::shuffle(order.begin(), order.end(), std::mt19937_64(order_seed + salt));
    }
    return order;
}

// Lets warps go on whose lanes all wait at a shuffle, or the block if all wait at the barrier.
bool release(int threads) {
    bool any = false;
    for (int first = 0; first < threads; first += kWarp) {
        const int last = std::min(first + kWarp, threads);
        const auto waits = [&](int thread) { return fibers[thread]->state == State::at_shuffle; };
        bool all = true;
        for (int thread = first; thread < last; ++thread) all &= waits(thread);
        if (!all) continue;
        for (int thread = first; thread < last; ++thread) fibers[thread]->state = State::ready;
        any = true;
    }
    const auto at_barrier = [](const auto& fiber) { return fiber->state == State::at_barrier; };
    if (!any && std::all_of(fibers.begin(), fibers.begin() + threads, at_barrier)) {
        for (int thread = 0; thread < threads; ++thread) fibers[thread]->state = State::ready;
        any = true;
    }
    return any;
}

void play_block(int threads, uint64_t salt) {
    for (int thread = 0; thread < threads; ++thread) {
        Fiber& fiber = *fibers[thread];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack;
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, &enter, 0);
        fiber.state = State::ready;
        fiber.shuffles = 0;
        const unsigned plane = blockDim.x * blockDim.y;
        fiber.index = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / plane};
    }
    const std::vector<int> order = order_of(threads, salt);
    while (true) {
        for (const int thread : order) {
            if (fibers[thread]->state == State::ready) resume(*fibers[thread]);
        }
        const auto left = [](const auto& fiber) { return fiber->state == State::left; };
        if (std::all_of(fibers.begin(), fibers.begin() + threads, left)) break;
        if (!release(threads)) {
            failure = "some threads of a block wait at a barrier or shuffle that others never reach";
            break;
        }
    }
    shared_blocks.clear();
}

}  // namespace

void launch(dim3 grid, dim3 block, const std::function<void()>& kernel) {
    const int threads = static_cast<int>(block.x * block.y * block.z);
    const int64_t blocks = int64_t{grid.x} * grid.y * grid.z;
    if (std::exchange(fail_next, false)) {
        failure = "the test asked for a failure";
        return;
    }
    if (threads < 1 || threads > 1024 || blocks < 1 || grid.y > 65535 || grid.z > 65535) {
        failure = "invalid configuration: a grid or block of this size cannot be launched";
        return;
    }
    while (fibers.size() < static_cast<size_t>(threads)) {
        fibers.push_back(std::make_unique<Fiber>());
        void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        if (stack == MAP_FAILED) {
            failure = "no memory for the stack of a thread";
            fibers.pop_back();
            return;
        }
        fibers.back()->stack = stack;
    }
    ++launches;
    blocks_played += blocks;
    blockDim = block;
    gridDim = grid;
    playing = &kernel;
    for (const int block_number : order_of(blocks, 1)) {
        const unsigned number = static_cast<unsigned>(block_number);
        blockIdx = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
        play_block(threads, number);
        if (!failure.empty()) return;
    }
}

void* shared_memory(int line, size_t bytes) {
    auto& block = shared_blocks[line];
    if (!block) {
        block.reset(new char[bytes]);
        std::memset(block.get(), 0xff, bytes);  // NaN as float and as double
    }
    return block.get();
}

void block_barrier() { wait(State::at_barrier); }

int lane() { return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % kWarp); }

void warp_exchange(unsigned lanes, void* value, size_t bytes, int source_lane) {
    const int thread = static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    if (lanes != 0xffffffffu || bytes > 8) failure = "only whole-warp shuffles of at most 8 bytes are played";
    const unsigned slot = current->shuffles++ % 2;
    std::memcpy(current->given[slot], value, bytes);
    wait(State::at_shuffle);
    const size_t source = static_cast<size_t>(thread - thread % kWarp + source_lane);
    if (source < blockDim.x * blockDim.y * blockDim.z) std::memcpy(value, fibers[source]->given[slot], bytes);
}

}  // namespace cuda_on_cpu

extern "C" {

cudaError_t cudaGetLastError(void) {
    if (cuda_on_cpu::failure.empty()) return cudaSuccess;
    cuda_on_cpu::last_message.swap(cuda_on_cpu::failure);
    cuda_on_cpu::failure.clear();
    return cudaErrorLaunchFailure;
}

const char* cudaGetErrorString(cudaError_t) { return cuda_on_cpu::last_message.c_str(); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    if (attribute != cudaDevAttrMultiProcessorCount) return cudaErrorInvalidValue;
    *value = cuda_on_cpu::processors;
    return cudaSuccess;
}

// For the tests, by ctypes.
__attribute__((visibility("default"))) void cuda_on_cpu_set(int64_t wide_index_from, int processors,
                                                            unsigned order_seed) {
    cuda_on_cpu::wide_index_from = wide_index_from;
    cuda_on_cpu::processors = processors;
    cuda_on_cpu::order_seed = order_seed;
}

__attribute__((visibility("default"))) int64_t cuda_on_cpu_launches(void) { return cuda_on_cpu::launches; }
__attribute__((visibility("default"))) int64_t cuda_on_cpu_blocks(void) { return cuda_on_cpu::blocks_played; }
__attribute__((visibility("default"))) void cuda_on_cpu_fail_next(void) { cuda_on_cpu::fail_next = true; }
}
