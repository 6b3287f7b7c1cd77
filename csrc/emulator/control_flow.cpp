#include "emulator/control_flow.hpp"

#include <utility>

namespace abyssal::emulator {
namespace {

// Instructions that can reach the end, in an order in which a node comes after its successors
// but for loops: the postorder of a depth-first walk from the end over reversed edges, reversed.
std::vector<int> order_from_end(const std::vector<std::vector<int>>& predecessors, int end) {
  std::vector<int> order;
  std::vector<bool> seen(predecessors.size());
  std::vector<std::pair<int, size_t>> path{{end, 0}};
  seen[end] = true;
  while (!path.empty()) {
    auto& [node, next] = path.back();
    if (next == predecessors[node].size()) {
      order.push_back(node);
      path.pop_back();
      continue;
    }
    const int predecessor = predecessors[node][next++];
    if (seen[predecessor]) continue;
    seen[predecessor] = true;
    path.emplace_back(predecessor, 0);
  }
  return {order.rbegin(), order.rend()};
}

}  // namespace

std::vector<int> immediate_post_dominators(const std::vector<std::vector<int>>& successors) {
  const int end = static_cast<int>(successors.size());
  std::vector<std::vector<int>> predecessors(end + 1);
  for (int node = 0; node < end; ++node) {
    for (int successor : successors[node]) predecessors[successor].push_back(node);
  }
  const std::vector<int> order = order_from_end(predecessors, end);
  std::vector<int> rank(end + 1, -1);
  for (size_t i = 0; i < order.size(); ++i) rank[order[i]] = static_cast<int>(i);

  std::vector<int> dominator(end + 1, -1);
  dominator[end] = end;
  const auto meet = [&](int a, int b) {
    while (a != b) {
      while (rank[a] > rank[b]) a = dominator[a];
      while (rank[b] > rank[a]) b = dominator[b];
    }
    return a;
  };
  for (bool changed = true; changed;) {
    changed = false;
    for (int node : order) {
      if (node == end) continue;
      int common = -1;
      for (int successor : successors[node]) {
        // A path that never ends, or one that is not known yet, decides nothing.
        if (rank[successor] < 0 || dominator[successor] < 0) continue;
        common = common < 0 ? successor : meet(common, successor);
      }
      changed |= common != dominator[node];
      dominator[node] = common;
    }
  }
  dominator.pop_back();
  for (int& node : dominator) {
    if (node == end) node = -1;
  }
  return dominator;
}

}  // namespace abyssal::emulator
