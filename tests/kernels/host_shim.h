// host_shim.h - enough of CUDA C to run the kernels of cuda/kernels on a CPU, block after block.
//
// A thread that has to wait (at a barrier, in a warp collective) gives way as a fiber; one that never waits costs a call.
// Stricter than a GPU where a GPU would be undefined: a barrier or collective that not every live thread reaches, or a
// collective with an incomplete warp, is reported as an error instead of a wrong answer.

#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace host {

struct Index { int x = 0, y = 0, z = 0; };

struct Barrier {
    int size = 0, arrived = 0;
    long phase = 0;
    void open_if_full() {
        if (size > 0 && arrived == size) {
            arrived = 0;
            ++phase;
        }
    }
};

struct Warp {
    Barrier barrier;
    int begun = 0, ended = 0;
    uint64_t slot[32];
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Index thread;
    bool busy = false;
};

constexpr size_t STACK = 64 * 1024;

inline Index block_index, block_size;
inline Fiber* current = nullptr;
inline ucontext_t scheduler;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<Warp> warps;
inline Barrier block_barrier;
inline const char* error = nullptr;
inline bool reverse = false;
inline int next_thread = 0;
inline long progress = 0;
inline void (*body)(void**) = nullptr;
inline void** arguments = nullptr;

inline void give_way() { swapcontext(&current->context, &scheduler); }

[[noreturn]] inline void fail(const char* message) {
    error = message;
    for (;;) give_way();
}

inline void wait(Barrier& barrier) {
    const long phase = barrier.phase;
    ++barrier.arrived;
    ++progress;
    barrier.open_if_full();
    while (barrier.phase == phase) give_way();
    ++progress;
}

inline void fiber_main() {
    for (;;) {
        while (next_thread < block_size.x && !error) {
            const int turn = next_thread++;
            const int thread = reverse ? block_size.x - 1 - turn : turn;
            current->thread.x = thread;
            current->busy = true;
            body(arguments);
            ++progress;
            Warp& warp = warps[thread / 32];
            ++warp.ended;
            --warp.barrier.size;
            --block_barrier.size;
            warp.barrier.open_if_full();
            block_barrier.open_if_full();
        }
        current->busy = false;
        give_way();
    }
}

inline void resume(Fiber& fiber) {
    current = &fiber;
    swapcontext(&scheduler, &fiber.context);
}

inline void run_block() {
    next_thread = 0;
    block_barrier = Barrier{block_size.x};
    warps.assign((block_size.x + 31) / 32, Warp{});
    for (size_t w = 0; w < warps.size(); ++w) warps[w].barrier.size = std::min(32, block_size.x - 32 * int(w));
    size_t used = 0;
    while (next_thread < block_size.x && !error) {  // a fiber runs thread after thread until one has to wait
        if (used == fibers.size()) {
            fibers.push_back(std::make_unique<Fiber>());
            Fiber& fiber = *fibers.back();
            fiber.stack.reset(new char[STACK]);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = STACK;
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, fiber_main, 0);
        }
        resume(*fibers[used++]);
    }
    for (bool waiting = true; waiting && !error;) {
        waiting = false;
        const long before = progress;
        for (size_t i = 0; i < used && !error; ++i) {
            Fiber& fiber = *fibers[i];
            if (fiber.busy) resume(fiber);
            waiting |= fiber.busy;
        }
        if (waiting && progress == before) error = "deadlock: a barrier or warp collective was not reached by every thread";
    }
    if (error) fibers.clear();  // abandoned in the middle of the kernel
}

template <class... Parameters, size_t... I>
void call(void (*kernel)(Parameters...), void** values, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<Parameters>*>(values[I])...);
}

// nullptr, or what went wrong.
template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), void (*call_kernel)(void**), int blocks, int threads, int backwards,
                   void** values) {
    error = threads % 32 ? "block size is not a multiple of 32" : nullptr;
    body = call_kernel;
    arguments = values;
    block_size.x = threads;
    reverse = backwards;
    for (int i = 0; i < blocks && !error; ++i) {
        block_index.x = backwards ? blocks - 1 - i : i;
        run_block();
    }
    return error;
}

inline Warp& whole_warp(unsigned mask) {
    Warp& warp = warps[current->thread.x / 32];
    if (mask != 0xffffffffu) fail("a warp collective with a partial mask");
    if (warp.ended) fail("a warp collective after a lane has returned");
    return warp;
}

// All lanes are here; a lane that returned instead would have let the barrier open.
inline void meet(Warp& warp) {
    wait(warp.barrier);
    if (warp.ended) fail("a warp collective after a lane has returned");
}

inline int lane() { return current->thread.x % 32; }

template <class T>
T from_lane(unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8);
    Warp& warp = whole_warp(mask);
    std::memcpy(&warp.slot[lane()], &value, sizeof(T));
    meet(warp);
    std::memcpy(&value, &warp.slot[source], sizeof(T));
    wait(warp.barrier);
    return value;
}

template <class To, class From>
To bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To out;
    std::memcpy(&out, &value, sizeof(out));
    return out;
}

}  // namespace host

#define HOST_KERNEL(name)                                                                                              \
    extern "C" const char* host_##name(int blocks, int threads, int backwards, void** values) {                        \
        return host::launch(                                                                                           \
            name, [](void** v) { host::call_any(name, v); }, blocks, threads, backwards, values);                      \
    }

namespace host {
template <class... Parameters>
void call_any(void (*kernel)(Parameters...), void** values) {
    call(kernel, values, std::index_sequence_for<Parameters...>{});
}
}  // namespace host

#define __global__
#define __device__ static inline
#define __shared__ static
#define __launch_bounds__(...)
#define threadIdx (host::current->thread)
#define blockIdx (host::block_index)
#define blockDim (host::block_size)

inline void __syncthreads() { host::wait(host::block_barrier); }

template <class T> T __shfl_sync(unsigned mask, T value, int source) { return host::from_lane(mask, value, source & 31); }
template <class T> T __shfl_xor_sync(unsigned mask, T value, int step) {
    return host::from_lane(mask, value, host::lane() ^ step);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, int step) {
    return host::from_lane(mask, value, host::lane() < step ? host::lane() : host::lane() - step);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
    host::Warp& warp = host::whole_warp(mask);
    warp.slot[host::lane()] = predicate;
    host::meet(warp);
    unsigned out = 0;
    for (int i = 0; i < 32; ++i) out |= unsigned(warp.slot[i] != 0) << i;
    host::wait(warp.barrier);
    return out;
}
inline int __ffs(unsigned value) { return __builtin_ffs(int(value)); }

template <class T> T atomicAdd(T* at, T value) { T old = *at; *at = T(old + value); return old; }
template <class T> T atomicMax(T* at, T value) { T old = *at; *at = std::max(old, value); return old; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float value) { return host::bits<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return host::bits<float>(value); }
inline float __int_as_float(int value) { return host::bits<float>(value); }
inline long long __double_as_longlong(double value) { return host::bits<long long>(value); }
inline double __longlong_as_double(long long value) { return host::bits<double>(value); }
inline long long __double2ll_rn(double value) { return std::llrint(value); }
using std::max;
using std::min;
