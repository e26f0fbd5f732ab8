"""The kernels in Triton, for CUDA and ROCm. Nothing here imports Triton before a tensor needs it."""
