"""On the language model that comes with the package: two-bit weights lose less with LoRC."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qpass import pipeline
from qpass.assets import evaluation_text, model_path
from qpass.debug.evaluate import perplexity
from qpass.recipe import Recipe

SCORED = 4000


def test_two_bits_lose_less():
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    text = evaluation_text()
    batches = tokenizer(text, return_tensors="pt").input_ids[:, -8192:].view(32, 1, 256)  # far behind what is scored
    captured, target = pipeline.capture(model), pipeline.load_target("reference")

    def measured(*methods):
        recipe = Recipe.parse({"methods": list(methods), "linears": {"*": "int2:g64:asym"}})
        trace = pipeline.run(captured, recipe, target, calibration=batches)
        compiled = pipeline.build(model, trace, target="reference")
        return perplexity(compiled, tokenizer, text, max_tokens=SCORED)

    assert measured("lorc") < 0.98 * measured()  # 0.964 when this was written
