"""Integer-only inference: what each operator computes, as pure functions of integer tensors.

Formats, the rounding rule and the width of every intermediate are in docs/integer.md; source of the operators is I-LLM
(Hu et al. 2024) where it says something, and our own design where it does not. Names of formats:

* rows: int32 ``x`` [..., C] and an exponent ``k`` int32 [..., 1]; the value is x · 2^-k and |x| <= 2^30;
* codes: int8 [..., C], a mantissa ``m`` and an exponent ``k``, int32 [..., 1]; the value is (code - zero) · m · 2^-k;
* dyadic vectors: int32 ``mantissa`` [C] below 2^16, ``shift`` [C] >= 0 and ``exponent`` [1]; the value of channel c is
  mantissa_c · 2^-(exponent + shift_c).
"""
