// WGMMA: matrix products of a warpgroup (4 warps, the first of which is a multiple of 4), read
// from shared memory and added up in registers, asynchronously.
//
//   wgmma_fence();                          before the first use of the registers
//   wgmma<N, E4m3>(d, a, b, accumulate);    any number of them, queued in order
//   wgmma_commit();                         closes a group
//   wgmma_wait<0>();                        now d may be touched, and a and b overwritten
//
// d [64, N] in FP32 = a [64, K] b [N, K]^T + (accumulate ? d : 0); K is 32 bytes: 32 of E4M3 and
// E5M2, 16 of BF16 and FP16, 8 of TF32. Thread t of the warpgroup holds d[row][column] for
// row = 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2) and column = 8 * (i / 4) + 2 * (t % 4) + i
// % 2. The sums of FP8 keep 13 fraction bits (docs/emulator.md): promote them each 128 of K.
#pragma once

#include "hopper/wgmma_operand.cuh"

namespace abyssal::hopper {

// "wgmma.fence": registers that the following products use, and that anything but an earlier
// product of the same shape touched, are settled. Shared memory written through the generic proxy
// needs fence_proxy_async_shared besides. All threads of the warpgroup.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// "wgmma.commit_group": closes the group of the warpgroup's products so far.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// "wgmma.wait_group": until at most kGroups of the newest groups are not complete. Touching their
// registers earlier is undefined (ptxas mends it by waiting at once: C7515 and the like).
template <int kGroups>
__device__ __forceinline__ void wgmma_wait() {
  static_assert(kGroups >= 0 and kGroups <= 7, "0 to 7 groups may be left running");
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// Keeps the compiler from moving its own uses of `d` across this place. It takes asm volatile
// statements for unordered with plain arithmetic on registers.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Where value i of a thread is in d. `thread` counts within the warpgroup.
__host__ __device__ constexpr int accumulator_row(int thread, int i) {
  return 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2);
}
__host__ __device__ constexpr int accumulator_column(int thread, int i) {
  return 8 * (i / 4) + 2 * (thread % 4) + i % 2;
}

// Types of operands.
struct E4m3 {
  static constexpr int kBytes = 1;
};
struct E5m2 {
  static constexpr int kBytes = 1;
};
struct Bf16 {
  static constexpr int kBytes = 2;
};
struct Fp16 {
  static constexpr int kBytes = 2;
};
struct Tf32 {
  static constexpr int kBytes = 4;
};

// K of one instruction.
template <typename Type>
inline constexpr int kWgmmaK = 32 / Type::kBytes;

namespace detail {

template <typename A, typename B>
struct WgmmaTypes;
#define ABYSSAL_WGMMA_TYPES(A, B, string)  \
  template <>                              \
  struct WgmmaTypes<A, B> {                \
    static constexpr char text[] = string; \
  };
ABYSSAL_WGMMA_TYPES(E4m3, E4m3, "k32.f32.e4m3.e4m3")
ABYSSAL_WGMMA_TYPES(E4m3, E5m2, "k32.f32.e4m3.e5m2")
ABYSSAL_WGMMA_TYPES(E5m2, E4m3, "k32.f32.e5m2.e4m3")
ABYSSAL_WGMMA_TYPES(E5m2, E5m2, "k32.f32.e5m2.e5m2")
ABYSSAL_WGMMA_TYPES(Bf16, Bf16, "k16.f32.bf16.bf16")
ABYSSAL_WGMMA_TYPES(Fp16, Fp16, "k16.f32.f16.f16")
ABYSSAL_WGMMA_TYPES(Tf32, Tf32, "k8.f32.tf32.tf32")
#undef ABYSSAL_WGMMA_TYPES

// imm-scale-a, imm-scale-b: both 1; for 16-bit types imm-trans-a (unless A is in registers) and
// imm-trans-b.
template <bool kTransposable, Major kMajorA, Major kMajorB>
struct WgmmaImmediates {
  static constexpr char text[] = {'1',
                                  ',',
                                  ' ',
                                  '1',
                                  ',',
                                  ' ',
                                  kMajorA == Major::k ? '0' : '1',
                                  ',',
                                  ' ',
                                  kMajorB == Major::k ? '0' : '1',
                                  '\0'};
};
template <Major kMajorA, Major kMajorB>
struct WgmmaImmediates<false, kMajorA, kMajorB> {
  static constexpr char text[] = "1, 1";
};
template <bool kTransposable, Major kMajorB>
struct WgmmaImmediatesOfRegisters {
  static constexpr char text[] = {'1', ',', ' ', '1', ',', ' ', kMajorB == Major::k ? '0' : '1',
                                  '\0'};
};
template <Major kMajorB>
struct WgmmaImmediatesOfRegisters<false, kMajorB> {
  static constexpr char text[] = "1, 1";
};

}  // namespace detail

// The operands %0 .. %(n - 1), and their constraints.
#define ABYSSAL_D4 "%0, %1, %2, %3"
#define ABYSSAL_D8 ABYSSAL_D4 ", %4, %5, %6, %7"
#define ABYSSAL_D16 ABYSSAL_D8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define ABYSSAL_D32 \
  ABYSSAL_D16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ABYSSAL_D48 \
  ABYSSAL_D32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define ABYSSAL_D64 \
  ABYSSAL_D48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ABYSSAL_D80 \
  ABYSSAL_D64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define ABYSSAL_D96 \
  ABYSSAL_D80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define ABYSSAL_D128                                                                           \
  ABYSSAL_D96                                                                                  \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "   \
  "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, " \
  "%126, %127"
#define ABYSSAL_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ABYSSAL_F8(i) ABYSSAL_F4(i), ABYSSAL_F4(i + 4)
#define ABYSSAL_F16(i) ABYSSAL_F8(i), ABYSSAL_F8(i + 8)
#define ABYSSAL_F32(i) ABYSSAL_F16(i), ABYSSAL_F16(i + 16)
#define ABYSSAL_F48(i) ABYSSAL_F32(i), ABYSSAL_F16(i + 32)
#define ABYSSAL_F64(i) ABYSSAL_F32(i), ABYSSAL_F32(i + 32)
#define ABYSSAL_F80(i) ABYSSAL_F64(i), ABYSSAL_F16(i + 64)
#define ABYSSAL_F96(i) ABYSSAL_F64(i), ABYSSAL_F32(i + 64)
#define ABYSSAL_F128(i) ABYSSAL_F64(i), ABYSSAL_F64(i + 64)

// N, registers of d, and the numbers of the operands that follow them. Another N is a row here.
#define ABYSSAL_WGMMA_SHAPES(X)                                          \
  X(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10", "%11")              \
  X(16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14", "%15")         \
  X(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22", "%23")      \
  X(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", "%39")      \
  X(96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54", "%55")      \
  X(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", "%71")     \
  X(160, 80, "%80", "%81", "%82", "%83", "%84", "%85", "%86", "%87")     \
  X(192, 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102", "%103") \
  X(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134", "%135")

#define X(n, ...) or kN == n
template <int kN>
inline constexpr bool kIsWgmmaN = false ABYSSAL_WGMMA_SHAPES(X);
#undef X

// "wgmma.mma_async", both operands in shared memory: descriptors from OperandTile. Asynchronous,
// reads shared memory through the async proxy. All threads of the warpgroup, with equal a, b and
// accumulate.
template <int kN, typename A, typename B = A, Major kMajorA = Major::k, Major kMajorB = Major::k>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kIsWgmmaN<kN>, "this N has no row in ABYSSAL_WGMMA_SHAPES");
  static_assert(A::kBytes == 2 or (kMajorA == Major::k and kMajorB == Major::k),
                "only 16-bit operands may have M or N contiguous");
  using Types = detail::WgmmaTypes<A, B>;
  using Immediates = detail::WgmmaImmediates<A::kBytes == 2, kMajorA, kMajorB>;
