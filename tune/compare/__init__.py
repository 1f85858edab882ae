"""Several methods searched at equal budget, their fronts repeated on several seeds, and what can be said of them."""
