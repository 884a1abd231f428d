// Groups of lanes through their cycles: a compiled step, called again and again without the Python interpreter.
//
// Only functions of torch's C interface are used (torch/csrc/inductor/aoti_torch/c/shim.h and aoti_runtime/interface.h),
// declared here so that compiling takes a moment. All of them answer 0 when they worked.

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

// The groups of one call and how far each has come, shared by the threads that work on them.
//
// A thread takes whichever group is free, so a thread whose core is busy with something else does less of the work and
// delays the others by one piece at most, as long as there are more groups than threads. A group is worked on by one thread at a time, through its cycles in order: its
// results do not depend on who computes them.
class Work {
 public:
  // `shared` holds 1 + groups zeros: a lock, then for each group the cycles done, or -1 - that while it is worked on.
  Work(std::atomic<int64_t>* shared, int64_t groups, int64_t cycles, int64_t workers)
      : lock_(shared[0]), done_(shared + 1), groups_(groups), cycles_(cycles), workers_(workers) {}

  struct Piece {
    int64_t group, begin, end;
  };

  // Takes the least advanced group that no thread works on; returns false if every group is finished or taken.
  // While many groups are left it is taken for all of its cycles, which keeps it in the core's cache; the last few are
  // taken for some cycles at a time, so that all threads finish together.
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

// One thread's part of a call: pieces of work until none is left. The inputs that stay are the state, which the step
// writes over; those that change are each cycle's noise.
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
      // A step takes its inputs' handles for its own.
      if (!failed) failed = step(model, given.data(), given.size(), nullptr, 0, nullptr, nullptr);
    }
    for (Handle x : state) aoti_torch_delete_tensor_object(x);
    work.give(piece);
  }
  return failed;
}
}
