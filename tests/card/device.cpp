// A card that is not there. Tensors of the device type CUDA are in host memory, and the CPU's kernels compute with
// them.
//
// PyTorch's CPU build knows the device type and has no kernels for it. This library registers what the CUDA build would
// register. This file holds the allocator, the generators, the hooks and the device guard.

#include "card.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_set>
#include <vector>

namespace card {

thread_local DeviceIndex current = 0;
DeviceIndex count = 1;

// Memory

std::atomic<int64_t> allocated{0}, peak{0};
int64_t capacity = int64_t(1) << 62;

void count_bytes(int64_t bytes) {
  auto now = allocated.fetch_add(bytes) + bytes;
  auto before = peak.load();
  while (now > before && !peak.compare_exchange_weak(before, now)) {
  }
}

namespace {

struct Block {
  void* data;
  int64_t bytes;
};

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  allocated.fetch_sub(block->bytes);
  std::free(block->data);
  delete block;
}

struct CardAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    int64_t rounded = (int64_t(bytes) + 511) / 512 * 512;
    TORCH_CHECK_WITH(OutOfMemoryError, allocated.load() + rounded <= capacity,
                     "CUDA out of memory. Tried to allocate ", bytes, " bytes. The card has ", capacity);
    void* data = bytes ? std::malloc(rounded) : nullptr;
    // Memory that was never written must not be read as 0.
    if (data) std::memset(data, 0xA5, rounded);
    count_bytes(rounded);
    return {data, new Block{data, rounded}, &free_block, Device(DeviceType::CUDA, current)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
CardAllocator card_allocator;

std::mutex pinned_mutex;
std::unordered_set<const void*> pinned;

void free_pinned(void* data) {
  std::lock_guard<std::mutex> lock(pinned_mutex);
  pinned.erase(data);
  std::free(data);
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = std::malloc(bytes ? bytes : 1);
    std::lock_guard<std::mutex> lock(pinned_mutex);
    pinned.insert(data);
    return {data, data, &free_pinned, Device(DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
PinnedAllocator pinned_allocator;

// Generators

struct CardGenerator final : c10::GeneratorImpl {
  explicit CardGenerator(DeviceIndex index)
      : GeneratorImpl(Device(DeviceType::CUDA, index), DispatchKeySet(DispatchKey::CUDA)),
        host(at::make_generator<at::CPUGeneratorImpl>(c10::default_rng_seed_val)) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "the stand-in's generators have no offset"); }
  uint64_t get_offset() const override { return 0; }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  GeneratorImpl* clone_impl() const override {
    auto* copy = new CardGenerator(device().index());
    copy->host = host.clone();
    return copy;
  }
  at::Generator host;
};

std::vector<at::Generator>& default_generators() {
  static std::vector<at::Generator> made;
  while (made.size() < size_t(count)) made.push_back(at::make_generator<CardGenerator>(DeviceIndex(made.size())));
  return made;
}

}  // namespace

c10::Allocator& allocator() { return card_allocator; }

const at::Generator& default_generator(int index) { return default_generators()[index]; }

at::Generator on_host(const at::Generator& generator) {
  return static_cast<CardGenerator*>(generator.unsafeGetGeneratorImpl())->host;
}

namespace {

// What PyTorch asks a device type for

struct CardHooks final : at::CUDAHooksInterface {
  explicit CardHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(DeviceIndex index) const override {
    return default_generators()[index < 0 ? current : index];
  }
  at::Generator getNewGenerator(DeviceIndex index) const override {
    return at::make_generator<CardGenerator>(index < 0 ? current : index);
  }
  Device getDeviceFromPtr(void*) const override { return Device(DeviceType::CUDA, current); }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard<std::mutex> lock(pinned_mutex);
    return pinned.count(data) > 0;
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  at::Allocator* getCUDADeviceAllocator() const override { return &card_allocator; }
  DeviceIndex deviceCount() const override { return count; }
  int getNumGPUs() const override { return count; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(DeviceIndex index) const override { current = index; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override { return std::exchange(current, index); }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override {
    return index < 0 ? current : std::exchange(current, index);
  }
  void deviceSynchronize(DeviceIndex) const override {}
};

// One stream, in which everything is done when it is asked for.
struct CardGuard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream only(Device card) { return c10::Stream(c10::Stream::DEFAULT, card); }
  DeviceType type() const override { return DeviceType::CUDA; }
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  Device exchangeDevice(Device card) const override {
    return Device(DeviceType::CUDA, std::exchange(current, card.index()));
  }
  void setDevice(Device card) const override { current = card.index(); }
  void uncheckedSetDevice(Device card) const noexcept override { current = card.index(); }
  DeviceIndex deviceCount() const noexcept override { return count; }
  c10::Stream getStream(Device card) const override { return only(card); }
  c10::Stream getDefaultStream(Device card) const override { return only(card); }
  c10::Stream getNewStream(Device card, int) const override { return only(card); }
  c10::Stream getStreamFromGlobalPool(Device card, bool) const override { return only(card); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  void record(void** event, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {
    *event = nullptr;
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

const bool registered = [] {
  c10::SetAllocator(DeviceType::CUDA, &card_allocator, 255);
  c10::impl::registerDeviceGuard(DeviceType::CUDA, new CardGuard());
  return true;
}();

}  // namespace
}  // namespace card

namespace at {
using card::CardHooks;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CardHooks);
}  // namespace at
