// What this machine can run. Compiled without any -m flag, so it is safe everywhere.
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"

namespace qpass_cpu {

// The kernel saves the 8 KiB of tile registers only for processes that ask.
bool request_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Isa detected_isa() {
  __builtin_cpu_init();
  bool base = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vnni");
  if (!base) return kIsaNone;
  if (!__builtin_cpu_supports("avx512bf16")) return kIsaAvx512;
  bool amx = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
             __builtin_cpu_supports("amx-bf16") && request_amx();
  return amx ? kIsaAmx : kIsaAvx512Bf16;
}

}  // namespace qpass_cpu
