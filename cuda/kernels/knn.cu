// knn.cu - exact nearest neighbours, one warp per query, points shared by the block's queries.
// in  points [B, N, 3] f32, queries [B, M, 3] f32     out  dist2 [B, M, K] f32, idx [B, M, K] i32, ascending
// Arithmetic: subtract first; dx*dx, + dy*dy, + dz*dz in that order, unfused. Ties keep the lowest index. 1 <= K <= min(N, 64).
// Grid: B * ceil(M / WARPS) blocks of 32 * WARPS threads.
//
// Defined by the caller: WARPS.

#define THREADS (32 * WARPS)
#define TILE 1024
#define FULL 0xffffffffu
#define NONE 0xffffffffffffffffull

typedef unsigned long long u64;

extern "C" __global__ void __launch_bounds__(THREADS)
knn(const float* __restrict__ points, const float* __restrict__ queries, float* __restrict__ dist2, int* __restrict__ idx,
    int N, int M, int K) {
    __shared__ float tile[3][TILE];
    const int lane = threadIdx.x % 32;
    const int blocks = (M + WARPS - 1) / WARPS;
    const long long b = blockIdx.x / blocks;
    const int m = blockIdx.x % blocks * WARPS + threadIdx.x / 32;
    const bool active = m < M;  // an idle warp still loads tiles
    points += b * N * 3;
    const float* query = queries + (b * M + (active ? m : 0)) * 3;
    const float qx = query[0], qy = query[1], qz = query[2];

    // The best found so far, ascending over slots 0..63: lane l holds slots l and l + 32. A key is the bits of the
    // squared distance (ordered like it, since none is negative) over the index: unique, so the order of insertion is free.
    u64 low = NONE, high = NONE, limit = NONE;
    for (int start = 0; start < N; start += TILE) {
        const int size = N - start < TILE ? N - start : TILE;
        __syncthreads();
        for (int i = threadIdx.x; i < size * 3; i += THREADS) tile[i % 3][i / 3] = points[3ll * start + i];
        __syncthreads();
        if (!active) continue;  // not earlier: every thread of the block has to reach both barriers
        for (int i = lane; i - lane < size; i += 32) {
            u64 key = NONE;
            if (i < size) {
                // Subtracted first: |a|^2 + |b|^2 - 2ab cancels in float32 and can come out negative.
                const float dx = __fsub_rn(tile[0][i], qx);
                const float dy = __fsub_rn(tile[1][i], qy);
                const float dz = __fsub_rn(tile[2][i], qz);
                const float value = __fadd_rn(__fadd_rn(__fmul_rn(dx, dx), __fmul_rn(dy, dy)), __fmul_rn(dz, dz));
                key = (u64)__float_as_uint(value) << 32 | (unsigned)(start + i);
            }
            unsigned waiting = __ballot_sync(FULL, key < limit);
            while (waiting) {
                const u64 next = __shfl_sync(FULL, key, __ffs(waiting) - 1);
                waiting &= waiting - 1;
                if (next >= limit) continue;  // an earlier insertion of this round has tightened the limit
                u64 below = __shfl_up_sync(FULL, low, 1);
                const u64 seam = __shfl_sync(FULL, low, 31);
                u64 below_high = __shfl_up_sync(FULL, high, 1);
                if (lane == 0) {
                    below = 0;
                    below_high = seam;
                }
                if (low > next) low = below > next ? below : next;
                if (high > next) high = below_high > next ? below_high : next;
                limit = __shfl_sync(FULL, K <= 32 ? low : high, (K - 1) % 32);
            }
        }
    }
    if (!active) return;
    dist2 += (b * M + m) * K;
    idx += (b * M + m) * K;
    if (lane < K) {
        dist2[lane] = __uint_as_float((unsigned)(low >> 32));
        idx[lane] = (int)(unsigned)low;
    }
    if (lane + 32 < K) {
        dist2[lane + 32] = __uint_as_float((unsigned)(high >> 32));
        idx[lane + 32] = (int)(unsigned)high;
    }
}
