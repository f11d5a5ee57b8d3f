"""The network: speech encoder, heads, and the import of pre-trained weights."""
