"""A scripted server that breaks connections and answers exactly as told, and counts what it really read."""
