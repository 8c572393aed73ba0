// fps.cu - farthest point sampling, one block per cloud.
// in  points [B, N, 3] f32 contiguous     out  idx [B, K] i32     tmp  best [B, N] f32: squared distance to the chosen set
// Arithmetic: dx*dx, + dy*dy, + dz*dz in that order, unfused. Argmax keeps the lowest index. Any B, N >= 1, 1 <= K <= N.
// skip != 0: a point with squared norm <= 1e-3 is never chosen, except point 0 as the start.
//
// Defined by the caller: THREADS, a multiple of 32; PER_THREAD: 0, or so many points a thread that THREADS * PER_THREAD
// >= N, which then live in registers (best is not used).

#define WARPS (THREADS / 32)
#define FULL 0xffffffffu

// Larger for a larger distance, then for a lower index. A negative distance (never to be chosen) sorts below all others.
__device__ unsigned long long key_of(float best, int i) {
    const unsigned order = best < 0.0f ? 0u : (__float_as_uint(best) | 0x80000000u);
    return ((unsigned long long)order << 32) | (0xffffffffu - (unsigned)i);
}

__device__ float start_value(float x, float y, float z, int skip) {
    const float norm2 = __fadd_rn(__fadd_rn(__fmul_rn(x, x), __fmul_rn(y, y)), __fmul_rn(z, z));
    // The reference compares in double: the float32 nearest to 1e-3 is larger than 1e-3 and must not count as within.
    return skip && (double)norm2 <= 1e-3 ? -1.0f : __int_as_float(0x7f800000);
}

__device__ float nearer(float best, float x, float y, float z, float cx, float cy, float cz) {
    // Explicitly rounded operations cannot be contracted to fused multiply-adds, so the bits equal the CPU twin's.
    const float dx = __fsub_rn(x, cx);
    const float dy = __fsub_rn(y, cy);
    const float dz = __fsub_rn(z, cz);
    const float dist2 = __fadd_rn(__fadd_rn(__fmul_rn(dx, dx), __fmul_rn(dy, dy)), __fmul_rn(dz, dz));
    return dist2 < best ? dist2 : best;
}

__device__ unsigned long long warp_max(unsigned long long key) {
    for (int step = 16; step > 0; step >>= 1) {
        const unsigned long long other = __shfl_xor_sync(FULL, key, step);
        key = other > key ? other : key;
    }
    return key;
}

extern "C" __global__ void __launch_bounds__(THREADS)
fps(const float* __restrict__ points, int* __restrict__ idx, float* __restrict__ best, int N, int K, int skip) {
    // Two sets of keys, used in turn, so that one barrier a sample is enough.
    __shared__ unsigned long long keys[2][WARPS];
    const int thread = threadIdx.x;
    const int lane = thread % 32;
    points += (long long)blockIdx.x * N * 3;
    idx += (long long)blockIdx.x * K;

#if PER_THREAD > 0
    float x[PER_THREAD], y[PER_THREAD], z[PER_THREAD], own[PER_THREAD];
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j) {
        const int i = thread + j * THREADS;
        const int at = i < N ? i : 0;
        x[j] = points[3 * at];
        y[j] = points[3 * at + 1];
        z[j] = points[3 * at + 2];
        own[j] = i < N ? start_value(x[j], y[j], z[j], skip) : -1.0f;
    }
#else
    best += (long long)blockIdx.x * N;
    for (int i = thread; i < N; i += THREADS)
        best[i] = start_value(points[3 * i], points[3 * i + 1], points[3 * i + 2], skip);
#endif

    int chosen = 0;
    if (thread == 0) idx[0] = 0;
    for (int k = 1; k < K; ++k) {
        const float cx = points[3 * chosen];
        const float cy = points[3 * chosen + 1];
        const float cz = points[3 * chosen + 2];
        unsigned long long key = 0;
#if PER_THREAD > 0
#pragma unroll
        for (int j = 0; j < PER_THREAD; ++j) {
            const int i = thread + j * THREADS;
            own[j] = nearer(own[j], x[j], y[j], z[j], cx, cy, cz);
            const unsigned long long candidate = i < N ? key_of(own[j], i) : 0;
            key = candidate > key ? candidate : key;
        }
#else
        for (int i = thread; i < N; i += THREADS) {
            const float value = nearer(best[i], points[3 * i], points[3 * i + 1], points[3 * i + 2], cx, cy, cz);
            best[i] = value;
            const unsigned long long candidate = key_of(value, i);
            key = candidate > key ? candidate : key;
        }
#endif
        // Keys are unique, so the maximum does not depend on the order of the reduction, and ties go to the lowest index.
        key = warp_max(key);
        if (lane == 0) keys[k % 2][thread / 32] = key;
        __syncthreads();
        // Every warp repeats this small reduction: cheaper than a second barrier to broadcast one warp's result.
        key = warp_max(lane < WARPS ? keys[k % 2][lane] : 0);
        chosen = (int)(0xffffffffu - (unsigned)key);
        if (thread == 0) idx[k] = chosen;
    }
}
