"""Commands that merge: plan, merge, verify, replay, roll back, and give another tokenizer."""
