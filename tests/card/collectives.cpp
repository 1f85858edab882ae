// Collectives under the name nccl, and the functions that Python calls.

#include "card.h"

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/extension.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>

using at::Tensor;

namespace card {
namespace {

// Gloo over the same memory.
struct CardBackend final : c10d::Backend {
  using Tensors = std::vector<Tensor>;
  using Work = c10::intrusive_ptr<c10d::Work>;

  CardBackend(c10::intrusive_ptr<c10d::Backend> gloo, int rank, int size)
      : Backend(rank, size), gloo(std::move(gloo)) {}
  const std::string getBackendName() const override { return "nccl"; }
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return 0; }

  static Tensor host(const Tensor& tensor) {
    TORCH_CHECK(tensor.is_cuda(), "No backend type associated with device type cpu");
    return card::on_host(tensor);
  }
  static Tensors host(const Tensors& given) {
    Tensors made;
    for (const auto& each : given) made.push_back(host(each));
    return made;
  }
  static std::vector<Tensors> host(const std::vector<Tensors>& given) {
    std::vector<Tensors> made;
    for (const auto& each : given) made.push_back(host(each));
    return made;
  }
  // The host's tensors live until the work is done.
  static Work done(Work work) {
    work->wait();
    return work;
  }
  // Gloo has no mean.
  template <class Options, class Run>
  Work reduced(Options options, Tensors results, Run run) {
    bool mean = options.reduceOp == c10d::ReduceOp::AVG;
    if (mean) options.reduceOp = c10d::ReduceOp::SUM;
    auto work = done(run(options));
    if (mean)
      for (auto& each : results) each.div_(getSize());
    return work;
  }

  Work broadcast(Tensors& given, const c10d::BroadcastOptions& options) override {
    auto tensors = host(given);
    return done(gloo->broadcast(tensors, options));
  }
  Work allreduce(Tensors& given, const c10d::AllreduceOptions& options) override {
    auto tensors = host(given);
    return reduced(options, tensors, [&](auto& each) { return gloo->allreduce(tensors, each); });
  }
  Work reduce(Tensors& given, const c10d::ReduceOptions& options) override {
    auto tensors = host(given);
    return reduced(options, tensors, [&](auto& each) { return gloo->reduce(tensors, each); });
  }
  Work allgather(std::vector<Tensors>& to, Tensors& from, const c10d::AllgatherOptions& options) override {
    auto outputs = host(to);
    auto inputs = host(from);
    return done(gloo->allgather(outputs, inputs, options));
  }
  Work _allgather_base(Tensor& to, Tensor& from, const c10d::AllgatherOptions& options) override {
    auto output = host(to), input = host(from);
    return done(gloo->_allgather_base(output, input, options));
  }
  Work allgather_into_tensor_coalesced(Tensors& to, Tensors& from, const c10d::AllgatherOptions& options) override {
    Work last;
    for (size_t i = 0; i < to.size(); ++i) last = _allgather_base(to[i], from[i], options);
    return last;
  }
  Work gather(std::vector<Tensors>& to, Tensors& from, const c10d::GatherOptions& options) override {
    auto outputs = host(to);
    auto inputs = host(from);
    return done(gloo->gather(outputs, inputs, options));
  }
  Work scatter(Tensors& to, std::vector<Tensors>& from, const c10d::ScatterOptions& options) override {
    auto outputs = host(to);
    auto inputs = host(from);
    return done(gloo->scatter(outputs, inputs, options));
  }
  Work reduce_scatter(Tensors& to, std::vector<Tensors>& from, const c10d::ReduceScatterOptions& options) override {
    auto outputs = host(to);
    auto inputs = host(from);
    return reduced(options, outputs, [&](auto& each) { return gloo->reduce_scatter(outputs, inputs, each); });
  }
  Work _reduce_scatter_base(Tensor& to, Tensor& from, const c10d::ReduceScatterOptions& options) override {
    auto output = host(to), input = host(from);
    return reduced(options, {output}, [&](auto& each) { return gloo->_reduce_scatter_base(output, input, each); });
  }
  Work reduce_scatter_tensor_coalesced(Tensors& to, Tensors& from, const c10d::ReduceScatterOptions& options) override {
    Work last;
    for (size_t i = 0; i < to.size(); ++i) last = _reduce_scatter_base(to[i], from[i], options);
    return last;
  }
  Work alltoall_base(Tensor& to, Tensor& from, std::vector<int64_t>& to_sizes, std::vector<int64_t>& from_sizes,
                     const c10d::AllToAllOptions& options) override {
    auto output = host(to), input = host(from);
    return done(gloo->alltoall_base(output, input, to_sizes, from_sizes, options));
  }
  Work send(Tensors& given, int rank, int tag) override {
    auto tensors = host(given);
    return done(gloo->send(tensors, rank, tag));
  }
  Work recv(Tensors& given, int rank, int tag) override {
    auto tensors = host(given);
    return done(gloo->recv(tensors, rank, tag));
  }
  Work barrier(const c10d::BarrierOptions& options) override {
    c10d::BarrierOptions without_card;
    without_card.timeout = options.timeout;
    return gloo->barrier(without_card);
  }

  c10::intrusive_ptr<c10d::Backend> gloo;
};

}  // namespace
}  // namespace card

using namespace card;

// A thread of the backward pass may wait for Python's lock when Python ends, which ends the thread in a way that C++
// takes for an error. The thread waits here while the process exits.
void wait_for_exit() {
  while (!Py_IsInitialized()) pause();
  std::abort();
}

PYBIND11_MODULE(card, m) {
  std::set_terminate(&wait_for_exit);
  m.def("allocated", [] { return allocated.load(); });
  m.def("peak", [] { return peak.load(); });
  m.def("reset_peak", [] { peak.store(allocated.load()); });
  m.def("set_capacity", [](int64_t bytes) { capacity = bytes; });
  m.def("set_cards", [](int count) { card::count = c10::DeviceIndex(count); });
  m.def("current", [] { return int(current); });
  m.def("set_current", [](int index) { current = c10::DeviceIndex(index); });
  m.def("default_generator", [](int index) { return default_generator(index); });
  py::class_<CardBackend, c10d::Backend, c10::intrusive_ptr<CardBackend>>(m, "CardBackend")
      .def(py::init([](c10::intrusive_ptr<c10d::Backend> gloo, int rank, int size) {
        return c10::make_intrusive<CardBackend>(std::move(gloo), rank, size);
      }));
}
