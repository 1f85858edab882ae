// The operators on the card: one fallback kernel for all, and kernels for those that make tensors.
//
// The fallback refuses what CUDA refuses: a tensor in host memory beside one on the card.

#include "card.h"

#include <ATen/EmptyTensor.h>
#include <ATen/InferSize.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/TensorFactories.h>
#include <torch/library.h>

#include <cstring>
#include <unordered_set>

using at::IntArrayRef;
using at::IValue;
using at::Tensor;

namespace card {
namespace {

// The same memory under both device types

Tensor over(c10::Storage storage, const Tensor& like, DispatchKey key) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  made._set_conj(like.is_conj());
  made._set_neg(like.is_neg());
  return made;
}

// A storage keeps the one whose memory it shows.
struct Kept {
  c10::Storage storage;
  int64_t counted;
};

void release(void* context) {
  auto* kept = static_cast<Kept*>(context);
  allocated.fetch_sub(kept->counted);
  delete kept;
}

}  // namespace

Tensor on_host(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  const auto& shown = tensor.storage();
  if (shown.nbytes() == 0) {
    Tensor made = at::empty({0}, tensor.options().device(at::kCPU));
    made.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), 0);
    return made;
  }
  c10::DataPtr data(const_cast<void*>(shown.data()), new Kept{shown, 0}, &release, Device(DeviceType::CPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), shown.nbytes(), std::move(data), nullptr, false);
  return over(std::move(storage), tensor, DispatchKey::CPU);
}

namespace {

Tensor on_card(const Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cuda()) return tensor;
  const auto& shown = tensor.storage();
  int64_t bytes = shown.nbytes();
  count_bytes(bytes);
  Device card(DeviceType::CUDA, current);
  c10::DataPtr data(const_cast<void*>(shown.data()), new Kept{shown, bytes}, &release, card);
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, std::move(data), &allocator(), true);
  return over(std::move(storage), tensor, DispatchKey::CUDA);
}

// The fallback kernel: one call of an operator, done by the CPU's kernel

struct Call {
  const c10::FunctionSchema& schema;
  std::vector<std::pair<Tensor, Tensor>> shown;  // on the card, and the same memory on the host
  std::vector<Tensor> in_host_memory;

  Tensor to_host(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!tensor.is_cuda()) {
      // CUDA's kernels take a number from host memory.
      if (tensor.dim() > 0) in_host_memory.push_back(tensor);
      return tensor;
    }
    shown.emplace_back(tensor, on_host(tensor));
    return shown.back().second;
  }

  IValue to_host(const IValue& value) {
    if (value.isTensor()) return to_host(value.toTensor());
    if (value.isTensorList()) {
      c10::List<Tensor> made;
      for (const auto& each : value.toTensorVector()) made.push_back(to_host(each));
      return made;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> made;
      for (const auto& each : value.toOptionalTensorVector())
        made.push_back(each ? std::optional<Tensor>(to_host(*each)) : std::nullopt);
      return made;
    }
    if (value.isDevice() && value.toDevice().is_cuda()) return Device(DeviceType::CPU);
    if (value.isGenerator()) {
      auto generator = value.toGenerator();
      TORCH_CHECK(generator.device().is_cuda(), "Expected a 'cuda' device type for generator but found 'cpu'");
      return card::on_host(generator);
    }
    return value;
  }

  void check_one_device() const {
    static const std::unordered_set<std::string> mixing{
        "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_local_scalar_dense"};
    if (shown.empty() || in_host_memory.empty() || mixing.count(schema.name())) return;
    TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and ",
                "cpu! (", schema.operator_name(), ", a CPU tensor of sizes ", in_host_memory[0].sizes(), ")");
  }

  // The kernel may have given an output another size.
  void follow_sizes() const {
    for (const auto& [card, host] : shown) {
      auto* impl = card.unsafeGetTensorImpl();
      bool moved = host.storage().nbytes() > 0 && host.storage().data() != card.storage().data();
      if (moved) impl->set_storage_keep_dtype(on_card(host).storage());
      if (moved || host.sizes() != card.sizes() || host.strides() != card.strides())
        impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  }

  Tensor to_card(const Tensor& made) const {
    if (!made.defined()) return made;
    for (const auto& [card, host] : shown)
      if (host.unsafeGetTensorImpl() == made.unsafeGetTensorImpl()) return card;
    for (const auto& [card, host] : shown)
      if (made.storage().nbytes() > 0 && card.storage().data() == made.storage().data())
        return over(card.storage(), made, DispatchKey::CUDA);
    return on_card(made);
  }

  IValue to_card(const IValue& value) const {
    if (value.isTensor()) return to_card(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<Tensor> made;
    for (const auto& each : value.toTensorVector()) made.push_back(to_card(each));
    return made;
  }
};

void by_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  Call call{schema, {}, {}};
  const auto& arguments = schema.arguments();
  auto* first = stack->data() + stack->size() - arguments.size();
  for (size_t i = 0; i < arguments.size(); ++i) {
    bool no_generator = first[i].isNone() && arguments[i].name() == "generator";
    first[i] = no_generator ? IValue(card::on_host(default_generator(current))) : call.to_host(first[i]);
  }
  call.check_one_device();
  op.callBoxedForDispatchKey(DispatchKey::CPU, *stack);
  call.follow_sizes();
  for (auto i = stack->size() - schema.returns().size(); i < stack->size(); ++i)
    (*stack)[i] = call.to_card((*stack)[i]);
}

