"""From an encoder to a recogniser: transcripts, CTC models, decoding, scores."""
