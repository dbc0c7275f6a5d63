"""Is it true? What heads write in running text, and what the model cannot do without them."""
