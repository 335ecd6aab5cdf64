"""Repositories on the Hub, and the cards of what lies there."""
