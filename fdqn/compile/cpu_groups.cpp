// Run a compiled step repeatedly for groups of lanes, without the Python interpreter. `cycle` counts calls of the step.
//
// Only functions of torch's C interface are used (aoti_torch/c/shim.h and aoti_runtime/interface.h of
// torch/csrc/inductor). They are declared here because torch's headers compile slowly. They return 0 on success.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

using Handle = void*;
using Step = int32_t (*)(Handle model, Handle* inputs, size_t, Handle* outputs, size_t, Handle stream, Handle executor);

extern "C" {

int32_t aoti_torch_create_tensor_from_blob(void* data, int64_t dims, const int64_t* sizes, const int64_t* strides,
                                           int64_t offset, int32_t dtype, int32_t device, int32_t index, Handle*);
int32_t aoti_torch_device_type_cpu();
int32_t aoti_torch_new_tensor_handle(Handle, Handle*);
int32_t aoti_torch_delete_tensor_object(Handle);

// The first group's slice of an input, and the strides in bytes to the next group and to the next call.
struct Input {
  char* data;
  int64_t dims;
  const int64_t* sizes;
  const int64_t* strides;
  int64_t dtype;
  int64_t to_next_group;
  int64_t to_next_cycle;
};

// The progress of every group of one call, shared by all threads.
//
// A thread takes any free group, so a thread whose core is busy does less of the work and delays the others by at most
// one piece, as long as there are more groups than threads. Only one thread works on a group at a time, and runs its
// calls in order, so results do not depend on the assignment of groups to threads.
class Work {
 public:
  // `shared` holds 1 + groups values, initially 0: a spin lock, then for each group the number of calls done, or
  // -1 - (calls done) while a thread works on it.
  Work(std::atomic<int64_t>* shared, int64_t groups, int64_t cycles, int64_t workers)
      : lock_(shared[0]), done_(shared + 1), groups_(groups), cycles_(cycles), workers_(workers) {}

  struct Piece {
    int64_t group, begin, end;
  };

  // Take the free group with the fewest calls done; return false if every group is finished or taken. While many
  // groups have not started, a piece is all calls of a group, which stays in the core's cache. The last groups are
  // taken in eighths, so that all threads finish at about the same time.
  bool take(Piece* piece) {
    acquire();
    int64_t best = -1, started = 0;
    for (int64_t i = 0; i < groups_; ++i) {
      const int64_t done = done_[i].load(std::memory_order_relaxed);
      started += done != 0;
      if (done >= 0 && done < cycles_ && (best < 0 || done < done_[best].load(std::memory_order_relaxed))) best = i;
    }
    if (best >= 0) {
      const int64_t begin = done_[best].load(std::memory_order_relaxed);
      const bool many = groups_ - started > 2 * workers_;
      const int64_t pieces = many || workers_ == 1 ? 1 : 8;
      *piece = {best, begin, std::min(cycles_, begin + (cycles_ + pieces - 1) / pieces)};
      done_[best].store(-1 - begin, std::memory_order_relaxed);
    }
    release();
    return best >= 0;
  }

  void give(const Piece& piece) {
    acquire();
    done_[piece.group].store(piece.end, std::memory_order_relaxed);
    release();
  }

 private:
  void acquire() {
    int64_t open = 0;
    while (!lock_.compare_exchange_weak(open, 1, std::memory_order_acquire)) {
      open = 0;
      std::this_thread::yield();
    }
  }
  void release() { lock_.store(0, std::memory_order_release); }

  std::atomic<int64_t>& lock_;
  std::atomic<int64_t>* done_;
  const int64_t groups_, cycles_, workers_;
};

// Work on pieces until none is left; every thread of a call runs this. The first `stay` inputs are the state, which the
// step updates in place; the other `change` inputs are the noise, a different slice for each call.
int32_t fdqn_groups(Step step, Handle model, const Input* inputs, void* shared, size_t stay, size_t change,
                    int64_t workers, int64_t groups, int64_t cycles) {
  const int32_t cpu = aoti_torch_device_type_cpu();
  int32_t failed = 0;
  std::vector<Handle> state(stay), given(stay + change);
  auto tensor = [&](const Input& x, int64_t group, int64_t cycle, Handle* made) {
    char* data = x.data + group * x.to_next_group + cycle * x.to_next_cycle;
    failed |= aoti_torch_create_tensor_from_blob(data, x.dims, x.sizes, x.strides, 0, x.dtype, cpu, 0, made);
  };
  Work work(static_cast<std::atomic<int64_t>*>(shared), groups, cycles, workers);
  Work::Piece piece;
  while (!failed && work.take(&piece)) {
    for (size_t i = 0; i < stay; ++i) tensor(inputs[i], piece.group, 0, &state[i]);
    for (int64_t cycle = piece.begin; cycle < piece.end && !failed; ++cycle) {
      for (size_t i = 0; i < stay; ++i) failed |= aoti_torch_new_tensor_handle(state[i], &given[i]);
      for (size_t i = stay; i < given.size(); ++i) tensor(inputs[i], piece.group, cycle, &given[i]);
      // The step takes ownership of its input handles.
      if (!failed) failed = step(model, given.data(), given.size(), nullptr, 0, nullptr, nullptr);
    }
    for (Handle x : state) aoti_torch_delete_tensor_object(x);
    work.give(piece);
  }
  return failed;
}
}