// Kernels that make tensors, or change what a tensor shows

struct OnCard {  // makes a card the current one for a while
  explicit OnCard(std::optional<Device> card) : before(current) {
    if (card && card->has_index()) current = card->index();
  }
  ~OnCard() { current = before; }
  DeviceIndex before;
};

const DispatchKeySet keys(DispatchKey::CUDA);

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
             std::optional<Device> card, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  OnCard guard(card);
  return Tensor(at::detail::empty_generic(size, &allocator(), keys, c10::dtype_or_default(type), format));
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> type,
                     std::optional<at::Layout>, std::optional<Device> card, std::optional<bool>) {
  OnCard guard(card);
  return Tensor(at::detail::empty_strided_generic(size, stride, &allocator(), keys, c10::dtype_or_default(type)));
}

// The zeros without memory that forward mode takes for a missing tangent.
Tensor efficient_zeros(IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                       std::optional<Device> card, std::optional<bool>) {
  OnCard guard(card);
  static std::vector<std::unique_ptr<at::native::ZeroTensorAllocator>> kept;
  kept.push_back(std::make_unique<at::native::ZeroTensorAllocator>(Device(DeviceType::CUDA, current)));
  auto zero_keys = keys | DispatchKeySet(DispatchKey::ZeroTensor);
  auto* without_memory = kept.back().get();
  return Tensor(at::detail::empty_generic(size, without_memory, zero_keys, c10::dtype_or_default(type), std::nullopt));
}

Tensor& copy_into(Tensor& self, const Tensor& source, bool) {
  if (source._is_zerotensor()) return self.zero_();
  auto to = on_host(self);
  at::AutoDispatchBelowADInplaceOrView guard;
  to.copy_(on_host(source));
  return self;
}

const Tensor& resize_to(const Tensor& self, IntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  auto bytes = at::detail::computeStorageNbytesContiguous(size, self.itemsize(), self.storage_offset());
  auto storage = self.storage();
  if (bytes > storage.nbytes()) {
    auto larger = allocator().allocate(bytes);
    if (storage.nbytes()) std::memcpy(larger.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(larger));
    storage.set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(size);
  if (format) impl->empty_tensor_restride(*format);
  return self;
}

Tensor& show(Tensor& self, c10::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_sizes_contiguous(size);
  if (stride.size() == size.size()) impl->set_sizes_and_strides(size, stride);
  impl->set_storage_offset(offset);
  return self;
}

Tensor& show_all(Tensor& self, c10::Storage storage) {
  int64_t length = storage.nbytes() / self.itemsize();
  return show(self, std::move(storage), 0, {length}, {});
}

Tensor& show_tensor(Tensor& self, const Tensor& source) {
  TORCH_CHECK(source.is_cuda(), "set_ got a CPU tensor for one on the card");
  return show(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

Tensor& show_nothing(Tensor& self) {
  c10::Storage nothing(c10::Storage::use_byte_size_t(), 0, allocator().allocate(0), &allocator(), true);
  return show(self, std::move(nothing), 0, {0}, {});
}

Tensor strided_view(const Tensor& self, IntArrayRef size, IntArrayRef stride, std::optional<int64_t> offset) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), self.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset.value_or(self.storage_offset()));
  return made;
}

Tensor alias_of(const Tensor& self, IntArrayRef size, IntArrayRef stride) {
  return strided_view(self, size, stride, self.storage_offset());
}

Tensor view_as(const Tensor& self, IntArrayRef size) {
  auto inferred = at::infer_size_dv(size, self.numel());
  auto stride = at::detail::computeStride(self.sizes(), self.strides(), inferred);
  TORCH_CHECK(stride, "view size is not compatible with the tensor's size and stride: use reshape");
  return alias_of(self, inferred, *stride);
}

// The attention that is written in other operators. Fused kernels are the card's own.
int64_t attention_in_parts(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                           std::optional<double>, bool) {
  return 0;
}

// CUDA counts integers, and the CPU does not.
Tensor count_integers(const Tensor& self, int64_t bins, const at::Scalar& low, const at::Scalar& high) {
  auto host = on_host(self);
  auto floating = host.is_floating_point() ? host : host.to(at::kFloat);
  return on_card(at::histc(floating, bins, low, high).to(self.scalar_type()));
}

// PyTorch would look for a kernel of cuDNN.
std::tuple<Tensor, Tensor, Tensor> convolution_gradients(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, at::OptionalIntArrayRef bias, IntArrayRef stride,
    IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> wanted) {
  auto made = at::convolution_backward(on_host(gradient), on_host(input), on_host(weight), bias, stride, padding,
                                       dilation, transposed, output_padding, groups, wanted);
  return {on_card(std::get<0>(made)), on_card(std::get<1>(made)), on_card(std::get<2>(made))};
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_efficientzerotensor", &efficient_zeros);
  m.impl("copy_", &copy_into);
  m.impl("resize_", &resize_to);
  m.impl("set_.source_Storage_storage_offset", &show);
  m.impl("set_.source_Storage", &show_all);
  m.impl("set_.source_Tensor", &show_tensor);
  m.impl("set_", &show_nothing);
  m.impl("as_strided", &strided_view);
  m.impl("_reshape_alias", &alias_of);
  m.impl("view", &view_as);
  m.impl("_fused_sdp_choice", &attention_in_parts);
  m.impl("histc", &count_integers);
  m.impl("convolution_backward", &convolution_gradients);
}

}  // namespace card
