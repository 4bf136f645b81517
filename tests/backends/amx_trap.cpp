// Executes AMX instructions on a processor without AMX: each raises SIGILL, and the handler
// emulates it.
//
// The shipped machine code can thus be tested, with the compiler's treatment of memory that it does
// not know the instructions read and write. An instruction that the hardware would refuse is
// recorded as a problem and skipped; other illegal instructions go to the previous handler.
#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cstdint>
#include <cstring>

#include "../../csrc/cpu/amx/tiles.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace emulation = rao::RAO_ISA::emulation;

namespace {

enum Prefix { kNone, k66, kF3, kF2 };

constexpr int key(int opcode, Prefix prefix) { return opcode << 2 | prefix; }

enum Key {
  kConfigure = key(0x49, kNone),  // TILERELEASE without a memory operand
  kZero = key(0x49, kF2),
  kLoad = key(0x4b, kF2),
  kStream = key(0x4b, k66),
  kStore = key(0x4b, kF3),
  kMultiply = key(0x5c, kF3),
};

struct Instruction {
  int key;
  int reg, rm, vvvv;
  bool memory;  // an operand in memory, at `address`
  uint8_t* address;
  bool has_index;  // which is the stride of a tile's rows
  int64_t stride;
  int length;
};

// The operand of LDTILECFG.
struct Configuration {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[8], reserved_row_bytes[8];
  uint8_t rows[8], reserved_rows[8];
};
static_assert(sizeof(Configuration) == 64);

thread_local Configuration configuration{};
std::atomic<const char*> problem{nullptr};
std::atomic<int64_t> count{0};
struct sigaction before;

// In the order of their encoding.
constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};

int64_t read_displacement(const uint8_t* at, int bytes) {
  int8_t narrow = 0;
  int32_t wide = 0;
  std::memcpy(bytes == 1 ? static_cast<void*>(&narrow) : &wide, at, bytes);
  return bytes == 1 ? narrow : wide;
}

// Decodes the operand in the ModRM byte at `at` and the bytes after it.
void decode_operand(const uint8_t* at, int high_index, int high_base, const greg_t* registers,
                    Instruction* found) {
  const int mode = *at >> 6, low = *at & 7;
  found->memory = mode != 3;
  found->rm = low | high_base;
  found->length = 5;
  if (!found->memory) {
    return;
  }
  int64_t address = 0;
  int base = found->rm, bytes = mode == 1 ? 1 : mode == 2 ? 4 : 0;
  bool has_base = true;
  ++at;
  if (low == 4) {  // a byte SIB follows
    const int index = (*at >> 3 & 7) | high_index;
    has_base = mode != 0 || (*at & 7) != 5;
    base = (*at & 7) | high_base;
    found->has_index = true;
    found->stride = index == 4 ? 0 : registers[kRegisters[index]] * (1 << (*at >> 6));
    ++at;
    ++found->length;
  } else if (mode == 0 && low == 5) {  // relative to the next instruction
    has_base = false;
    address = registers[REG_RIP] + found->length + 4;
  }
  if (has_base) {
    address += registers[kRegisters[base]];
  } else {
    bytes = 4;
  }
  address += read_displacement(at, bytes);
  found->length += bytes;
  found->address = reinterpret_cast<uint8_t*>(address);
}

// Decodes an instruction with a three-byte VEX prefix in the map 0F 38, W and L clear; false if it
// is another one.
bool decode(const greg_t* registers, Instruction* found) {
  const auto* at = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
  if (at[0] != 0xc4 || (at[1] & 0x1f) != 2 || (at[2] & 0x84) != 0) {
    return false;
  }
  *found = {};
  found->key = key(at[3], static_cast<Prefix>(at[2] & 3));
  found->vvvv = ~(at[2] >> 3) & 15;
  found->reg = (at[4] >> 3 & 7) | (at[1] & 0x80 ? 0 : 8);
  decode_operand(at + 4, at[1] & 0x40 ? 0 : 8, at[1] & 0x20 ? 0 : 8, registers, found);
  return true;
}

