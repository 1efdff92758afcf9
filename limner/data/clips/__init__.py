"""Films, animations and numbered frames -> frames at ticks, packed once, and clips as places in them."""
