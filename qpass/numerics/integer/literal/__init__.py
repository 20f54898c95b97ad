"""Mode ``literal``: I-LLM's Algorithms 1 to 4 as they are printed (Hu et al. 2024), for study.

They lose the signal, which is why they are kept: what is repaired elsewhere is measured against them. No headroom in
the exponential, floors instead of rounding, integer ratios of scales, both exponentials of the sigmoid below the row's
maximum. Divisions floor; what the algorithms do not say is as in mode ``precise``.
"""
