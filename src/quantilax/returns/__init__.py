"""What a learned distribution of returns is worth: episodes, and how well it predicts them."""
