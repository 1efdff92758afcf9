"""Networks that enlarge a picture of any size."""
