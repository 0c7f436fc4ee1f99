// Products of matrices of bytes by the tensor cores, which multiply bytes and add up in 32 bits: nothing is rounded.

// A warp's sums of 16 x 8, in each channel, for low, middle and high bytes of the weights. A thread has those of rows
// threadIdx.x / 4 (0 and 1) and 8 on (2 and 3), columns threadIdx.x % 4 * 2 and one on.
struct Sums {
    int parts[3][3][4];
};

__device__ inline Sums sums_of_nothing()
{
    Sums sums;
    #pragma unroll
    for (int channel = 0; channel < 3; channel++)
        #pragma unroll
        for (int part = 0; part < 3; part++)
            #pragma unroll
            for (int i = 0; i < 4; i++)
                sums.parts[channel][part][i] = part ? 0 : HALF;
    return sums;
}

// Returns a sum as it is after the pass: a byte. No weight is negative, and so few of them add up to no more than 255
// and a half, rounded.
__device__ inline int byte_of(const Sums& sums, int channel, int i)
{
    const int(&parts)[3][4] = sums.parts[channel];
    return (parts[0][i] + (parts[1][i] << 8) + (parts[2][i] << 16)) >> 22;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
// 8 x 16 bytes times 16 x 8 bytes: what compute capability 7.5 has, and the others are made of there.
__device__ inline void multiply(int& first, int& second, unsigned left, unsigned right)
{
    asm("mma.sync.aligned.m8n8k16.row.col.s32.u8.u8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(first), "+r"(second)
        : "r"(left), "r"(right));
}

__device__ inline void multiply(int (&sums)[4], uint2 left, unsigned right)
{
    multiply(sums[0], sums[1], left.x, right);
    multiply(sums[2], sums[3], left.y, right);
}

__device__ inline void multiply(int (&sums)[4], const unsigned (&left)[4], uint2 right)
{
    multiply(sums, make_uint2(left[0], left[1]), right.x);
    multiply(sums, make_uint2(left[2], left[3]), right.y);
}
#else
// 16 x 32 bytes times 32 x 8 bytes, added to `sums`.
__device__ inline void multiply(int (&sums)[4], const unsigned (&left)[4], uint2 right)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right.x), "r"(right.y));
}

// 16 x 16 bytes times 16 x 8 bytes, added to `sums`.
__device__ inline void multiply(int (&sums)[4], uint2 left, unsigned right)
{
    asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(left.x), "r"(left.y), "r"(right));
}
#endif

// Turns 8 x 8 pairs of bytes: a thread gives two neighbouring pairs of one row, and gets two of one column.
__device__ inline unsigned turned(unsigned pairs)
{
    unsigned result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pairs));
    return result;
}
