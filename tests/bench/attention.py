"""What formats of attention cost in perplexity: ``python -m tests.bench.attention [recipe ...]``.

The shipped Llama in bfloat16, on the first tokens of the shipped text; prints a line a recipe. Minutes a recipe.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import qpass
from qpass.assets import evaluation_text, model_path
from qpass.debug.evaluate import perplexity

RECIPES = [f"w8a8-int8{words}" for words in ("", "+qkv8", "+qkv8p8", "+kv4", "+qkv4", "+qkv4p4")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--tokens", type=int, default=20000)
    args = parser.parse_args()
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    for recipe in args.recipes:
        compiled = qpass.compile(model, recipe)
        value = perplexity(compiled, tokenizer, evaluation_text(), max_tokens=args.tokens)
        print(f"{value:8.2f}  {recipe}", flush=True)


if __name__ == "__main__":
    main()
