// project.cu - depth views of a cloud: bounds, then splat, then resolve.
// in   points [B, N, 3] f32 contiguous
// out  lo [B, V, 2] f32, cell [B, V] f32, offset [B, V, 2] i32; depth [B, V, S, S] f32
// tmp  scale [B, V] f64; total [B, V, S, S] i64, zero on entry (sum, mean); mark [B, V, S, S] u32, zero on entry (mean: how
//      many depths; max, nearest: the ordered key of the best)
// Arithmetic: floor((p - lo) / cell) in f32, in that order. Sums are of whole numbers below 2^53 in magnitude, so the order
// of the atomics does not matter and the twin may add them as f64.
// V = 3: view v sees axes (v == 0: 0 1 2; 1: 2 0 1; 2: 1 2 0) as row, column, depth.
//
// Defined by the caller: THREADS, a multiple of 32, at most 1024.

#define VIEWS 3
#define MARGIN 3
#define WARPS (THREADS / 32)
#define FULL 0xffffffffu
#define SUM 0
#define MEAN 1
#define MAX 2
#define NEAREST 3

__device__ int row_axis(int v) { return v == 0 ? 0 : 3 - v; }
__device__ int column_axis(int v) { return v == 0 ? 1 : (v == 1 ? 0 : 2); }
__device__ int depth_axis(int v) { return v == 0 ? 2 : (v == 1 ? 1 : 0); }

// The maximum over the block, in every thread; `shared` holds WARPS values and is free again after the next barrier.
__device__ float block_max(float value, float* shared) {
    for (int step = 16; step > 0; step >>= 1) {
        const float other = __shfl_xor_sync(FULL, value, step);
        value = other > value ? other : value;
    }
    __syncthreads();  // the previous call's values may still be read
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    value = shared[0];
    for (int w = 1; w < WARPS; ++w) value = shared[w] > value ? shared[w] : value;
    return value;
}

// Pixel of a coordinate before centring. Within the cloud that gave lo and cell it is 0 .. S - 3.
__device__ int index_of(float p, float lo, float cell) { return (int)floorf(__fdiv_rn(__fsub_rn(p, lo), cell)); }

// One block per view of a cloud.
extern "C" __global__ void __launch_bounds__(THREADS)
bounds(const float* __restrict__ points, float* __restrict__ lo, float* __restrict__ cell, int* __restrict__ offset,
       double* __restrict__ scale, int N, int S, int exponent) {
    __shared__ float shared[WARPS];
    const int v = blockIdx.x % VIEWS;
    points += (long long)(blockIdx.x / VIEWS) * N * 3;
    const int row = row_axis(v), column = column_axis(v), depth = depth_axis(v);

    const float least = -__int_as_float(0x7f800000);
    float row_lo = least, row_hi = least, column_lo = least, column_hi = least, far = 0.0f;  // lo: of the negated
    for (int n = threadIdx.x; n < N; n += THREADS) {
        const float p = points[3ll * n + row], q = points[3ll * n + column], d = fabsf(points[3ll * n + depth]);
        row_lo = -p > row_lo ? -p : row_lo;
        row_hi = p > row_hi ? p : row_hi;
        column_lo = -q > column_lo ? -q : column_lo;
        column_hi = q > column_hi ? q : column_hi;
        far = d > far ? d : far;
    }
    row_lo = __fadd_rn(-block_max(row_lo, shared), 0.0f);  // -0 becomes 0
    row_hi = block_max(row_hi, shared);
    column_lo = __fadd_rn(-block_max(column_lo, shared), 0.0f);
    column_hi = block_max(column_hi, shared);
    far = block_max(far, shared);
    const float rows = __fsub_rn(row_hi, row_lo), columns = __fsub_rn(column_hi, column_lo);
    float side = __fdiv_rn(columns > rows ? columns : rows, (float)(S - MARGIN));
    if (!(side >= __int_as_float(0x00800000))) side = 1.0f;  // below the smallest normal: no extent

    if (threadIdx.x != 0) return;
    // The far edge has the largest index, because subtraction, division and floor are monotonic.
    const int row_top = index_of(row_hi, row_lo, side), column_top = index_of(column_hi, column_lo, side);
    lo[2 * blockIdx.x] = row_lo;
    lo[2 * blockIdx.x + 1] = column_lo;
    cell[blockIdx.x] = side;
    offset[2 * blockIdx.x] = S / 2 - (row_top + 2) / 2 - 1;
    offset[2 * blockIdx.x + 1] = S / 2 - (column_top + 2) / 2 - 1;
    // far = m * 2^e with m in [0.5, 1); depths become multiples of 2^(e - exponent).
    const int e = far == 0.0f ? 0 : (int)((__double_as_longlong((double)far) >> 52) & 2047) - 1022;
    scale[blockIdx.x] = __longlong_as_double((long long)(1023 + exponent - e) << 52);
}

