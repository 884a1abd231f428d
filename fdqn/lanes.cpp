// Groups of lanes through their cycles: a compiled step, called again and again without the Python interpreter.
//
// Only functions of torch's C interface are used (torch/csrc/inductor/aoti_torch/c/shim.h and aoti_runtime/interface.h),
// declared here so that compiling takes a moment. All of them answer 0 when they worked.

#include <cstddef>
#include <cstdint>
#include <vector>

using Handle = void*;
using Step = int32_t (*)(Handle model, Handle* inputs, size_t, Handle* outputs, size_t, Handle stream, Handle executor);

extern "C" {

int32_t aoti_torch_create_tensor_from_blob(void* data, int64_t dims, const int64_t* sizes, const int64_t* strides,
                                           int64_t offset, int32_t dtype, int32_t device, int32_t index, Handle*);
int32_t aoti_torch_device_type_cpu();
int32_t aoti_torch_new_tensor_handle(Handle, Handle*);
int32_t aoti_torch_delete_tensor_object(Handle);

// One group's part of an input, and how many bytes further the next group's and the next cycle's lie.
struct Input {
  char* data;
  int64_t dims;
  const int64_t* sizes;
  const int64_t* strides;
  int64_t dtype;
  int64_t to_next_group;
  int64_t to_next_cycle;
};

// Each of the groups first, first + stride, ... below `groups` through all cycles. The inputs that stay are the state,
// which the step writes over; those that change are this cycle's noise.
int32_t fdqn_groups(Step step, Handle model, const Input* inputs, int64_t first, size_t stay, size_t change,
                    int64_t stride, int64_t groups, int64_t cycles) {
  const int32_t cpu = aoti_torch_device_type_cpu();
  int32_t failed = 0;
  std::vector<Handle> state(stay), given(stay + change);
  auto tensor = [&](const Input& x, int64_t group, int64_t cycle, Handle* made) {
    char* data = x.data + group * x.to_next_group + cycle * x.to_next_cycle;
    failed |= aoti_torch_create_tensor_from_blob(data, x.dims, x.sizes, x.strides, 0, x.dtype, cpu, 0, made);
  };
  for (int64_t group = first; group < groups && !failed; group += stride) {
    for (size_t i = 0; i < stay; ++i) tensor(inputs[i], group, 0, &state[i]);
    for (int64_t cycle = 0; cycle < cycles && !failed; ++cycle) {
      for (size_t i = 0; i < stay; ++i) failed |= aoti_torch_new_tensor_handle(state[i], &given[i]);
      for (size_t i = stay; i < given.size(); ++i) tensor(inputs[i], group, cycle, &given[i]);
      // A step takes its inputs' handles for its own.
      if (!failed) failed = step(model, given.data(), given.size(), nullptr, 0, nullptr, nullptr);
    }
    for (Handle x : state) aoti_torch_delete_tensor_object(x);
  }
  return failed;
}
}
