"""The specification of every op in plain PyTorch: what the fast backends are held to, and the last fallback."""
