"""Runs answer requests of the OpenAI Images API: one process draws, another speaks HTTP and never imports torch."""
