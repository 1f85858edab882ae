#pragma once
// What the three files of the stand-in share.

#include <ATen/ATen.h>
#include <c10/core/Device.h>

#include <atomic>

namespace card {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::DispatchKey;
using c10::DispatchKeySet;

extern thread_local DeviceIndex current;
extern DeviceIndex count;

extern std::atomic<int64_t> allocated, peak;
extern int64_t capacity;
void count_bytes(int64_t bytes);
c10::Allocator& allocator();

const at::Generator& default_generator(int index);
at::Generator on_host(const at::Generator& generator);

// The same memory as a tensor of the CPU. A tensor of the CPU is returned as it is.
at::Tensor on_host(const at::Tensor& tensor);

}  // namespace card
