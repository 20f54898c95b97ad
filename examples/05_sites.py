"""Where a model may be re-scaled exactly, proof of it, an edit that is refused, and SmoothQuant on those sites."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpass
from qpass.assets import evaluation_text, model_path
from qpass.debug.evaluate import perplexity
from qpass.sites.edits import Fold, Shift, apply, reason_against
from qpass.sites.verify import verified

TOKENS = 1024

model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(model_path())
ids = tokenizer(evaluation_text(), return_tensors="pt").input_ids

# One capture serves all of this. qpass.sites(model) is short for the capture and the analysis alone.
batches = ids[:, -2048:].view(8, 1, 256)
trace = qpass.trace(model, "smoothquant+w8a8-int8", calibration=batches, target="reference")
program = trace["RAISED"]
analysis = qpass.sites.analyse(program)
print(analysis)

torch.manual_seed(0)
folds = [Fold(site, torch.exp2(torch.rand(site.size) * 8 - 4)) for site in analysis.sites]  # from 1/16 to 16
edited, folded = apply(program, folds), copy.deepcopy(model)
with torch.no_grad():
    for name in {axis.param for fold in folds for axis in fold.site.axes}:
        folded.get_parameter(name).copy_(edited.tensor(name))
    before, after = model(ids[:, :256]).logits, folded(ids[:, :256]).logits
print(f"\n{len(edited.history)} parameters re-scaled; logits moved by {(after - before).norm() / before.norm():.1e}")

site = folds[0].site
norm_only = replace(site, name=f"{site.axes[0].param} alone", axes=site.axes[:1])
refused = verified(program, [Fold(norm_only, folds[0].scale)]).refused
print(f"\nrefused: {refused[0][0].site.name}: {refused[0][1]}")
gated = next(site for site in analysis.sites if site.name.endswith("down_proj"))
print(f"refused: {reason_against(program, Shift(gated, torch.ones(gated.size)))}\n")

print("\n".join(trace.plan.methods))
compiled = qpass.pipeline.build(model, trace, target="reference")
for name, one in (("float", model), ("float, re-scaled", folded), ("smoothquant+w8a8-int8", compiled)):
    print(f"{name}: perplexity {perplexity(one, tokenizer, evaluation_text(), max_tokens=TOKENS):.3f}")
