// backproject.cu - pixels of points, and bicubic values of token maps at pixels.
// V = 3: view v sees axes (v == 0: 0 1 2; 1: 2 0 1; 2: 1 2 0) as row, column, depth.
//
// Defined by the caller: THREADS; FORMAT, how maps are stored: 0 f32, 1 f16 bits, 2 bf16 bits.

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
// One thread per value: B * Q * V * C threads, channels fastest.
extern "C" __global__ void __launch_bounds__(THREADS)
backproject(const Stored* __restrict__ maps, const int* __restrict__ pixel, const int* __restrict__ first,
            const float* __restrict__ weights, float* __restrict__ values, int B, int Q, int side, int C) {
    const long long item = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (item >= (long long)B * Q * VIEWS * C) return;
    const int c = (int)(item % C);
    const long long value = item / C;
    const int v = (int)(value % VIEWS);
    const long long b = value / VIEWS / Q;
    const int q = (int)(value / VIEWS % Q);
    const long long view = b * VIEWS + v;
    const int* at = pixel + 2 * (view * Q + q);
    const int i = at[0], j = at[1];
    maps += view * side * side * C + c;
    float sum = 0.0f;
    for (int r = 0; r < 4; ++r) {
        const int row = min(max(first[i] + r, 0), side - 1) * side;
        for (int k = 0; k < 4; ++k) {
            const int column = min(max(first[j] + k, 0), side - 1);
            const float weight = __fmul_rn(weights[4 * i + r], weights[4 * j + k]);
            const float term = __fmul_rn(weight, widen(maps[(long long)(row + column) * C]));
            sum = r + k == 0 ? term : __fadd_rn(sum, term);
        }
    }
    values[item] = sum;
}
