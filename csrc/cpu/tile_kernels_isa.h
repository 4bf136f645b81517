// The tile kernels of one instruction set.
#pragma once

#include "kernel_set.h"
#include "logits.h"

RAO_DECLARE(RAO_ISA)
