"""Mode ``paper``: eight bits into each operator that is not linear, as I-LLM (Hu et al. 2024) has it.

What its printed algorithms get wrong is repaired: exponentials by a table, the sigmoid by branches, ratios of channel
scales with eight fraction bits, rounding anchored at the zero point. What is printed: ``numerics.integer.literal``.
"""
