"""Which running work is cheapest to take back."""
