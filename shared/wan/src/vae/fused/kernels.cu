// What stands between two convolutions, each kernel in one pass over the pixels. A pixel is a row of channels. Follows
// ../../kernels/vectors.cu.

// Vectors of a pixel that a thread takes at most.
constexpr int VECTORS = 3;

// output = silu(v / max(|v|, 1e-12) * scale) with v = input + bias, of [pixels, channels] tensors; scale and bias are
// [channels], a null bias is none. `lanes` threads take one pixel: a power of two up to 32, with lanes * VECTORS vectors or
// more; blockDim.x is a multiple of 32.
extern "C" __global__ void norm_silu(const ushort* __restrict__ input, const ushort* __restrict__ bias,
                                     const ushort* __restrict__ scale, ushort* __restrict__ output, int pixels,
                                     int channels, int lanes) {
  const int vectors = channels / WIDTH, lane = threadIdx.x % lanes;
  const int pixel = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
  // Threads beyond the last pixel stay for the sum.
  const int own = pixel < pixels ? vectors : 0;
  const long long row = static_cast<long long>(pixel) * channels;
  uint4 raw[VECTORS];
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int vector = lane + i * lanes;
    raw[i] = vector < own ? load(input + row, vector) : make_uint4(0, 0, 0, 0);
  }
  Vector v[VECTORS];
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int vector = lane + i * lanes;
    v[i] = unpack(raw[i]);
    if (bias != nullptr && vector < own) {
      const Vector added = unpack(load(bias, vector));
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) v[i].at[j] += added.at[j];
    }
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) sum += v[i].at[j] * v[i].at[j];
  }
  for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  const float inverse = 1.0f / fmaxf(sqrtf(sum), 1e-12f);
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int vector = lane + i * lanes;
    if (vector >= own) continue;
    const Vector s = unpack(load(scale, vector));
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      const float normed = v[i].at[j] * inverse * s.at[j];
      v[i].at[j] = __fdividef(normed, 1.0f + __expf(-normed));
    }
    store(output + row, vector, pack(v[i]));
  }
}

// sum += added + bias, of [.., channels] tensors of `total` vectors; bias is [channels]. A thread takes a vector.
extern "C" __global__ void add(ushort* __restrict__ sum, const ushort* __restrict__ added,
                               const ushort* __restrict__ bias, int total, int channels) {
  const int vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= total) return;
  Vector v = unpack(load(sum, vector));
  const Vector a = unpack(load(added, vector)), b = unpack(load(bias, vector % (channels / WIDTH)));
#pragma unroll
  for (int j = 0; j < WIDTH; ++j) v.at[j] += a.at[j] + b.at[j];
  store(sum, vector, pack(v));
}
