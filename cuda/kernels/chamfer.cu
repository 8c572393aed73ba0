// chamfer.cu - nearest squared distances between small sets, and their gradient.
//
// Defined by the caller: THREADS.

// in  a [M, P, 3] f32, b [M, Q, 3] f32     out  dist2 [M, P] f32, idx [M, P] i32 into Q: the nearest b of each a
// Arithmetic: subtract first; dx*dx, + dy*dy, + dz*dz in that order, unfused. Ties keep the lowest index. M * P threads.
extern "C" __global__ void __launch_bounds__(THREADS)
nearest(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ dist2, int* __restrict__ idx,
        int M, int P, int Q) {
    const long long item = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (item >= (long long)M * P) return;
    const float x = a[3 * item], y = a[3 * item + 1], z = a[3 * item + 2];
    b += item / P * Q * 3;
    float best = __int_as_float(0x7f800000);
    int best_idx = 0;
    for (int q = 0; q < Q; ++q) {
        const float dx = __fsub_rn(x, b[3 * q]);
        const float dy = __fsub_rn(y, b[3 * q + 1]);
        const float dz = __fsub_rn(z, b[3 * q + 2]);
        const float value = __fadd_rn(__fadd_rn(__fmul_rn(dx, dx), __fmul_rn(dy, dy)), __fmul_rn(dz, dz));
        if (value < best) {  // strictly, so that the lowest index wins a tie
            best = value;
            best_idx = q;
        }
    }
    dist2[item] = best;
    idx[item] = best_idx;
}

// in   a, b as above; from_a [M, P] i32 and from_b [M, Q] i32: the nearest of each; grad_a [M, P], grad_b [M, Q] f32: of dist2
// out  grad [M, P, 3] f32 with respect to a
// Arithmetic: own term first, then those of the b whose nearest this is, by ascending index; a term is
// (2 * g) * (a - b) in f32, unfused. Gathered, not scattered: no atomics. M * P threads.
extern "C" __global__ void __launch_bounds__(THREADS)
nearest_backward(const float* __restrict__ a, const float* __restrict__ b, const int* __restrict__ from_a,
                 const int* __restrict__ from_b, const float* __restrict__ grad_a, const float* __restrict__ grad_b,
                 float* __restrict__ grad, int M, int P, int Q) {
    const long long item = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (item >= (long long)M * P) return;
    const long long set = item / P;
    const int p = (int)(item % P);
    b += set * Q * 3;
    from_b += set * Q;
    grad_b += set * Q;
    const float own = __fmul_rn(2.0f, grad_a[item]);
    for (int axis = 0; axis < 3; ++axis) {
        const float at = a[3 * item + axis];
        float sum = __fmul_rn(own, __fsub_rn(at, b[3 * from_a[item] + axis]));
        for (int q = 0; q < Q; ++q)
            if (from_b[q] == p)
                sum = __fadd_rn(sum, __fmul_rn(__fmul_rn(2.0f, grad_b[q]), __fsub_rn(at, b[3 * q + axis])));
        grad[3 * item + axis] = sum;
    }
}
