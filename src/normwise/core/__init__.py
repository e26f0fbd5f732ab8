"""The heart: what a method is, what it makes of moments, and which kernels serve a call."""
