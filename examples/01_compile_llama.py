"""Compile the small Llama that qpass ships; print the plan, a continuation, and the perplexity before and after."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpass
from qpass.assets import evaluation_text, model_path
from qpass.debug.evaluate import perplexity

TOKENS = 2048

model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.bfloat16).eval()
tokenizer = AutoTokenizer.from_pretrained(model_path())

compiled = qpass.compile(model, "w8a8-int8")
print(compiled.qpass_plan)
print("seconds a step:", {step: round(seconds, 1) for step, seconds in compiled.qpass_seconds.items()})

prompt = tokenizer("The city of Paris is", return_tensors="pt")
for name, one in (("float", model), ("compiled", compiled)):
    tokens = one.generate(**prompt, max_new_tokens=20, do_sample=False)
    value = perplexity(one, tokenizer, evaluation_text(), max_tokens=TOKENS)
    print(f"\n{name}: perplexity {value:.2f} on {TOKENS} tokens\n{tokenizer.decode(tokens[0])!r}")
