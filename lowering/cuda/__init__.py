"""Target ``cuda``: Triton kernels for low-bit linears, Inductor for everything around them."""
