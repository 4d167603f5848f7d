// A block's elementwise work, each kernel in one pass over the tokens. A thread block takes one token and a thread up to
// VECTORS vectors, so a row has at most 8 * VECTORS * 1024 channels. Follows ../../kernels/vectors.cu.

constexpr int VECTORS = 2;

// Sum over the thread block, for all its threads. `scratch` has 32 places and serves one sum.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = lane < blockDim.x / 32 ? scratch[lane] : 0.0f;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// Turns the four pairs of a vector by four complex numbers.
__device__ __forceinline__ void rotate(Vector& v, const float2* rotations) {
  const float4* two = reinterpret_cast<const float4*>(rotations);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 turn = two[i];
    const float a = v.at[4 * i], b = v.at[4 * i + 1], c = v.at[4 * i + 2], d = v.at[4 * i + 3];
    v.at[4 * i] = a * turn.x - b * turn.y;
    v.at[4 * i + 1] = a * turn.y + b * turn.x;
    v.at[4 * i + 2] = c * turn.z - d * turn.w;
    v.at[4 * i + 3] = c * turn.w + d * turn.z;
  }
}

// blockIdx.x is the token, blockIdx.y the part of its row in `input` [N, stride]: part p has channels p * channels and on.
// Parts below `normed` are divided by their root mean square over `dim` channels, multiplied by their row of `weight`
// [normed, channels] and turned by `rotations` [N, head_width / 2] unless it is null; a part after them is copied. Part p
// goes to output p, [N, channels]. `sums` [N, normed] are the sums of squares; null: of the part itself.
extern "C" __global__ void norm_rotate(const ushort* __restrict__ input, long long stride,
                                       const ushort* __restrict__ weight, const float* __restrict__ sums,
                                       const float2* __restrict__ rotations, ushort* __restrict__ output0,
                                       ushort* __restrict__ output1, ushort* __restrict__ output2, int normed,
                                       int channels, int head_width, float dim, float eps) {
  __shared__ float scratch[32];
  const long long token = blockIdx.x;
  const int part = blockIdx.y, vectors = channels / WIDTH;
  const ushort* row = input + token * stride + static_cast<long long>(part) * channels;
  ushort* output = (part == 0 ? output0 : part == 1 ? output1 : output2) + token * channels;
  uint4 raw[VECTORS];
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int vector = threadIdx.x + i * blockDim.x;
    raw[i] = vector < vectors ? load(row, vector) : make_uint4(0, 0, 0, 0);
  }
  if (part >= normed) {
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
      const int vector = threadIdx.x + i * blockDim.x;
      if (vector < vectors) store(output, vector, raw[i]);
    }
    return;
  }
  float sum = 0.0f;
  if (sums != nullptr) {
    sum = sums[token * normed + part];
  } else {
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
      const Vector v = unpack(raw[i]);
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) sum += v.at[j] * v.at[j];
    }
    sum = block_sum(sum, scratch);
  }
  const float scale = rsqrtf(sum / dim + eps);
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int vector = threadIdx.x + i * blockDim.x;
    if (vector >= vectors) continue;
    Vector v = unpack(raw[i]);
    const Vector w = unpack(load(weight + static_cast<long long>(part) * channels, vector));
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) v.at[j] = v.at[j] * scale * w.at[j];
    if (rotations != nullptr) {
      const int pair = vector * WIDTH % head_width / 2;
      rotate(v, rotations + token * (head_width / 2) + pair);
    }
    store(output, vector, pack(v));
  }
}

// blockIdx.x is the token. x += gate * y, then normed = layer_norm(x) * scale + shift, of [N, channels] tensors. Row
// token / tokens_per_row of gate, scale and shift is used, each with its own stride. Null y: x stays; null gate: 1.
extern "C" __global__ void add_norm(ushort* __restrict__ x, const ushort* __restrict__ y,
                                    const ushort* __restrict__ gate, long long gate_stride,
                                    const ushort* __restrict__ scale, long long scale_stride,
                                    const ushort* __restrict__ shift, long long shift_stride,
                                    ushort* __restrict__ normed, int tokens_per_row, int channels, float eps) {
  __shared__ float means[32], variances[32];
  const long long token = blockIdx.x, row = token / tokens_per_row;
  const int vectors = channels / WIDTH;
  x += token * channels;
  Vector v[VECTORS];
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int vector = threadIdx.x + i * blockDim.x;
    if (vector >= vectors) continue;
    v[i] = unpack(load(x, vector));
    if (y != nullptr) {
      const Vector added = unpack(load(y + token * channels, vector));
      if (gate != nullptr) {
        const Vector g = unpack(load(gate + row * gate_stride, vector));
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) v[i].at[j] += g.at[j] * added.at[j];
      } else {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) v[i].at[j] += added.at[j];
      }
      const uint4 rounded = pack(v[i]);
      store(x, vector, rounded);
      v[i] = unpack(rounded);
    }
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) sum += v[i].at[j];
  }
  const float mean = block_sum(sum, means) / channels;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    if (threadIdx.x + i * blockDim.x >= vectors) continue;
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) squares += (v[i].at[j] - mean) * (v[i].at[j] - mean);
  }
  const float inverse = rsqrtf(block_sum(squares, variances) / channels + eps);
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int vector = threadIdx.x + i * blockDim.x;
    if (vector >= vectors) continue;
    const Vector s = unpack(load(scale + row * scale_stride, vector));
    const Vector t = unpack(load(shift + row * shift_stride, vector));
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) v[i].at[j] = (v[i].at[j] - mean) * inverse * s.at[j] + t.at[j];
    store(normed + token * channels, vector, pack(v[i]));
  }
}

// Attention over three sets of keys from the attention over each: blockIdx.x is the token. Output [N, channels] is the sum of
// the parts [N, channels], weighted by the softmax of their log-sum-exps [heads, N], to the middle one of which `bias` is
// added.
extern "C" __global__ void merge(const ushort* __restrict__ part0, const ushort* __restrict__ part1,
                                 const ushort* __restrict__ part2, const float* __restrict__ lse0,
                                 const float* __restrict__ lse1, const float* __restrict__ lse2, float bias,
                                 ushort* __restrict__ output, int tokens, int channels, int head_width) {
  const int token = blockIdx.x;
  const long long row = static_cast<long long>(token) * channels;
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int vector = threadIdx.x + i * blockDim.x;
    if (vector >= channels / WIDTH) continue;
    const long long at = static_cast<long long>(vector * WIDTH / head_width) * tokens + token;
    const float a = lse0[at], b = lse1[at] + bias, c = lse2[at];
    const float most = fmaxf(a, fmaxf(b, c));
    float weights[] = {__expf(a - most), __expf(b - most), __expf(c - most)};
    const float sum = weights[0] + weights[1] + weights[2];
    Vector merged = unpack(load(part0 + row, vector));
    const Vector second = unpack(load(part1 + row, vector)), third = unpack(load(part2 + row, vector));
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      merged.at[j] =
          (weights[0] * merged.at[j] + weights[1] * second.at[j] + weights[2] * third.at[j]) / sum;
    }
    store(output + row, vector, pack(merged));
  }
}
