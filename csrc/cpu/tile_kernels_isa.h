// Declares the tile kernels of the instruction set that this unit is compiled for.
#pragma once

#include "kernel_set.h"
#include "logits.h"

RAO_DECLARE(RAO_ISA)
