#include "emulator/instructions/addressing.hpp"

#include "emulator/program.hpp"

namespace abyssal::emulator {

std::optional<Scope> decode_scope_if(Decoding& decoding) {
  const int index = decoding.choose_if({"cta", "cluster", "gpu", "sys"});
  if (index < 0) return std::nullopt;
  return static_cast<Scope>(index + 1);
}

Scope decode_scope(Decoding& decoding) {
  const auto scope = decode_scope_if(decoding);
  if (!scope) decoding.fail("expected one of .cta, .cluster, .gpu, .sys");
  return *scope;
}

void decode_order(Decoding& decoding, Access& access) {
  switch (decoding.choose_if(
      {"weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"})) {
    case 1:
      // As .relaxed.sys (PTX ISA 9.7.9.8).
      access.order = Order::volatile_;
      access.scope = Scope::sys;
      return;
    case 2:
      access.order = Order::relaxed;
      break;
    case 3:
      access.order = Order::acquire;
      break;
    case 4:
      access.order = Order::release;
      break;
    case 5:
      access.order = Order::acquire_release;
      break;
    case 6:
      decoding.expect("relaxed");
      access.order = Order::relaxed;
      break;
    default:
      return;
  }
  access.scope = decode_scope_if(decoding).value_or(Scope::gpu);
}

Space decode_space(Decoding& decoding) {
  switch (decoding.choose_if({"global", "shared", "shared::cta", "shared::cluster", "local",
                              "param", "const", "param::entry", "param::func"})) {
    case 0:
      return Space::global;
    case 1:
    case 2:
    case 3:
      return Space::shared;
    case 4:
      return Space::local;
    case 5:
    case 7:
    case 8:
      return Space::param;
    case 6:
      return Space::constant;
    default:
      return Space::generic;
  }
}

bool skip_cache_hints(Decoding& decoding) {
  bool has_policy = false;
  for (;;) {
    if (decoding.accept("L2::cache_hint")) {
      has_policy = true;
    } else if (decoding.choose_if({"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt"}) < 0 &&
               !decoding.accept_prefix("L1::") && !decoding.accept_prefix("L2::")) {
      return has_policy;
    }
  }
}

void decode_address(Decoding& decoding, size_t operand, int slot) {
  const Decoding::Address address = decoding.address(decoding.operand(operand));
  decoding.into.sources[slot] = address.base;
  decoding.into.immediate = address.offset;
}

const ptx::Operand& vector_element(Decoding& decoding, size_t operand, int count, int index) {
  const ptx::Operand& values = decoding.operand(operand);
  if (count == 1 && values.kind != ptx::Operand::Kind::vector) return values;
  if (values.kind != ptx::Operand::Kind::vector ||
      values.elements.size() != static_cast<size_t>(count)) {
    decoding.fail("a vector of " + std::to_string(count) + " is needed");
  }
  return values.elements[static_cast<size_t>(index)];
}

Space space_of_variable(Decoding& decoding, size_t operand, Space space) {
  if (space != Space::param) return space;
  const ptx::Operand& address = decoding.operand(operand);
  if (address.kind != ptx::Operand::Kind::address) decoding.fail("expected an address");
  const ptx::Operand& base = address.elements[0];
  const bool is_of_call = base.kind == ptx::Operand::Kind::variable && base.index >= 0 &&
                          base.index >= decoding.num_kernel_params();
  return is_of_call ? Space::local : Space::param;
}

}  // namespace abyssal::emulator
