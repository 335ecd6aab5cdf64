"""What a run says of itself: records, trackers, summaries."""
