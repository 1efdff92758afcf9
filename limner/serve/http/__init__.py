"""The HTTP front; nothing here imports torch."""
