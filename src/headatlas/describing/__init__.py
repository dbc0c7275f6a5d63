"""Short descriptions of heads from their salient mappings, and whether they predict other mappings."""
