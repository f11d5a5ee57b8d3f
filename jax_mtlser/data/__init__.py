"""From recordings to batches: decoding, packing, transcripts, batch plans."""
