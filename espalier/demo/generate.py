"""What a user of a checkpoint would write: `python -m espalier.demo.generate DIRECTORY PROMPT`."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import espalier.loading  # noqa: F401  # teaches transformers layers of different widths

directory, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
inputs = tokenizer(prompt, return_tensors="pt")
output = model.generate(
    **inputs, max_new_tokens=32, do_sample=False, repetition_penalty=1.2, use_cache=True
)
sys.stdout.write(tokenizer.decode(output[0], skip_special_tokens=True) + "\n")
