"""Draws for many requests at once, one image a flight; knows no HTTP and no family."""