// Records what the hardware would refuse, if it is the first problem.
bool require(bool holds, const char* what) {
  const char* none = nullptr;
  if (!holds) {
    problem.compare_exchange_strong(none, what);
  }
  return holds;
}

bool is_zero(const void* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    if (static_cast<const uint8_t*>(memory)[i] != 0) {
      return false;
    }
  }
  return true;
}

void release() {
  configuration = {};
  emulation::configured = false;
  for (auto& tile : emulation::tiles) {
    tile = {};
  }
}

void configure(const uint8_t* memory) {
  release();
  Configuration read;
  std::memcpy(&read, memory, sizeof(read));
  const bool reserved = is_zero(read.reserved, sizeof(read.reserved)) &&
                        is_zero(read.reserved_rows, sizeof(read.reserved_rows)) &&
                        is_zero(read.reserved_row_bytes, sizeof(read.reserved_row_bytes));
  bool whole = true;
  for (int tile = 0; tile < 8; ++tile) {
    whole = whole && read.rows[tile] <= 16 && read.row_bytes[tile] <= 64 &&
            (read.rows[tile] == 0) == (read.row_bytes[tile] == 0);
  }
  if (require(read.palette == 1, "the configuration's palette is not 1") &&
      require(read.start_row == 0, "the configuration starts at another row than 0") &&
      require(reserved, "reserved bytes of the configuration are not zero") &&
      require(whole, "the configuration has a tile of impossible size")) {
    configuration = read;
    emulation::configured = true;
  }
}

bool is_usable(int tile) {
  return require(emulation::configured, "a tile is used without a configuration") &&
         require(configuration.rows[tile] == 16 && configuration.row_bytes[tile] == 64,
                 "a tile is used that is not configured as 16 rows of 64 bytes");
}

bool multiply(const Instruction& it) {
  if (it.memory || it.rm > 7 || it.vvvv > 7 || it.reg == it.rm || it.reg == it.vvvv ||
      it.rm == it.vvvv) {
    return false;
  }
  if (is_usable(it.reg) && is_usable(it.rm) && is_usable(it.vvvv)) {
    emulation::multiply(it.reg, it.rm, it.vvvv);
  }
  return true;
}

bool configure_or_release(const Instruction& it) {
  if (it.reg != 0 || (!it.memory && it.rm != 0)) {
    return false;
  }
  it.memory ? configure(it.address) : release();
  return true;
}

// Executes an instruction of the tile unit; false if it is another one.
bool execute(const Instruction& it) {
  if (it.reg > 7 || (it.vvvv != 0 && it.key != kMultiply)) {
    return false;
  }
  switch (it.key) {
    case kConfigure:
      return configure_or_release(it);
    case kMultiply:
      return multiply(it);
    case kZero:
      if (it.memory || it.rm != 0) {
        return false;
      }
      break;
    case kLoad:
    case kStream:
    case kStore:
      if (!it.has_index) {
        return false;
      }
      break;
    default:
      return false;
  }
  if (!is_usable(it.reg)) {
    return true;
  }
  if (it.key == kZero) {
    emulation::zero(it.reg);
  } else if (it.key == kStore) {
    emulation::store(it.reg, it.address, it.stride);
  } else {
    emulation::load(it.reg, it.address, it.stride);
  }
  return true;
}

void handle(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  Instruction instruction;
  if (decode(registers, &instruction) && execute(instruction)) {
    registers[REG_RIP] += instruction.length;
    count.fetch_add(1, std::memory_order_relaxed);
  } else {
    sigaction(SIGILL, &before, nullptr);  // the instruction is executed again, under that handler
  }
}

}  // namespace

EXPORT void trap_tiles() {
  struct sigaction action{};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, &before);
}
EXPORT void stop_trapping() { sigaction(SIGILL, &before, nullptr); }

// Instructions executed since the last call.
EXPORT int64_t take_count() { return count.exchange(0); }
// The first problem since the last call, or null.
EXPORT const char* take_problem() { return problem.exchange(nullptr); }
