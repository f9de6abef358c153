"""From files to batches: readers, script conversion, the token cache, packing and the loader."""
