"""The command line `rao-kernels`."""
