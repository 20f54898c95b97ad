"""The block loop: what methods that learn from a block's output have in common."""
