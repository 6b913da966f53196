// Work shared among threads.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace sparsign {

// work(0) .. work(workers - 1): the first, and those for which no thread is to be had, by the caller. All have ended
// when it returns; what one of them threw is thrown then.
template <typename Work>
void in_parallel(int64_t workers, const Work& work) {
  std::exception_ptr thrown;
  std::mutex mutex;
  const auto guarded = [&](int64_t k) {
    try {
      work(k);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!thrown) thrown = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(workers);  // nothing is thrown past a thread that still runs
  int64_t begun = 1;
  try {
    for (; begun < workers; ++begun) others.emplace_back(guarded, begun);
  } catch (const std::exception&) {  // too many threads, or no memory for one
  }
  if (workers > 0) guarded(0);
  for (int64_t k = begun; k < workers; ++k) guarded(k);
  for (std::thread& other : others) other.join();
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace sparsign
