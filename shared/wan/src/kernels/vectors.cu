// Rows of bf16 as vectors of eight, 16 bytes each. Arithmetic is f32; a value is rounded where it is stored. bf16 is `ushort`
// here: NVRTC has no headers. This comes before the kernels of a source.

typedef unsigned short ushort;

constexpr int WIDTH = 8;

struct Vector {
  float at[WIDTH];
};

__device__ __forceinline__ Vector unpack(uint4 raw) {
  const unsigned int pairs[] = {raw.x, raw.y, raw.z, raw.w};
  Vector vector;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    vector.at[2 * i] = __uint_as_float(pairs[i] << 16);
    vector.at[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  }
  return vector;
}

__device__ __forceinline__ unsigned int round_pair(float low, float high) {
  unsigned int pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ uint4 pack(const Vector& v) {
  return make_uint4(round_pair(v.at[0], v.at[1]), round_pair(v.at[2], v.at[3]), round_pair(v.at[4], v.at[5]),
                    round_pair(v.at[6], v.at[7]));
}

__device__ __forceinline__ uint4 load(const ushort* row, int vector) {
  return reinterpret_cast<const uint4*>(row)[vector];
}

__device__ __forceinline__ void store(ushort* row, int vector, uint4 raw) {
  reinterpret_cast<uint4*>(row)[vector] = raw;
}

