// gather.cu - rows of a cloud's array at indices, such rows less their group's centre, and the gradient.
//
// Defined by the caller: THREADS, a multiple of 32; LANES, a power of two up to 32: threads that share a row; WIDTH, bytes
// of a value: 2 (only in `gather`), 4 or 8.

#define ROWS (THREADS / LANES)
#define CHANNELS 4
#define FULL 0xffffffffu

#if WIDTH == 8
typedef unsigned long long Bits;
typedef double Real;
__device__ Real add(Real a, Real b) { return __dadd_rn(a, b); }
__device__ Real nan_value() { return __longlong_as_double(0x7fffffffffffffffll); }
#else
#if WIDTH == 4
typedef unsigned Bits;
#else
typedef unsigned short Bits;
#endif
typedef float Real;
__device__ Real add(Real a, Real b) { return __fadd_rn(a, b); }
__device__ Real nan_value() { return __int_as_float(0x7fffffff); }
#endif

// in  values [B, N, D] of WIDTH bytes, idx [B, P] i64     out  rows [B, P, D]: values[b, idx[b, p]]
// Bits are moved as they are. An index outside 0..N-1 reads nothing and leaves all bits set, a NaN in every float format.
// LANES threads per row: B * P rows.
extern "C" __global__ void __launch_bounds__(THREADS)
gather(const Bits* __restrict__ values, const long long* __restrict__ idx, Bits* __restrict__ rows, int B, int N, int P,
       int D) {
    const long long row = (long long)blockIdx.x * ROWS + threadIdx.x / LANES;
    if (row >= (long long)B * P) return;
    const long long n = idx[row];
    const bool inside = n >= 0 && n < N;
    values += (row / P * N + (inside ? n : 0)) * D;
    rows += row * D;
    for (int d = threadIdx.x % LANES; d < D; d += LANES) rows[d] = inside ? values[d] : (Bits)-1;
}

// in  points [B, N, D] f32 or f64, centres [B, G, D], idx [B, G, K] i64     out  rows [B, G, K, D]: points[b, idx] - centre
// An index outside 0..N-1 gives NaN. LANES threads per row: B * G * K rows.
extern "C" __global__ void __launch_bounds__(THREADS)
group(const Real* __restrict__ points, const Real* __restrict__ centres, const long long* __restrict__ idx,
      Real* __restrict__ rows, int B, int N, int G, int K, int D) {
    const long long row = (long long)blockIdx.x * ROWS + threadIdx.x / LANES;
    if (row >= (long long)B * G * K) return;
    const long long n = idx[row];
    const bool inside = n >= 0 && n < N;
    const long long centre = row / K;
    points += (centre / G * N + (inside ? n : 0)) * D;
    centres += centre * D;
    rows += row * D;
    for (int d = threadIdx.x % LANES; d < D; d += LANES)
        rows[d] = inside ? add(points[d], -centres[d]) : nan_value();
}

// in  grad [B, P, D] f32 or f64, idx [B, P] i64     out  sums [B, N, D]: of the gradients of the rows that came from each n
// Arithmetic: from 0, by ascending p, in that type. Collected by the row that is summed, not scattered: no atomics.
// One warp per row of sums: B * N warps.
extern "C" __global__ void __launch_bounds__(THREADS)
gather_backward(const Real* __restrict__ grad, const long long* __restrict__ idx, Real* __restrict__ sums, int B, int N,
                int P, int D) {
    const int lane = threadIdx.x % 32;
    const long long row = (long long)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= (long long)B * N) return;
    const long long b = row / N;
    const long long n = row % N;
    grad += b * P * D;
    idx += b * P;
    sums += row * D;
    for (int first = 0; first < D; first += 32 * CHANNELS) {
        Real sum[CHANNELS];
#pragma unroll
        for (int j = 0; j < CHANNELS; ++j) sum[j] = 0;
        for (int start = 0; start < P; start += 32) {
            unsigned found = __ballot_sync(FULL, start + lane < P && idx[start + lane] == n);
            // Lowest bit first, that is by ascending p: the fixed order that makes the float sum reproducible.
            while (found) {
                const Real* from = grad + (long long)(start + __ffs(found) - 1) * D;
                found &= found - 1;
#pragma unroll
                for (int j = 0; j < CHANNELS; ++j) {
                    const int d = first + 32 * j + lane;
                    if (d < D) sum[j] = add(sum[j], from[d]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < CHANNELS; ++j) {
            const int d = first + 32 * j + lane;
            if (d < D) sums[d] = sum[j];
        }
    }
}
