"""From token ids to the next token without a floating-point value, and the same bits however the prompt is cut."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpass
from qpass.assets import model_path

model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
tokenizer = AutoTokenizer.from_pretrained(model_path())
integer = qpass.compile(model, "int-only-w8a8")

prompt = tokenizer("The city of Paris is", return_tensors="pt")
with qpass.integer_guard(integer):
    tokens = integer.generate(**prompt, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(tokens[0]))
print(tokenizer.decode(integer.generate(**prompt, max_new_tokens=20, do_sample=True, seed=7)[0]))

whole = integer(tokens)
first = integer(tokens[:, :5])
rest = integer(tokens[:, 5:], past_key_values=first.past_key_values)
assert torch.equal(whole.logits[:, 5:], rest.logits), "bit for bit, in one go and in two"
print("the same logits in one go and in two")
