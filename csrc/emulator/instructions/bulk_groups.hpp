// Bulk groups: the stores of a thread that it commits together and waits for (PTX ISA 9.7.9.25.5).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>

#include "emulator/checks/checker.hpp"
#include "emulator/warp.hpp"

namespace abyssal::emulator {

struct BulkGroup {
  uint32_t last = 0;    // the number of its last operation
  uint32_t reads = 0;   // operations that still have to read their source
  uint32_t writes = 0;  // operations that still have to write
};

// Of one thread.
class BulkGroups {
 public:
  // Strict runs: agents of the thread's operations, whose clocks are the operations' numbers.
  Agent reader, writer;
  uint32_t num_operations = 0;

  // The group that is open.
  std::shared_ptr<BulkGroup> open() {
    if (open_ == nullptr) open_ = std::make_shared<BulkGroup>();
    return open_;
  }
  // The numbers of the last operations that a wait has found done.
  uint32_t last_read() const { return std::max(last_read_, last_written_); }
  uint32_t last_written() const { return last_written_; }

  void commit() {
    committed_.push_back(open());
    open_ = nullptr;
  }
  // Whether all groups but the newest `rest` are done: have read, or have written as well.
  bool are_done(size_t rest, bool reads_only) {
    const size_t count = committed_.size() > rest ? committed_.size() - rest : 0;
    for (size_t i = 0; i < count; ++i) {
      if ((reads_only ? committed_[i]->reads : committed_[i]->writes) != 0) return false;
    }
    if (count == 0) return true;
    (reads_only ? last_read_ : last_written_) = committed_[count - 1]->last;
    const auto begin = committed_.begin();
    if (!reads_only) committed_.erase(begin, begin + static_cast<ptrdiff_t>(count));
    return true;
  }

 private:
  std::shared_ptr<BulkGroup> open_;
  std::deque<std::shared_ptr<BulkGroup>> committed_;
  uint32_t last_read_ = 0, last_written_ = 0;
};

}  // namespace abyssal::emulator
