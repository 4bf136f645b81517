"""`rao-kernels demo`: a small real model aligned with RAO and with DPO, start to end, on a CPU."""