// One thread per point of a view: B * V * N threads.
extern "C" __global__ void __launch_bounds__(THREADS)
splat(const float* __restrict__ points, const float* __restrict__ lo, const float* __restrict__ cell,
      const int* __restrict__ offset, const double* __restrict__ scale, unsigned long long* __restrict__ total,
      unsigned* __restrict__ mark, int B, int N, int S, int width, int reduction) {
    const long long item = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (item >= (long long)B * VIEWS * N) return;
    const long long view = item / N;
    const int v = (int)(view % VIEWS);
    const float* p = points + (view / VIEWS * N + item % N) * 3;
    const float d = __fadd_rn(p[depth_axis(v)], 0.0f);  // -0 becomes 0
    const int half = width / 2;
    const int row = index_of(p[row_axis(v)], lo[2 * view], cell[view]) + 1 + offset[2 * view];
    const int column = index_of(p[column_axis(v)], lo[2 * view + 1], cell[view]) + 1 + offset[2 * view + 1];
    const unsigned long long fixed = (unsigned long long)__double2ll_rn((double)d * scale[view]);
    unsigned bits = __float_as_uint(d);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;  // ordered like the floats; never 0 or all ones
    if (reduction == NEAREST) bits = ~bits;
    for (int di = -half; di <= half; ++di) {
        const int i = min(max(row + di, 0), S - 1);
        for (int dj = -half; dj <= half; ++dj) {
            const int j = min(max(column + dj, 0), S - 1);
            const long long pixel = (view * S + i) * S + j;
            // Integer sums and maxima do not depend on the order of the atomics; float sums would. Two's complement:
            // adding a negative depth as unsigned wraps to the signed sum.
            if (reduction <= MEAN) atomicAdd(total + pixel, fixed);
            if (reduction == MEAN) atomicAdd(mark + pixel, 1u);
            if (reduction >= MAX) atomicMax(mark + pixel, bits);
        }
    }
}

// One thread per pixel: B * V * S * S threads.
extern "C" __global__ void __launch_bounds__(THREADS)
resolve(const double* __restrict__ scale, const long long* __restrict__ total, const unsigned* __restrict__ mark,
        float* __restrict__ depth, int B, int S, int reduction) {
    const long long pixel = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (pixel >= (long long)B * VIEWS * S * S) return;
    if (reduction >= MAX) {
        unsigned bits = mark[pixel];
        const bool empty = bits == 0;
        if (reduction == NEAREST) bits = ~bits;
        bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
        depth[pixel] = empty ? 0.0f : __uint_as_float(bits);
        return;
    }
    // The total is below 2^53 and the scale a power of two, so this is exact; only the division by a count
    // and the final conversion round.
    double value = (double)total[pixel] * (1.0 / scale[pixel / ((long long)S * S)]);
    if (reduction == MEAN && mark[pixel] > 1) value = value / (double)mark[pixel];
    depth[pixel] = (float)value;
}
