"""Speech, wherever it is -> a prepared directory: readers of every form of corpus, decoding, checks, the cache."""
