// backproject.cu - pixels of points, and bicubic values of token maps at pixels.
// V = 3: view v sees axes (v == 0: 0 1 2; 1: 2 0 1; 2: 1 2 0) as row, column, depth.
//
// Defined by the caller: THREADS, a multiple of 32; FORMAT, how maps are stored: 0 f32, 1 f16 bits, 2 bf16 bits.

#define VIEWS 3

#if FORMAT == 0
typedef float Stored;
__device__ float widen(float value) { return value; }
#elif FORMAT == 1
typedef unsigned short Stored;
__device__ float widen(unsigned short half) {
    const unsigned body = (half & 0x7fffu) << 13;
    float value = __fmul_rn(__uint_as_float(body), 5.192296858534828e33f);  // 2^112, the difference of the biases; exact
    if (body >= 0x0f800000u) value = __uint_as_float(body | 0x7f800000u);   // infinity or NaN
    return __uint_as_float(__float_as_uint(value) | (half & 0x8000u) << 16);
}
#else
typedef unsigned short Stored;
__device__ float widen(unsigned short half) { return __uint_as_float((unsigned)half << 16); }
#endif

// in  points [B, Q, 3] f32, lo [B, V, 2] f32, cell [B, V] f32, offset [B, V, 2] i32     out  pixel [B, V, Q, 2] i32
// Arithmetic: floor((p - lo) / cell) + 1 + offset, all in f32, then clamped to 0..S-1. One thread per point of a view.
extern "C" __global__ void __launch_bounds__(THREADS)
pixels(const float* __restrict__ points, const float* __restrict__ lo, const float* __restrict__ cell,
       const int* __restrict__ offset, int* __restrict__ pixel, int B, int Q, int S) {
    const long long item = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (item >= (long long)B * VIEWS * Q) return;
    const long long view = item / Q;
    const int v = (int)(view % VIEWS);
    const float* p = points + (view / VIEWS * Q + item % Q) * 3;
    const int axes[2] = {v == 0 ? 0 : 3 - v, v == 0 ? 1 : (v == 1 ? 0 : 2)};
    const float top = (float)(S - 1);
    for (int axis = 0; axis < 2; ++axis) {
        const float shift = (float)(1 + offset[2 * view + axis]);
        float at = floorf(__fdiv_rn(__fsub_rn(p[axes[axis]], lo[2 * view + axis]), cell[view]));
        at = __fadd_rn(at, shift);
        at = at > 0.0f ? at : 0.0f;  // clamped as a float: a far-off or non-finite query stays inside the image
        at = at < top ? at : top;
        pixel[2 * item + axis] = (int)at;
    }
}

// in   maps [B, V, T, C] Stored, T = side * side; pixel [B, V, Q, 2] i32
//      first [S] i32: first of the four map rows (columns) a pixel reads, before clamping; weights [S, 4] f32
// out  values [B, Q, V, C] f32
// Arithmetic: weight = row weight * column weight; products added row by row, column by column, in f32, unfused.
// One warp per point of a view: B * Q * V warps. The 16 tokens and weights are found once and used for every channel.
extern "C" __global__ void __launch_bounds__(THREADS)
backproject(const Stored* __restrict__ maps, const int* __restrict__ pixel, const int* __restrict__ first,
            const float* __restrict__ weights, float* __restrict__ values, int B, int Q, int side, int C) {
    const long long value = (long long)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (value >= (long long)B * Q * VIEWS) return;
    const int v = (int)(value % VIEWS);
    const long long point = value / VIEWS;
    const long long view = point / Q * VIEWS + v;
    const int* at = pixel + 2 * (view * Q + point % Q);
    const int i = at[0], j = at[1];
    int token[16];
    float weight[16];
#pragma unroll
    for (int t = 0; t < 16; ++t) {
        const int row = min(max(first[i] + t / 4, 0), side - 1);
        const int column = min(max(first[j] + t % 4, 0), side - 1);
        token[t] = row * side + column;
        weight[t] = __fmul_rn(weights[4 * i + t / 4], weights[4 * j + t % 4]);
    }
    maps += view * side * side * C;
    values += value * C;
    for (int c = threadIdx.x % 32; c < C; c += 32) {
        float sum = __fmul_rn(weight[0], widen(maps[(long long)token[0] * C + c]));
#pragma unroll
        for (int t = 1; t < 16; ++t) sum = __fadd_rn(sum, __fmul_rn(weight[t], widen(maps[(long long)token[t] * C + c])));
        values[c] = sum;
    }
}
