"""What Inductor makes of a mixture-of-experts block on a GPU that is not here: and nothing on the host."""

from __future__ import annotations

import functools

import pytest
import torch
import transformers as hf
from torch import nn
from torch._inductor import config

pytest.importorskip("triton")

import qpass
from tests.lowering.cuda import fakegpu
from tests.lowering.cuda.generated import launches

PAST = 7
_BASE = {"vocab_size": 64, "hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 64,
         "num_key_value_heads": 2, "num_experts_per_tok": 2, "tie_word_embeddings": False}  # fmt: skip
CONFIGS = {
    "mixtral": lambda: hf.MixtralConfig(**_BASE, intermediate_size=512, num_local_experts=4, sliding_window=None),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**_BASE, num_experts=8, moe_intermediate_size=256, decoder_sparse_step=1),
}
HOST = (".item(", "_local_scalar_dense", "nonzero", ".tolist(", ".cpu(")


@functools.cache
def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    made = hf.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval().to(torch.bfloat16)
    made.set_experts_implementation("grouped_mm")
    return made


def code(name: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of one block, for one token of one sequence behind ``PAST``."""
    recipe = {"linears": {"lm_head.weight": "keep", "*": scheme}}
    program = qpass.trace(model(name), recipe, target="cuda")["LOWERED"]
    sizes = {"input_ids": (1, 1), "attention_mask": (1, PAST + 1), "position_ids": (1, 1), "keep": (1,)}
    inputs = [(sizes.get(node.name, (1, 2, PAST, 64)), node.meta["val"].dtype) for node in program.placeholders()]
    monkeypatch.setitem(fakegpu.SETTINGS, "max_autotune_gemm", False)  # no dense dot is asked about here
    return fakegpu.code_for(program, inputs)


REINDEXES = hasattr(config, "loop_reindexing_after_fusion")
"""Without it (torch 2.11) the scales of blocks and the codes are two kernels, at each of a block's four inputs."""

# scheme, its kernels for a linear and for experts
SCHEMES = [("w8a8-int8", "eight_bit_kernel", "grouped_eight_bit_kernel"),
           ("w8a8-fp8-block", "fp8_block_kernel", "grouped_fp8_block_kernel"),
           ("w4a16-g128", "w4a16_kernel", "grouped_w4a16_kernel")]


SLOW = (("qwen3_moe", "w8a8-int8"), ("mixtral", "w8a8-fp8-block"), ("qwen3_moe", "w4a16-g128"))
CASES = [
    pytest.param(name, *scheme, id=f"{scheme[0]}-{name}", marks=[pytest.mark.slow] if (name, scheme[0]) in SLOW else [])
    for name in CONFIGS
    for scheme in SCHEMES
]


@pytest.mark.parametrize(("name", "scheme", "dense", "grouped"), CASES)
def test_a_decode_step(name: str, scheme: str, dense: str, grouped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """q, k, v in one launch, o, and two launches for all experts; the host reads nothing, a graph can hold it."""
    text = code(name, scheme, monkeypatch)
    found = launches(text)
    body = text[text.index("    def call(") :]
    assert not [word for word in HOST if word in body]
    at = [place for place, one in enumerate(found) if one.startswith(grouped)]
    assert len(at) == 2, found
    # between them only the activation, with the quantizing of its rows
    more = 0 if REINDEXES or scheme != "w8a8-fp8-block" else 1
    between = found[at[0] + 1 : at[1]]
    assert len(between) == 1 + more and all(one.startswith("triton_") for one in between), found
    assert len([one for one in found if one.startswith(dense)]) == 2, found
    assert "aten._grouped_mm" not in " ".join(found)
    # between o and the experts: norm, router, softmax, choice, sort by expert, rows of experts, ends
    last = max(place for place, one in enumerate(found) if one.startswith(dense))
    assert at[0] - last - 1 <= 7 + more, found
    # from the embedding to the head, with attention of torch
    assert len(found) <= 26 + 4 * more, found
