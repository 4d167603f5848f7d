// What tch does not bind, over libtorch's public headers. Nothing of CUDA is linked: libtorch's dispatcher, device guards and
// the virtual functions of its allocator find the CUDA half once it is opened, and say so in an exception where it is not.
//
// Every function returns null, or a message that the caller frees with free(): no exception leaves this file. Tensors
// are those of tch, a pointer to at::Tensor each; one that is handed out belongs to the caller. Devices are CUDA indices.
#include <ATen/core/Tensor.h>
#include <ATen/ops/_addmm_activation.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/cuda/CUDACachingAllocator.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>

namespace {

template <typename Work>
char* guarded(Work work) {
  try {
    work();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception that is none of the standard library");
  }
}

c10::Stream current_stream(int64_t index) {
  const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

// The one stream of a device that graphs are captured on: cuBLAS keeps a workspace for every stream that it ever ran on.
c10::Stream capture_stream(const c10::Device device) {
  static std::mutex lock;
  static std::map<c10::DeviceIndex, c10::Stream> streams;
  const std::lock_guard<std::mutex> held(lock);
  const auto found = streams.find(device.index());
  if (found != streams.end()) return found->second;
  const auto made = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
  return streams.emplace(device.index(), made).first->second;
}

// CUDA's allocator is the only one that is registered for CUDA.
c10::cuda::CUDACachingAllocator::CUDAAllocator* cuda_allocator() {
  return static_cast<c10::cuda::CUDACachingAllocator::CUDAAllocator*>(c10::getDeviceAllocator(c10::DeviceType::CUDA));
}

}  // namespace

extern "C" {

// softmax(q k^T / sqrt(d)) v of [B, H, N, d] tensors by cuDNN. `lse`, if wanted, is [B, H, N, 1] f32: the logarithm of
// each row's sum of exponentials.
char* torch_extra_cudnn_attention(const at::Tensor* q, const at::Tensor* k, const at::Tensor* v, bool with_lse,
                                  at::Tensor** out, at::Tensor** lse) {
  return guarded([&] {
    auto result = at::_scaled_dot_product_cudnn_attention(*q, *k, *v, std::nullopt, with_lse);
    auto made = std::make_unique<at::Tensor>(std::move(std::get<0>(result)));
    if (with_lse) *lse = new at::Tensor(std::move(std::get<1>(result)));
    *out = made.release();
  });
}

// GELU(x weight^T + bias): rows [N, I], weight [O, I], bias [O]. tch's own binding leaves out beta and alpha, so that its
// flag for GELU is taken for beta and the result is that of ReLU.
char* torch_extra_linear_gelu(const at::Tensor* x, const at::Tensor* weight, const at::Tensor* bias, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(at::_addmm_activation(*bias, *x, weight->t(), 1, 1, /*use_gelu=*/true)); });
}

// A copy in memory that a GPU copies from without the host waiting. tch's own binding names a device, which libtorch warns of
// on every call.
char* torch_extra_pinned(const at::Tensor* tensor, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(tensor->pin_memory()); });
}

// The CUstream that libtorch gives its work on this thread.
char* torch_extra_current_stream(int64_t device, void** stream) {
  return guarded([&] { *stream = current_stream(device).native_handle(); });
}

char* torch_extra_event_record(int64_t device, c10::Event** event) {
  return guarded([&] {
    // The backend's default, unlike PyTorch's, has a time.
    auto made = std::make_unique<c10::Event>(c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT);
    made->record(current_stream(device));
    *event = made.release();
  });
}

// Milliseconds between two events; waits for the second.
char* torch_extra_event_elapsed(const c10::Event* start, const c10::Event* end, double* ms) {
  return guarded([&] {
    end->synchronize();
    *ms = start->elapsedTime(*end);
  });
}

void torch_extra_event_free(c10::Event* event) { delete event; }

// Bytes in tensors, bytes held from the driver, and the peaks of both since the process began.
char* torch_extra_memory(int64_t device, int64_t bytes[4]) {
  return guarded([&] {
    const auto index = static_cast<c10::DeviceIndex>(device);
    const auto stats = c10::getDeviceAllocator(c10::DeviceType::CUDA)->getDeviceStats(index);
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    bytes[0] = stats.allocated_bytes[all].current;
    bytes[1] = stats.reserved_bytes[all].current;
    bytes[2] = stats.allocated_bytes[all].peak;
    bytes[3] = stats.reserved_bytes[all].peak;
  });
}

// From here on this thread's work on the device goes to the stream that graphs are captured on, which is handed out, and the
// memory of that work comes from the pool. `before` is the stream so far, for torch_extra_leave_capture.
char* torch_extra_enter_capture(int64_t device, uint64_t pool, c10::Stream** before, void** stream) {
  return guarded([&] {
    const c10::Device on(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device));
    const auto own = capture_stream(on);
    auto* const raw = static_cast<cudaStream_t>(own.native_handle());
    cuda_allocator()->beginAllocateToPool(on.index(), {pool, 0}, [raw](cudaStream_t asked) { return asked == raw; });
    *before = new c10::Stream(c10::impl::VirtualGuardImpl(on.type()).exchangeStream(own));
    *stream = raw;
  });
}

char* torch_extra_leave_capture(int64_t device, uint64_t pool, c10::Stream* before) {
  return guarded([&] {
    const std::unique_ptr<c10::Stream> back(before);
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).exchangeStream(*back);
    cuda_allocator()->endAllocateToPool(static_cast<c10::DeviceIndex>(device), {pool, 0});
  });
}

// Once for each torch_extra_enter_capture with this pool. The last one gives back to the driver what no tensor is in, which waits
// for what the device does: the allocator by itself keeps it until it is out of memory.
char* torch_extra_release_pool(int64_t device, uint64_t pool) {
  return guarded([&] {
    cuda_allocator()->releasePool(static_cast<c10::DeviceIndex>(device), {pool, 0});
    cuda_allocator()->emptyCache({pool, 0});
  });
}

}  // extern "C"
