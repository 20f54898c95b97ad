"""Triton kernels, one a file, and the tools that check them without a GPU.

Importing this folder does not import Triton: its kernels are loaded by ``qpass.lowering.cuda`` where Triton is there.
"""
