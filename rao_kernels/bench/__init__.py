"""Time, memory and error of the op and the losses, beside other libraries.

Run it as ``rao-kernels bench`` or ``python -m rao_kernels.bench``.
"""
