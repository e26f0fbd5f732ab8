"""The four kernels under the whole family: ``moments``, ``apply``, ``grad_sums``, ``grad_input``."""

from normwise.ops.reference import ACTIVATIONS, accumulation_dtype, activate, apply, grad_input, grad_sums, moments

__all__ = ["ACTIVATIONS", "accumulation_dtype", "activate", "apply", "grad_input", "grad_sums", "moments"]
