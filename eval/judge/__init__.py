"""Who grades open answers, and what is asked of them."""