#define X(n, registers, r0, r1, r2, r3, r4, r5, r6, r7)                                    \
  if constexpr (kN == n) {                                                                 \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " r2                                    \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n r3 " {" ABYSSAL_D##registers \
                 "}, " r0 ", " r1 ", p, " r4 ";\n}"                                        \
                 : ABYSSAL_F##registers(0)                                                 \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "C"(Types::text),    \
                   "C"(Immediates::text)                                                   \
                 : "memory");                                                              \
  }
  ABYSSAL_WGMMA_SHAPES(X)
#undef X
}

// The same with A in registers, which must stay untouched until the wait. With c = 2 * (t % 4) for
// 16-bit types, 4 * (t % 4) for FP8, t % 4 for TF32, register q of thread t holds the row
// 16 * (t / 32) + t % 32 / 4 + 8 * (q % 2) and the columns from c + (q / 2) * K / 2 on, the first
// in the lowest bits.
template <int kN, typename A, typename B = A, Major kMajorB = Major::k>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                      bool accumulate) {
  static_assert(kIsWgmmaN<kN>, "this N has no row in ABYSSAL_WGMMA_SHAPES");
  static_assert(A::kBytes == 2 or kMajorB == Major::k,
                "only 16-bit operands may have N contiguous");
  using Types = detail::WgmmaTypes<A, B>;
  using Immediates = detail::WgmmaImmediatesOfRegisters<A::kBytes == 2, kMajorB>;
#define X(n, registers, r0, r1, r2, r3, r4, r5, r6, r7)                                       \
  if constexpr (kN == n) {                                                                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " r5                                       \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n r6 " {" ABYSSAL_D##registers    \
                 "}, {" r0 ", " r1 ", " r2 ", " r3 "}, " r4 ", p, " r7 ";\n}"                 \
                 : ABYSSAL_F##registers(0)                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                        \
                   "r"(static_cast<int>(accumulate)), "C"(Types::text), "C"(Immediates::text) \
                 : "memory");                                                                 \
  }
  ABYSSAL_WGMMA_SHAPES(X)
#undef X
}

#undef ABYSSAL_WGMMA_SHAPES
#undef ABYSSAL_D4
#undef ABYSSAL_D8
#undef ABYSSAL_D16
#undef ABYSSAL_D32
#undef ABYSSAL_D48
#undef ABYSSAL_D64
#undef ABYSSAL_D80
#undef ABYSSAL_D96
#undef ABYSSAL_D128
#undef ABYSSAL_F4
#undef ABYSSAL_F8
#undef ABYSSAL_F16
#undef ABYSSAL_F32
#undef ABYSSAL_F48
#undef ABYSSAL_F64
#undef ABYSSAL_F80
#undef ABYSSAL_F96
#undef ABYSSAL_F128

}  // namespace abyssal::hopper
