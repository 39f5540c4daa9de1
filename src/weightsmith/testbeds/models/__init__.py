"""Networks: built, trained, given adapters and heads, written and read back."""
